"""Decoded frames as arrays (upright, RGB, resized), and folders of numbered pictures."""

from collections.abc import Sequence
from dataclasses import replace
from math import atan2, pi
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings, cause_of, screen

# Without FULL_CHR_H_INT, colors would have half the width.
SMOOTH = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


class Orientation(NamedTuple):
    """How to make stored frames upright: first mirror (swap left and right), then turn counterclockwise."""

    quarters: int  # of a turn, -2 to 2
    mirrored: bool


AS_STORED = Orientation(0, False)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Return the orientation that is nearest to the display matrix of a frame. Scale, shear and shift are ignored.

    The matrix `(a b u, c d v, x y w)` maps (column, row) to (a * column + c * row + x, b * column + d * row + y).
    """
    side_data: Any = frame.side_data  # not completely covered by PyAV's types
    if "DISPLAYMATRIX" not in side_data:
        return AS_STORED
    a, b, _, c, d = map(int, np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)[:5])
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return Orientation(-round(atan2(b - c, a + d) / (pi / 2)), mirrored)


class FrameConverter:
    """Converts the frames of a video to RGB and turns them upright: uint8 `(H, W, 3)`.

    Size and orientation may change within a video. Those of the `first` frame are used, with a larger short side reduced to
    `short_side`.
    """

    def __init__(self, first: av.VideoFrame, short_side: int | None):
        self._height, self._width = shrunk_size(first.height, first.width, short_side)
        self._orientation = orientation_of(first)
        self._reformatter = VideoReformatter()  # its tables are the same for all frames

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        resized = (self._height, self._width) != (frame.height, frame.width)
        # By default, FFmpeg starts a thread per core for every frame. Data loader processes already run in parallel.
        pixels = self._reformatter.reformat(
            frame, self._width, self._height, "rgb24", interpolation=SMOOTH if resized else None, threads=1
        ).to_ndarray()
        quarters, mirrored = self._orientation
        return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters))


def shrunk(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """Return a frame, uint8 `(H, W, 3)`, with its short side reduced to `short_side`."""
    height, width = shrunk_size(pixels.shape[0], pixels.shape[1], short_side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(width, height, interpolation=Interpolation.AREA, threads=1).to_ndarray()


def shrunk_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return the size with a short side of at most `short_side` pixels and the same aspect ratio."""
    short = min(height, width)
    if short_side is None or short <= short_side:
        return height, width
    return max(1, round(height * short_side / short)), max(1, round(width * short_side / short))


def arranged(found: dict[int, np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """Stack frames in the order of `indices`. A frame may occur several times."""
    return np.stack([found[index] for index in indices])


def read_pictures(
    video: VideoFile, indices: Sequence[int], settings: VideoSettings, short_side: int | None
) -> dict[int, np.ndarray]:  # fmt: skip
    """Read frames from a folder of numbered pictures: index -> uint8 `(H, W, 3)`. Raises VideoError."""
    found: dict[int, np.ndarray] = {}
    for index in sorted(set(indices)):
        file = replace(video, path=f"{video.path}/{video.pattern.format(video.start + index)}", total=-1)
        try:
            with Image.open(screen(file, settings.follow_links), formats=("JPEG", "PNG", "WEBP", "BMP")) as picture:
                if picture.width * picture.height > settings.max_pixels:
                    raise VideoError(file.path, f"{picture.width} x {picture.height} exceeds max_pixels")
                found[index] = shrunk(np.asarray(picture.convert("RGB")), short_side)
            if found[index].shape != found[min(found)].shape:
                raise VideoError(file.path, f"its size differs from frame {min(found)}")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(file.path, cause_of(error), "pictures") from None
    return found
