"""Actions as paths of position, angle and size that no single frame reveals.

The world wraps: positions are on a torus, angles on a circle, and the logarithm of the size on a circle as well (what has
grown to the largest size continues from the smallest). Each starts uniformly and moves at constant speed. So in every single
frame position, angle and size are uniform and independent of the action; only their change over time differs. If one frame
revealed the class, "video" pre-training would look better than it is.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

ACTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "zoom_in", "zoom_out")

# Speeds per frame: parts of the frame's side, radians, and parts of the size circle; a clip's own speed is 0.7 to 1.3 times.
SHIFT, TURN, GROWTH = 0.035, 0.16, 0.035
SPEED_SPREAD = (0.7, 1.3)
# What each action changes, in these speeds: x, y, angle and size phase.
DIRECTIONS = dict(
    zip(
        ACTIONS,
        [(-1, 0, 0, 0), (1, 0, 0, 0), (0, -1, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, -1, 0), (0, 0, 0, 1), (0, 0, 0, -1)],
        strict=True,
    )
)


@dataclass(frozen=True)
class Path:
    """Where a thing is in each frame: centre `(F, 2)` as x, y in [0, 1); angle `(F,)`, radians; size phase `(F,)` in [0, 1).

    `distance` above 1 makes the thing, and the part of the frame that a step covers, as many times smaller.
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
    """The path of one clip. The draws are the same for every action, which only decides what moves and in which direction."""
    centre, angle, size = rng.random(2), rng.random() * 2 * np.pi, rng.random()
    speed = rng.uniform(*SPEED_SPREAD)
    return moved(Path(centre, np.asarray(angle), np.asarray(size)), (action,), speed * np.arange(frames))


def moved(start: Path, actions: Collection[str], step: np.ndarray) -> Path:
    """The path of a thing at `start` (one frame, step 0) at steps `(F,)` of simultaneous actions."""
    return displaced(start, step[:, None] * rates(actions, start.distance))


def rates(actions: Collection[str], distance: float = 1.0) -> np.ndarray:
    """Change of x, y, angle and size phase per step of simultaneous actions: `(4,)`."""
    return np.sum([DIRECTIONS[action] for action in actions], axis=0) * (SHIFT / distance, SHIFT / distance, TURN, GROWTH)


def displaced(start: Path, change: np.ndarray) -> Path:
    """The path of a thing at `start` (one frame) after changes `(F, 4)` of x, y, angle and size phase; the world wraps."""
    return Path(
        (start.centre + change[:, :2]) % 1,
        (start.angle + change[:, 2]) % (2 * np.pi),
        (start.size + change[:, 3]) % 1,
        start.distance,
    )
