"""Messages between a decoder's process and the one that started it: JSON with its length before it, and raw pixels.

Reading them runs no code, whoever wrote them: a file may have taken over the decoder that read it.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import IO, Any, TypeVar, get_type_hints

from vmae_lab.data.decoding.container import VideoError, VideoSettings
from vmae_lab.data.decoding.decoders import Choose, VideoInfo

T = TypeVar("T")
LENGTH = struct.Struct("<Q")
LARGEST = 1 << 20  # bytes of an answer: a few numbers and texts; pixels come after it
LEAST_FRAME = 256  # bytes: bounds how many frames are chosen of a video that claims to have billions
REFUSALS: dict[str, type[Exception]] = {one.__name__: one for one in (IndexError, ValueError, MemoryError)}


class Malformed(Exception):
    """An answer that no sound decoder gives."""


def packed(message: Any) -> bytes:
    """A message of plain values. Texts may hold surrogates, as the names of files that are not UTF-8 do."""
    data = json.dumps(message).encode("ascii")
    return LENGTH.pack(len(data)) + data


def send(stream: IO[bytes], message: Any) -> None:
    stream.write(packed(message))
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """The next message. If the other side has ended, this process ends as well."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise SystemExit
    return json.loads(stream.read(LENGTH.unpack(head)[0]))


def parsed(data: bytes) -> tuple[str, Any]:
    """The kind and the content of an answer. Raises Malformed."""
    try:
        kind, content = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        raise Malformed("it is no message") from None
    return kind, content


def from_fields(kind: type[T], given: Any) -> T:
    """A dataclass of numbers, texts and dataclasses, from its fields by name. Raises Malformed."""
    types = get_type_hints(kind)
    if not isinstance(given, dict) or given.keys() != types.keys():
        raise Malformed(f"it has not the fields of {kind.__name__}")
    return kind(**{name: _checked(name, expected, given[name]) for name, expected in types.items()})


def _checked(name: str, expected: type, value: Any) -> Any:
    if is_dataclass(expected):
        return from_fields(expected, value)
    sound = type(value) in ((int, float) if expected is float else (expected,))
    if expected in (int, float):
        least = -360 if name == "rotation" else 0
        sound = sound and least <= value < 2**63
    if not sound:
        raise Malformed(f"{name} is {value!r:.50}")
    return value


def chosen_frames(choose: Choose, frames: Any, settings: VideoSettings) -> tuple[list[int], Any]:
    """The frames that `choose` picks from so many, and the message that tells the decoder so. Raises Malformed."""
    if type(frames) is not int or not 0 < frames < 2**63:
        raise Malformed(f"it has {frames!r:.50} frames")
    try:
        picked: Sequence[int] = choose(frames)
        if len(picked) * LEAST_FRAME > settings.memory_mib << 20:
            raise MemoryError
    except (IndexError, ValueError, MemoryError) as refusal:
        return [], [type(refusal).__name__ if type(refusal).__name__ in REFUSALS else "ValueError", str(refusal)]
    indices = [int(index) for index in picked]
    return indices, ["indices", indices]


def pixels_of(given: Any, count: int, short_side: int | None, settings: VideoSettings) -> tuple[tuple[int, ...], VideoInfo]:
    """The shape of `count` frames that are to come, and what their file is. Raises Malformed."""
    if not isinstance(given, dict) or given.keys() != {"shape", "info"}:
        raise Malformed("it has no shape")
    shape = given["shape"]
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(size) is int and size > 0 for size in shape):
        raise Malformed(f"the shape of its frames is {shape!r:.50}")
    frames, height, width, colours = shape
    if (
        (frames, colours) != (count, 3)
        or height * width > settings.max_pixels
        or min(height, width) > (short_side or min(height, width))
        or frames * height * width * colours > settings.memory_mib << 20
    ):
        raise Malformed(f"the shape of its frames is {shape!r:.50}, where {count} were asked for")
    return tuple(shape), from_fields(VideoInfo, given["info"])


def error_of(given: Any) -> VideoError:
    """The error that a decoder sends. Raises Malformed."""
    names = ("path", "cause", "codec")
    if not isinstance(given, dict) or given.keys() != set(names) or not all(type(given[name]) is str for name in names):
        raise Malformed("its error has not the fields of VideoError")
    return VideoError(**given)
