"""What stages read: clips, scenes and untrimmed videos, embedded or listed. Each is opened once per process.

Training replaces unreadable videos and counts them. Evaluation skips them if the recipe allows it, and stops if not.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from torch.utils.data import Dataset

from vmae_lab.data.activitynet import Split, Untrimmed, UntrimmedSettings, open_untrimmed
from vmae_lab.data.ava import Scenes, SceneSettings, open_scenes
from vmae_lab.data.corrupt_videos import CorruptVideos
from vmae_lab.data.dataset import Clips, DataSettings, load_clips
from vmae_lab.data.eval_clips import readable
from vmae_lab.evaluation.inference import Inference
from vmae_lab.lab.stages.cost import EmbeddedVideos, reading_seconds
from vmae_lab.lab.stages.stage import Stage
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import Loading, data_loader
from vmae_lab.training.settings import Compute
from vmae_lab.utils.counts import counted

Opened = TypeVar("Opened")


def _open(opener: Callable[..., Opened], settings: Any, *arguments: Any) -> Opened:
    """Open a data set once per process, and again if its content has changed."""
    opened: Opened = _opened(opener, settings.__class__, settings.model_dump_json(), settings.fingerprint, *arguments)
    return opened


@lru_cache(maxsize=16)
def _opened(opener: Callable[..., Any], kind: Any, settings: str, fingerprint: str, *arguments: Any) -> Any:
    return opener(kind.model_validate_json(settings), *arguments)


def split_clips(data: DataSettings, split: str, sources: Sequence[str], compute: Compute) -> Clips:
    """Return all clips of one split, readable or not."""
    return _open(load_clips, data, split, tuple(sources), compute.processes)


def load_scenes(settings: SceneSettings, split: str, compute: Compute) -> Scenes:
    """Return the key frames of one split."""
    return _open(open_scenes, settings, split, compute.processes)


def load_untrimmed(settings: UntrimmedSettings, split: Split, compute: Compute) -> Untrimmed:
    """Return the annotated untrimmed videos of one split."""
    return _open(open_untrimmed, settings, split, compute.processes)


def inference(compute: Compute) -> Inference:
    """Return how to evaluate: in the precision of `compute`, with clips from its loader workers."""

    def load(dataset: Dataset, length: int) -> Iterator[Any]:
        return data_loader(dataset, range(length), Loading(compute.workers), pin_memory=False)

    return Inference(compute.evaluation_precision, load if compute.workers else None)


def check_scenes(settings: SceneSettings, split: str, compute: Compute) -> None:
    """Open the scenes to train and to evaluate on, to find wrong lists before training. Raises ListError, StorageError."""
    for name in dict.fromkeys(("train", split)):
        load_scenes(settings, name, compute)


def check_untrimmed(settings: UntrimmedSettings, split: Split, compute: Compute) -> None:
    """Check untrimmed videos in the same way, and that their files or features exist. Raises ListError, StorageError."""
    names: tuple[Split, Split] = ("train", split)
    for name in dict.fromkeys(names):
        load_untrimmed(settings, name, compute).check()


# ---------------------------------------------------------------- stages that read clips


class ClipStage(Stage):
    """A stage that reads clips of the recipe's data."""

    data: DataSettings
    data_fingerprint: str
    model: ModelSettings

    def clips(self, split: str, sources: Sequence[str], compute: Compute) -> Clips:
        """Return all clips of one split."""
        return split_clips(self.data, split, sources, compute)

    @property
    def clip_macs(self) -> float:
        """Multiply-accumulates of one clip's forward pass through the classifier."""
        return classify_cost(self.model.dimensions, self.model.clip, self.data.classes).macs

    @property
    def embedded_videos(self) -> EmbeddedVideos | None:
        world = self.data.motionworld
        return EmbeddedVideos(world, world.frames, world.side, self.data.resident_side) if world else None


class EvaluatedStage(ClipStage):
    """A stage that is evaluated on held-out clips of `sources`, or, if None, of the sources to pre-train on."""

    split: Literal["validation", "test"]
    missing: Literal["refuse", "skip"] = "refuse"
    sources: tuple[str, ...] | None = None

    @property
    def evaluated_sources(self) -> tuple[str, ...]:
        return self.data.pretrain_sources if self.sources is None else self.sources

    def held_out_clips(self, compute: Compute) -> tuple[Clips, dict[str, Any]]:
        """Return the clips to evaluate on, and what the result records about them.

        If the recipe sets `missing: skip`, unreadable clips are left out and named. Otherwise none is tried here, and reading
        an unreadable one raises MissingVideos.
        """
        clips, left_out = self.readable_clips(self.split, compute)
        return clips, {"test_clips": len(clips), **({"left_out": left_out} if left_out else {})}

    def readable_clips(self, split: str, compute: Compute) -> tuple[Clips, list[str]]:
        """Return the clips of a split, and the names of those that are left out; see `held_out_clips`."""
        clips = self.clips(split, self.evaluated_sources, compute)
        rows, left_out = self._readable(clips, range(len(clips)), compute)
        return clips.subset(rows) if left_out else clips, left_out

    def readable_draws(
        self, labelled: Clips, draws: list[np.ndarray], compute: Compute
    ) -> tuple[list[np.ndarray], np.ndarray, dict[str, Any]]:
        """Return the readable part of draws of rows, all rows in them, and what the result records about the others."""
        needed = np.unique(np.concatenate(draws))
        rows, left_out = self._readable(labelled, needed.tolist(), compute)
        if not left_out:
            return draws, needed, {}
        return [draw[np.isin(draw, rows)] for draw in draws], np.asarray(rows), {"left_out_of_training": left_out}

    def _readable(self, clips: Clips, rows: Sequence[int], compute: Compute) -> tuple[Sequence[int], list[str]]:
        """Return the readable rows and the names of the others; all rows, without reading them, if none may be left out."""
        if self.missing != "skip":
            return rows, []
        load = inference(compute).load
        found, missing = readable(clips, rows, self.model.frames, self.data.stride, self.model.side, load)
        if missing and not found:
            raise missing
        return found, [clips.name(row) for row in missing.failed] if missing else []

    @property
    def held_out_count(self) -> int:
        """Number of clips to evaluate on. It is 0 for listed videos, whose number is not known before the list is read."""
        return self.clip_count(self.split)

    def clip_count(self, split: str) -> int:
        """Return the number of clips of a split of the evaluated sources; 0 for listed videos."""
        world = self.data.motionworld
        return len(self.evaluated_sources or self.data.sources) * self.data.classes * getattr(world, split) if world else 0

    @property
    def reading_s(self) -> float:
        """CPU seconds to read the clips to evaluate on, once."""
        return self.held_out_count * reading_seconds(self.model, self.data)


# ---------------------------------------------------------------- videos that a training cannot read


def corrupt_videos_in(folder: Path) -> CorruptVideos:
    """Return the list of a training's unreadable videos, including those from before an interruption."""
    return CorruptVideos(folder / "quarantine.csv")


def replaced_videos(corrupt_videos: CorruptVideos) -> dict[str, Any]:
    """Return what the result records about videos that a training could not read; nothing if it could read all."""
    count = len(corrupt_videos.errors)
    if not count:
        return {}
    print(f"{counted(count, 'video')} could not be read; others were used instead. List: {corrupt_videos.file}")
    return {"quarantined": count}
