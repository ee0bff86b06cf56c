"""Decoded frames as arrays: upright, in RGB, and of the size asked for."""

from collections.abc import Sequence
from math import atan2, pi
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation

SMOOTH = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND  # else colours keep half the width


class Orientation(NamedTuple):
    """How stored pixels become upright: first `mirrored` (left and right swapped), then turned counterclockwise."""

    quarters: int  # of a turn, -2 to 2
    mirrored: bool

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.quarters))


AS_STORED = Orientation(0, False)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Return the orientation nearest to a frame's display matrix; scale, shear and shift are ignored.

    The matrix `(a b u, c d v, x y w)` takes (column, row) to (a * column + c * row + x, b * column + d * row + y).
    """
    side_data: Any = frame.side_data  # PyAV's types list less than it holds
    if "DISPLAYMATRIX" not in side_data:
        return AS_STORED
    a, b, _, c, d = map(int, np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)[:5])
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return Orientation(-round(atan2(b - c, a + d) / (pi / 2)), mirrored)


def upright_pixels(frame: av.VideoFrame, height: int, width: int, orientation: Orientation) -> np.ndarray:
    """A frame in RGB, resized, then turned upright: uint8 `(H, W, 3)`."""
    resized = (height, width) != (frame.height, frame.width)
    pixels = frame.reformat(width, height, "rgb24", interpolation=SMOOTH if resized else None).to_ndarray()
    return orientation.upright(pixels)


def shrunk(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """A decoded frame, uint8 `(H, W, 3)`, with its short side brought down to `short_side`."""
    height, width = shrunk_size(pixels.shape[0], pixels.shape[1], short_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(width, height, interpolation=Interpolation.AREA).to_ndarray()


def shrunk_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """The size whose short side is `short_side` pixels and whose shape is the same; never larger than it was."""
    short = min(height, width)
    if short_side is None or short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


def arranged(found: dict[int, np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """Frames in the order asked for, one as often as it was asked for."""
    return np.stack([found[index] for index in indices])
