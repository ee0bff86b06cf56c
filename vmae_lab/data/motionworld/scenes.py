"""Scenes of motionworld: several actors per frame, each with a box and one or two actions, in AVA's list format.

An actor is a smaller copy of an object of the clips. Its position and size in the key frame are drawn independently of its
actions, so the key frame alone does not reveal them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torchvision.ops import box_iou

from vmae_lab.data.motionworld import dataset, motion
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.sources import LARGEST, SMALLEST, SOURCES, THINGS
from vmae_lab.data.motionworld.writer import FRAMES_A_SECOND, WorldSettings, open_world, write_mp4
from vmae_lab.utils.atomic_io import write_text
from vmae_lab.utils.seeding import numpy_generator

RENDERER_VERSION = 1  # part of the folder's name: increase it when a change to the renderer changes pixels
KINDS = (ACTIONS[:4], ACTIONS[4:6], ACTIONS[6:])  # shift, turn, growth: an actor does at most one of each kind
TRIES = 100  # attempts to place an actor without overlap; then it is left out
APART = 0.05  # largest overlap of two actors' boxes (IoU)
# The simulated person detector: probability that it finds an actor, standard deviation of a box's edges relative to the box,
# probability of a false detection.
FOUND, OFF, GHOSTS = 0.95, 0.05, 0.15


class SceneWorldSettings(WorldSettings):
    """Number and content of the scenes."""

    prefix = "scenes"
    versions: ClassVar = {"scenes": RENDERER_VERSION, "things": dataset.RENDERER_VERSION}
    available = THINGS

    sources: tuple[str, ...] = ("digits", "sticks", "sprites")
    side: int = Field(64, ge=32, le=512, multiple_of=2, description="height and width of the files, pixels")
    seconds: int = Field(2, ge=2, le=60, multiple_of=2, description="length of a scene; its key frame is in the middle")
    actors: int = Field(3, ge=1, le=6, description="maximum number per scene; at least one")
    both: float = Field(0.25, ge=0, le=1, description="probability that an actor does two actions at once")
    distance: float = Field(2.0, ge=1, description="divides the size of actors, relative to the objects of the clips")
    train: int = Field(300, ge=1, description="scenes")
    validation: int = Field(60, ge=1)
    test: int = Field(150, ge=1)
    seed: int = 0

    @property
    def key_second(self) -> int:
        return self.seconds // 2


def open_scene_world(settings: SceneWorldSettings, processes: int = 1) -> Path:
    """Return a folder with `videos/`, `actions.pbtxt` and, per split, `<split>.csv` and `<split>_persons.csv`, as for AVA.

    It is written first if necessary. Raises StorageError.
    """
    return open_world(settings, _write_scene, _write_lists, settings.seconds * FRAMES_A_SECOND * settings.side**2, processes)


def render_scene(settings: SceneWorldSettings, split: str, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, ...]]]:
    """Render a scene: frames uint8 `(F, S, S, 3)`, and in the key frame the boxes `(n, 4)` in [0, 1] and actions of actors."""
    rng = numpy_generator(settings.seed, f"scene {split}", index)
    frames, key = settings.seconds * FRAMES_A_SECOND, settings.key_second * FRAMES_A_SECOND
    boxes: list[np.ndarray] = []
    done, layers = [], []
    for actor in range(int(rng.integers(1, settings.actors + 1))):
        actions = _draw_actions(rng, settings.both)
        step = rng.uniform(*motion.SPEED_SPREAD) * (np.arange(frames) - key)
        start = _draw_start(boxes, settings.distance, rng)
        if start is None:
            continue
        path = motion.moved(start, actions, step)
        look = numpy_generator(settings.seed, f"actor {split}", index, actor)
        source = settings.sources[look.integers(len(settings.sources))]
        layers.append(SOURCES[source](path, settings.side, look))
        boxes.append(path.boxes(SMALLEST, LARGEST)[key])
        done.append(actions)
    scene = np.maximum.reduce(layers)  # actors are brighter than the background, so the brightest layer is in front
    return (scene * 255).round().clip(0, 255).astype(np.uint8), np.array(boxes), done


def _draw_actions(rng: np.random.Generator, both: float) -> tuple[str, ...]:
    """Draw one action, or two of different kinds."""
    first = ACTIONS[rng.integers(len(ACTIONS))]
    others = [action for kind in KINDS if first not in kind for action in kind]
    second = others[rng.integers(len(others))]
    return (first, second) if rng.random() < both else (first,)


def _draw_start(boxes: list[np.ndarray], distance: float, rng: np.random.Generator) -> motion.Path | None:
    """Draw an actor in the key frame, inside the frame and apart from the others, or return None if there is no space."""
    angle, size = rng.random() * 2 * np.pi, rng.random()
    for _ in range(TRIES):
        start = motion.Path(rng.random((1, 2)), np.array([angle]), np.array([size]), distance)
        radius = start.scale(SMALLEST, LARGEST)[0]
        inside = radius + start.centre[0] * (1 - 2 * radius)
        start = motion.Path(inside[None], start.angle, start.size, distance)
        box = start.boxes(SMALLEST, LARGEST)[0]
        overlaps = box_iou(torch.from_numpy(box[None]), torch.from_numpy(np.reshape(boxes, (-1, 4))))
        if not (overlaps > APART).any():
            return start
    return None


def _write_scene(settings: SceneWorldSettings, folder: Path, split: str, index: int) -> dict[str, list[str]]:
    """Write the file of a scene. Return its lines in the lists of boxes and of the person detector: file -> lines."""
    name = f"{split}_{index:05d}"
    frames, boxes, done = render_scene(settings, split, index)
    write_mp4(frames, folder / "videos" / f"{name}.mp4")
    key = f"{name},{settings.key_second:04d}"
    truth = [
        f"{key},{_corners(box)},{ACTIONS.index(action) + 1},{person}"
        for person, (box, actions) in enumerate(zip(boxes, done, strict=True))
        for action in actions
    ]
    detected = _detect(boxes, numpy_generator(settings.seed, f"person detector {split}", index))
    persons = [f"{key},{_corners(box)},,{score:.4f}" for box, score in detected]
    return {f"{split}.csv": truth, f"{split}_persons.csv": persons}


def _write_lists(folder: Path, scenes: list[dict[str, list[str]]]) -> None:
    for name in dict.fromkeys(name for lines in scenes for name in lines):
        write_text(folder / name, "".join(f"{line}\n" for lines in scenes for line in lines.get(name, ())))
    items = (f'item {{\n  name: "{action}"\n  id: {number}\n}}\n' for number, action in enumerate(ACTIONS, 1))
    write_text(folder / "actions.pbtxt", "".join(items))


def _detect(boxes: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the boxes and scores of the simulated person detector in a key frame."""
    for box in boxes:
        width, height = box[2:] - box[:2]
        edges = box + rng.normal(0, OFF, 4) * (width, height, width, height)
        score = rng.uniform(0.8, 1)
        if rng.random() < FOUND:
            yield edges.clip(0, 1), score
    corner, size, score = rng.uniform(0, 0.7, 2), rng.uniform(0.1, 0.3, 2), rng.uniform(0.3, 0.95)
    if rng.random() < GHOSTS:
        yield np.concatenate([corner, corner + size]), score


def _corners(box: np.ndarray) -> str:
    return ",".join(f"{value:.4f}" for value in box)
