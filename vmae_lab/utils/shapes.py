"""Height and width of clips, one number if they are equal, else a pair; and grids of tokens."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveInt, TypeAdapter, ValidationError

Grid = tuple[int, int, int]  # numbers of tokens in time, height and width

_PIXELS: TypeAdapter[int] = TypeAdapter(PositiveInt)
_PAIR: TypeAdapter[tuple[int, int]] = TypeAdapter(tuple[PositiveInt, PositiveInt])


def read_side(value: Any) -> int | tuple[int, int]:
    """Return a side as a number of pixels or as (height, width). Equal height and width become one number.

    Raises ValueError.
    """
    try:
        if not isinstance(value, list | tuple):
            return _PIXELS.validate_python(value)
        height, width = _PAIR.validate_python(value)
    except ValidationError:
        raise ValueError(f"a side is a number of pixels or [height, width], each at least 1; got {value!r}") from None
    return height if height == width else (height, width)


# The type of settings. A square stays a number in YAML, in JSON and in the keys of stages.
Side = Annotated[int | tuple[int, int], BeforeValidator(read_side)]


def parse_side(text: str | None) -> int | tuple[int, int] | None:
    """Read the side of a command line: `224`, `192x256` (height x width), or None. Raises ValueError."""
    if text is None:
        return None
    parts = text.strip().strip("[]").replace("x", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(parts) > 2:
        raise ValueError(f"a side is a number of pixels or HEIGHTxWIDTH, such as 192x256; got {text!r}")
    return read_side(parts if len(parts) == 2 else parts[0])


def height_width(side: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a side, in pixels."""
    return (side, side) if isinstance(side, int) else side


def short_side_for(side: int | tuple[int, int], scale: float = 1.0) -> int:
    """Return the short side of frames from which crops of a side are cut without enlarging them, in pixels.

    `scale` is the smallest size of a crop, relative to the largest crop that fits into the frame.
    """
    return math.ceil(max(height_width(side)) / scale)
