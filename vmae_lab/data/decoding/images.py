"""Folders of numbered pictures, as the official lists name them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings, cause_of, screen
from vmae_lab.data.decoding.pixels import shrunk


def read_pictures(
    video: VideoFile, indices: Sequence[int], settings: VideoSettings, short_side: int | None
) -> dict[int, np.ndarray]:  # fmt: skip
    """Each of some frames by its number: uint8 `(H, W, 3)`. Raises VideoError."""
    found: dict[int, np.ndarray] = {}
    for index in sorted(set(indices)):
        one = replace(video, path=f"{video.path}/{video.pattern.format(video.start + index)}", total=-1)
        try:
            with Image.open(screen(one, settings.follow_links), formats=("JPEG", "PNG", "WEBP", "BMP")) as picture:
                if picture.width * picture.height > settings.max_pixels:
                    raise VideoError(one.path, f"{picture.width} x {picture.height} is larger than max_pixels")
                found[index] = shrunk(np.asarray(picture.convert("RGB")), short_side)
            if found[index].shape != found[min(found)].shape:
                raise VideoError(one.path, f"its size differs from that of frame {min(found)}")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(one.path, cause_of(error), "pictures") from None
    return found
