"""Actions as paths of position, angle and size. A single frame does not reveal the action.

Positions are on a torus, angles on a circle, and the logarithm of the size is on a circle, too: after the largest size comes
the smallest. Each starts uniformly and changes at constant speed. So in every frame, position, angle and size are uniform and
independent of the action; only their change over time differs. If single frames revealed the class, the data set would not test
what video pre-training learns about motion.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

ACTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "zoom_in", "zoom_out")

# Speeds per frame, relative to the frame's side, in radians, and relative to the size circle; times SPEED_SPREAD in a clip.
SHIFT, TURN, GROWTH = 0.035, 0.16, 0.035
SPEED_SPREAD = (0.7, 1.3)
# What each action changes, as multiples of these speeds: x, y, angle and size phase.
DIRECTIONS = dict(
    zip(
        ACTIONS,
        [(-1, 0, 0, 0), (1, 0, 0, 0), (0, -1, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, -1, 0), (0, 0, 0, 1), (0, 0, 0, -1)],
        strict=True,
    )
)


@dataclass(frozen=True)
class Path:
    """The path of an object: centre `(F, 2)` as x, y in [0, 1), angle `(F,)` in radians, size phase `(F,)` in [0, 1).

    `distance` divides the size of the object and the length of its steps.
    """

    centre: np.ndarray
    angle: np.ndarray
    size: np.ndarray
    distance: float = 1.0

    def scale(self, smallest: float, largest: float) -> np.ndarray:
        """Return sizes `(F,)` between two bounds, uniform in the logarithm."""
        return smallest * (largest / smallest) ** self.size / self.distance

    def boxes(self, smallest: float, largest: float) -> np.ndarray:
        """Return boxes around the object, clipped to the frame: `(F, 4)` as x1, y1, x2, y2 in [0, 1]."""
        radius = self.scale(smallest, largest)[:, None]
        return np.concatenate([self.centre - radius, self.centre + radius], axis=1).clip(0, 1)


def draw_path(action: str, frames: int, rng: np.random.Generator) -> Path:
    """Draw the path of a clip. The random draws do not depend on the action, which only decides what changes."""
    centre, angle, size = rng.random(2), rng.random() * 2 * np.pi, rng.random()
    speed = rng.uniform(*SPEED_SPREAD)
    return moved(Path(centre, np.asarray(angle), np.asarray(size)), (action,), speed * np.arange(frames))


def moved(start: Path, actions: Collection[str], step: np.ndarray) -> Path:
    """Return the path from `start` (one frame, step 0) at steps `(F,)` of simultaneous actions."""
    return displaced(start, step[:, None] * rates(actions, start.distance))


def rates(actions: Collection[str], distance: float = 1.0) -> np.ndarray:
    """Return the change of x, y, angle and size phase per step of simultaneous actions: `(4,)`."""
    return np.sum([DIRECTIONS[action] for action in actions], axis=0) * (SHIFT / distance, SHIFT / distance, TURN, GROWTH)


def displaced(start: Path, change: np.ndarray) -> Path:
    """Return the path from `start` (one frame) after changes `(F, 4)` of x, y, angle and size phase. Positions wrap."""
    return Path(
        (start.centre + change[:, :2]) % 1,
        (start.angle + change[:, 2]) % (2 * np.pi),
        (start.size + change[:, 3]) % 1,
        start.distance,
    )
