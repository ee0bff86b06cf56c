"""Actions as paths of position, angle and size on which no single frame tells the action.

The world wraps: positions live on a torus, angles on a circle, and the logarithm of the size on a circle too (a thing
that has grown to the largest size goes on from the smallest). Each starts uniformly and moves at constant speed, so in
every single frame position, angle and size are uniform and independent whatever the action is; only their change over
time differs. Classes that are told by one frame would make "video" pre-training look better than it is.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

ACTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "zoom_in", "zoom_out")

# Speeds a frame: parts of the frame's side, radians, and parts of the size circle; a clip's own speed is .7 to 1.3 times.
SHIFT, TURN, GROWTH = 0.035, 0.16, 0.035
SPEED_SPREAD = (0.7, 1.3)


@dataclass(frozen=True)
class Path:
    """Where a thing is in each frame: centre `(F, 2)` as x, y in [0, 1); angle `(F,)`, radians; size phase `(F,)` in [0, 1).

    `distance` above 1 makes the thing, and so what it covers of the frame in a step, as many times smaller.
    """

    centre: np.ndarray
    angle: np.ndarray
    size: np.ndarray
    distance: float = 1.0

    def scale(self, smallest: float, largest: float) -> np.ndarray:
        """Sizes `(F,)` between two bounds, uniform in their logarithm."""
        return smallest * (largest / smallest) ** self.size / self.distance

    def boxes(self, smallest: float, largest: float) -> np.ndarray:
        """Box of the circle around the thing, clipped to the frame: `(F, 4)` as x1, y1, x2, y2 in [0, 1]."""
        radius = self.scale(smallest, largest)[:, None]
        return np.concatenate([self.centre - radius, self.centre + radius], axis=1).clip(0, 1)


def draw_path(action: str, frames: int, rng: np.random.Generator) -> Path:
    """The path of one clip. The same draws are made for every action; the action only picks what moves, and which way."""
    centre, angle, size = rng.random(2), rng.random() * 2 * np.pi, rng.random()
    speed = rng.uniform(*SPEED_SPREAD)
    return moved(Path(centre, np.asarray(angle), np.asarray(size)), (action,), speed * np.arange(frames))


def moved(start: Path, actions: Collection[str], step: np.ndarray) -> Path:
    """A thing that is at `start` (one frame) at step 0, at other steps `(F,)` of actions that it does together."""
    return displaced(start, step[:, None] * rates(actions, start.distance))


def rates(actions: Collection[str], distance: float = 1.0) -> np.ndarray:
    """What a step of actions done together changes: x, y, angle and size phase, `(4,)`."""
    shifts = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    x, y = np.sum([shifts.get(action, (0, 0)) for action in actions], axis=0)
    turn = sum({"clockwise": 1, "anticlockwise": -1}.get(action, 0) for action in actions)
    growth = sum({"zoom_in": 1, "zoom_out": -1}.get(action, 0) for action in actions)
    return np.array([SHIFT / distance * x, SHIFT / distance * y, TURN * turn, GROWTH * growth])


def displaced(start: Path, change: np.ndarray) -> Path:
    """A thing at `start` (one frame) after changes `(F, 4)` of x, y, angle and size phase, where the world wraps."""
    return Path(
        (start.centre + change[:, :2]) % 1,
        (start.angle + change[:, 2]) % (2 * np.pi),
        (start.size + change[:, 3]) % 1,
        start.distance,
    )
