"""The clips of a stage: loaded once in a process, and what of a split cannot be read, where that is to be left out."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vmae_lab.data.activitynet import Split, Untrimmed, UntrimmedSettings, open_untrimmed
from vmae_lab.data.ava import Scenes, SceneSettings, open_scenes
from vmae_lab.data.corrupt_videos import CorruptVideos
from vmae_lab.data.dataset import Clips, DataSettings, load_clips
from vmae_lab.data.eval_clips import readable
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.settings import Compute


@lru_cache(maxsize=8)
def _clips(data: str, content: str, split: str, sources: tuple[str, ...], processes: int) -> Clips:
    """`content`, here and below: a fingerprint, so that a list that was changed meanwhile is read again."""
    return load_clips(DataSettings.model_validate_json(data), split, sources, processes)


def load_split(settings: Mapping[str, Any], split: str, sources: Sequence[str], compute: Compute) -> tuple[DataSettings, Clips]:
    """A stage's data settings and the clips of one split, all that are listed."""
    data = DataSettings(**settings["data"])
    return data, _clips(data.model_dump_json(), data.fingerprint, split, tuple(sources), compute.processes)


@lru_cache(maxsize=4)
def _scenes(settings: str, content: str, split: str, processes: int) -> Scenes:
    return open_scenes(SceneSettings.model_validate_json(settings), split, processes)


def load_scenes(settings: SceneSettings, split: str, compute: Compute) -> Scenes:
    """The key frames of one split."""
    return _scenes(settings.model_dump_json(), settings.fingerprint, split, compute.processes)


@lru_cache(maxsize=4)
def _untrimmed(settings: str, content: str, split: Split, processes: int) -> Untrimmed:
    return open_untrimmed(UntrimmedSettings.model_validate_json(settings), split, processes)


def load_untrimmed(settings: UntrimmedSettings, split: Split, compute: Compute) -> Untrimmed:
    """The annotated untrimmed videos of one split."""
    return _untrimmed(settings.model_dump_json(), settings.fingerprint, split, compute.processes)


def check_scenes(settings: SceneSettings, split: str, compute: Compute) -> None:
    """Open what is trained on and what is judged: what is wrong with lists is told before hours of training. Raises ListError,
    StorageError."""
    for one in dict.fromkeys(("train", split)):
        load_scenes(settings, one, compute)


def check_untrimmed(settings: UntrimmedSettings, split: Split, compute: Compute) -> None:
    """The same of untrimmed videos, and see that they, or their features, are there. Raises ListError, StorageError."""
    both: tuple[Split, Split] = ("train", split)
    for one in dict.fromkeys(both):
        load_untrimmed(settings, one, compute).check()


def held_out_clips(settings: Mapping[str, Any], sources: Sequence[str], compute: Compute) -> tuple[Clips, dict[str, Any]]:
    """The clips that a stage is evaluated on, and what its result says of them.

    Where the recipe says to skip missing ones, those are left out by name. Where it does not, nothing is tried here, and
    reading them raises MissingVideos.
    """
    _, clips = load_split(settings, settings["split"], sources, compute)
    there, left_out = _readable(settings, clips, range(len(clips)))
    kept = clips.subset(there) if left_out else clips
    return kept, {"test_clips": len(kept), **({"left_out": left_out} if left_out else {})}


def readable_draws(
    settings: Mapping[str, Any], labelled: Clips, draws: list[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray, dict[str, Any]]:  # fmt: skip
    """Draws of labelled rows, all rows they need, and what the result says of those left out, as `held_out_clips` does."""
    needed = np.unique(np.concatenate(draws))
    there, left_out = _readable(settings, labelled, needed.tolist())
    if not left_out:
        return draws, needed, {}
    return [draw[np.isin(draw, there)] for draw in draws], np.asarray(there), {"left_out_of_training": left_out}


def _readable(settings: Mapping[str, Any], clips: Clips, rows: Sequence[int]) -> tuple[Sequence[int], list[str]]:
    """Rows that can be read, and the names of the others; all rows, untried, where none may be left out."""
    if settings.get("missing") != "skip":
        return rows, []
    model = ModelSettings(**settings["model"])
    there, missing = readable(clips, rows, model.frames, settings["data"]["stride"], model.side)
    if missing and not there:
        raise missing
    return there, [clips.name(row) for row in missing.failed] if missing else []


def corrupt_videos_in(folder: Path) -> CorruptVideos:
    """The broken videos of a training in its folder, also those that it met before it was interrupted."""
    return CorruptVideos(folder / "quarantine.csv")


def set_aside(corrupt_videos: CorruptVideos) -> dict[str, Any]:
    """What the result says of videos that training could not read: nothing, where it could read all."""
    if not len(corrupt_videos):
        return {}
    print(f"{len(corrupt_videos)} videos could not be read and were replaced by others; which and why: {corrupt_videos.file}")
    return {"quarantined": len(corrupt_videos)}
