"""Looping animations: clips next to one another in one picture. The same frames give the same bytes on every machine."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TALL = 144  # pixels that a picture is at least high
MILLISECONDS = 250  # that a frame is shown
MARGIN, HEAD = 6, 20  # pixels around a picture, and above it for its name


def looping_gif(strips: Mapping[str, np.ndarray]) -> bytes:
    """A GIF of clips that play next to one another under their names, without end.

    strips: name -> uint8 `(T, H, W, 3)`, all of one shape.
    """
    return _written(_pages(strips), "GIF")


def looping_png(strips: Mapping[str, np.ndarray]) -> bytes:
    """The same as an animated PNG: a viewer that cannot play it shows its first frame, as of any PNG."""
    return _written(_pages(strips), "PNG")


def _pages(strips: Mapping[str, np.ndarray]) -> list[Image.Image]:
    frames, height, width, _ = next(iter(strips.values())).shape
    factor = -(-TALL // height)
    wide, tall = factor * width + MARGIN, factor * height + HEAD + MARGIN
    pages = [Image.new("RGB", (len(strips) * wide + MARGIN, tall), "white") for _ in range(frames)]
    font = ImageFont.load_default(size=12)
    for place, (name, strip) in enumerate(strips.items()):
        for page, frame in zip(pages, strip, strict=True):
            picture = Image.fromarray(frame).resize((factor * width, factor * height), Image.Resampling.NEAREST)
            page.paste(picture, (place * wide + MARGIN, HEAD))
            ImageDraw.Draw(page).text((place * wide + MARGIN, 3), name, fill="black", font=font)
    return pages


def _written(pages: list[Image.Image], form: str) -> bytes:
    written = io.BytesIO()
    pages[0].save(written, form, save_all=True, append_images=pages[1:], duration=MILLISECONDS, loop=0)
    return written.getvalue()
