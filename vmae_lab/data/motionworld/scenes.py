"""Scenes of motionworld: several actors in one frame, each with a box and one or two actions, listed as AVA lists its movies.

An actor is a thing of the clips, farther away. Where it is in the key frame, and how large, is drawn without regard to what it
does, so the key frame alone tells no action.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.data.motionworld import motion
from vmae_lab.data.motionworld.dataset import FRAMES_A_SECOND, Split, check_room, in_batches, write_mp4, written_once
from vmae_lab.data.motionworld.dataset import RENDERER_VERSION as THINGS_VERSION
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.sources import LARGEST, SMALLEST, SOURCES, WHOLE_FRAME
from vmae_lab.utils.atomic_io import fingerprint, write_json, write_text
from vmae_lab.utils.seeding import numpy_generator

RENDERER_VERSION = 1  # part of the folder's name: raise it when a change to the renderer changes pixels
SPLITS = ("train", "validation", "test")
KINDS = (ACTIONS[:4], ACTIONS[4:6], ACTIONS[6:])  # shift, turn, growth: an actor does one of a kind
TRIES = 100  # to place an actor beside the others; after that it stays away
APART = 0.05  # overlap of boxes (IoU) up to which actors stand side by side
# Our stand-in for a person detector: how often it finds an actor, how far its edges are off in parts of the box, how often it
# sees one where none is.
FOUND, OFF, GHOSTS = 0.95, 0.05, 0.15


class SceneWorldSettings(BaseModel):
    """How many scenes are written, and what is in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] = ("digits", "sticks", "sprites")
    side: int = Field(64, ge=32, le=512, multiple_of=2, description="height and width of the files, pixels")
    seconds: int = Field(2, ge=2, le=60, description="length of a scene at 12 frames a second; the key frame is in its middle")
    actors: int = Field(3, ge=1, le=6, description="at most; one at least")
    both: float = Field(0.25, ge=0, le=1, description="how often an actor does two actions at once")
    distance: float = Field(2.0, ge=1, description="how many times smaller than the things of the clips actors are")
    train: int = Field(300, ge=1, description="scenes")
    validation: int = Field(60, ge=1)
    test: int = Field(150, ge=1)
    seed: int = 0

    def model_post_init(self, _context: object) -> None:
        things = [name for name in SOURCES if name not in WHOLE_FRAME]
        if not self.sources or set(self.sources) - set(things):
            raise ValueError(f"sources {list(self.sources)}: actors are of {', '.join(things)}")
        if self.seconds % 2:
            raise ValueError(f"seconds {self.seconds} is odd: the key frame, in the middle, is at a whole second")

    @property
    def fingerprint(self) -> str:
        """Names the data's content: equal settings give equal files."""
        return fingerprint({"scenes": RENDERER_VERSION, "things": THINGS_VERSION, **self.model_dump(mode="json")})

    @property
    def key_second(self) -> int:
        return self.seconds // 2


def open_scene_world(settings: SceneWorldSettings, processes: int = 1) -> Path:
    """A folder with `videos/`, and per split what AVA has: `<split>.csv`, `<split>_persons.csv`; and `actions.pbtxt`.

    Written first if it is not there yet. Raises StorageError.
    """
    return written_once(f"scenes-{settings.fingerprint}", lambda folder: _write(settings, folder, processes))


def render_scene(settings: SceneWorldSettings, split: str, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, ...]]]:
    """Frames uint8 `(F, S, S, 3)`, and at the key frame each actor's box `(n, 4)` in [0, 1] and what it does."""
    rng = numpy_generator(settings.seed, f"scene {split}", index)
    frames, key = settings.seconds * FRAMES_A_SECOND, settings.key_second * FRAMES_A_SECOND
    boxes: list[np.ndarray] = []
    done, layers = [], []
    for actor in range(int(rng.integers(1, settings.actors + 1))):
        actions = _actions(rng, settings.both)
        step = rng.uniform(*motion.SPEED_SPREAD) * (np.arange(frames) - key)
        start = _place(boxes, settings.distance, rng)
        if start is None:
            continue
        path = motion.moved(start, actions, step)
        look = numpy_generator(settings.seed, f"actor {split}", index, actor)
        source = settings.sources[look.integers(len(settings.sources))]
        layers.append(SOURCES[source](path, settings.side, look))
        boxes.append(path.boxes(SMALLEST, LARGEST)[key])
        done.append(actions)
    # Things are brighter than any ground, so the brightest is what stands in front.
    scene = np.maximum.reduce(layers)
    return (scene * 255).round().clip(0, 255).astype(np.uint8), np.array(boxes), done


def _actions(rng: np.random.Generator, both: float) -> tuple[str, ...]:
    """One action, each as often as the others, or with it one of another kind."""
    first = ACTIONS[rng.integers(len(ACTIONS))]
    others = [action for kind in KINDS if first not in kind for action in kind]
    second = others[rng.integers(len(others))]
    return (first, second) if rng.random() < both else (first,)


def _place(boxes: list[np.ndarray], distance: float, rng: np.random.Generator) -> motion.Path | None:
    """Where an actor is in the key frame: wholly in the picture, beside the others; None where there is no room."""
    angle, size = rng.random() * 2 * np.pi, rng.random()
    for _ in range(TRIES):
        start = motion.Path(rng.random((1, 2)), np.array([angle]), np.array([size]), distance)
        radius = start.scale(SMALLEST, LARGEST)[0]
        inside = radius + start.centre[0] * (1 - 2 * radius)
        start = motion.Path(inside[None], start.angle, start.size, distance)
        box = start.boxes(SMALLEST, LARGEST)[0]
        if all(_overlap(box, other) <= APART for other in boxes):
            return start
    return None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    shared = np.prod(np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None))
    return float(shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared))


def _write(settings: SceneWorldSettings, folder: Path, processes: int) -> None:
    pixels = settings.seconds * FRAMES_A_SECOND * settings.side**2
    check_room(folder, settings.train + settings.validation + settings.test, pixels)
    jobs = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]
    rows = in_batches(partial(_write_scene, settings, folder), jobs, folder, processes)
    for split in SPLITS:
        for part, name in enumerate((f"{split}.csv", f"{split}_persons.csv")):
            lines = [line for (where, _), said in zip(jobs, rows, strict=True) if where == split for line in said[part]]
            write_text(folder / name, "".join(f"{line}\n" for line in lines))
    items = (f'item {{\n  name: "{action}"\n  id: {number}\n}}\n' for number, action in enumerate(ACTIONS, 1))
    write_text(folder / "actions.pbtxt", "".join(items))
    write_json(folder / "settings.json", {"renderer": RENDERER_VERSION, **settings.model_dump(mode="json")})


def _write_scene(settings: SceneWorldSettings, folder: Path, split: Split, index: int) -> tuple[list[str], list[str]]:
    """Write a scene's file; the lines of it in the list of boxes and in that of the person detector."""
    name = f"{split}_{index:05d}"
    frames, boxes, done = render_scene(settings, split, index)
    write_mp4(frames, folder / "videos" / f"{name}.mp4")
    key = f"{name},{settings.key_second:04d}"
    truth = [
        f"{key},{_corners(box)},{ACTIONS.index(action) + 1},{person}"
        for person, (box, actions) in enumerate(zip(boxes, done, strict=True))
        for action in actions
    ]
    seen = _seen(boxes, numpy_generator(settings.seed, f"person detector {split}", index))
    return truth, [f"{key},{_corners(box)},,{score:.4f}" for box, score in seen]


def _seen(boxes: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float]]:
    """What the stand-in for a person detector says of a key frame: boxes and scores."""
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
