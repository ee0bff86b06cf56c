"""Clips of motionworld: mp4 files with a source, an action and a split each."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, TypeAdapter

from vmae_lab.data.motionworld.motion import ACTIONS, draw_path
from vmae_lab.data.motionworld.sources import SOURCES, boxes
from vmae_lab.data.motionworld.writer import SPLITS, Job, Split, WorldSettings, open_world, write_mp4
from vmae_lab.utils.atomic_io import write_text
from vmae_lab.utils.seeding import numpy_generator

RENDERER_VERSION = 2  # part of the folder's name: increase it when a change to the renderers changes pixels


class MotionworldSettings(WorldSettings):
    """Number and size of the clips of motionworld. Counts are clips per source and action."""

    prefix = "motionworld"
    versions: ClassVar = {"renderer": RENDERER_VERSION}
    available = SOURCES

    sources: tuple[str, ...] = ("sprites", "digits", "sticks", "camera", "kaleidoscope")
    side: int = Field(64, ge=16, le=512, multiple_of=2, description="height and width of the files, pixels")
    frames: int = Field(24, ge=2, le=1000, description="frames per file, at 12 frames per second")
    train: int = Field(60, ge=1, description="clips per source and action in the training split")
    validation: int = Field(15, ge=1)
    test: int = Field(25, ge=1)
    seed: int = 0

    def clips(self) -> int:
        return len(self.jobs())

    def jobs(self) -> list[Job]:
        """Return the split, source, action and number of every file, in order."""
        return [
            (split, source, action, index)
            for split in SPLITS
            for source in self.sources
            for action in ACTIONS
            for index in range(getattr(self, split))
        ]


@dataclass(frozen=True)
class ClipRecord:
    """One file of motionworld."""

    path: str
    split: Split
    source: str
    action: str
    frames: int

    @property
    def label(self) -> int:
        return ACTIONS.index(self.action)


def open_motionworld(settings: MotionworldSettings, processes: int = 1) -> tuple[Path, list[ClipRecord]]:
    """Return the folder and the clips of the data set. They are written first if necessary. Raises StorageError."""
    folder = open_world(settings, _write_clip, _write_records, settings.frames * settings.side**2, processes)
    read = TypeAdapter(ClipRecord).validate_json
    return folder, [read(line) for line in (folder / "clips.jsonl").read_bytes().splitlines()]


def render_clip(
    source: str, action: str, settings: MotionworldSettings, split: str, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Render a clip: frames uint8 `(F, S, S, 3)` and boxes `(F, 4)`, a pure function of its name and the seed."""
    position = (list(SOURCES).index(source), ACTIONS.index(action), index)
    path = draw_path(action, settings.frames, numpy_generator(settings.seed, f"motion {split}", *position))
    frames = SOURCES[source](path, settings.side, numpy_generator(settings.seed, f"look {split}", *position))
    return (frames * 255).round().clip(0, 255).astype(np.uint8), boxes(source, path)


def _write_clip(settings: MotionworldSettings, folder: Path, split: Split, source: str, action: str, index: int) -> ClipRecord:
    path = f"{split}/{source}/{action}/{index:05d}.mp4"
    write_mp4(render_clip(source, action, settings, split, index)[0], folder / path)
    return ClipRecord(path, split, source, action, settings.frames)


def _write_records(folder: Path, records: list[ClipRecord]) -> None:
    write_text(folder / "clips.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in records))
