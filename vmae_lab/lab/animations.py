"""Looping animations: rows of frames side by side as one GIF, the same bytes wherever they are made from the same frames."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TALL = 144  # pixels that a picture is at least high
MILLISECONDS = 250  # that a frame is shown
MARGIN, HEAD = 6, 20  # pixels around a picture, and above it for its name


def looping_gif(strips: Mapping[str, np.ndarray]) -> bytes:
    """Clips that play side by side under their names, for ever. strips: name -> uint8 `(T, H, W, 3)`, all of one shape."""
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
    written = io.BytesIO()
    pages[0].save(written, "GIF", save_all=True, append_images=pages[1:], duration=MILLISECONDS, loop=0)
    return written.getvalue()
