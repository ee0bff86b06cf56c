"""Messages between a decoder process and its parent: the length, then JSON or raw pixels.

A malicious file may take control of its decoder process. Reading a message never runs code, so the parent is safe.
"""

import json
import struct
from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from vmae_lab.data.decoding.decoders import CHECKED, VideoInfo
from vmae_lab.data.decoding.inspection import Inspection, Timing

LENGTH = struct.Struct("<Q")
LARGEST = 1 << 20  # largest answer in bytes, without pixels
REFUSALS: dict[str, type[Exception]] = {error.__name__: error for error in (IndexError, ValueError, MemoryError)}
Time = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(strict=True, gt=0, lt=2**63)]


class Malformed(Exception):
    """An invalid answer of a decoder process."""


@dataclass(frozen=True)
class Pixels:
    """The shape of the frames that follow as raw bytes, and their times in seconds, if known."""

    __pydantic_config__ = CHECKED
    shape: tuple[Size, Size, Size, Literal[3]]  # (T, H, W, 3)
    info: VideoInfo
    times: tuple[Time, ...] = ()


# Kinds of answers and their content. "frames" has the number of frames and asks for the indices to read. "end" ends a stream.
# "error" has the arguments of a VideoError.
_CONTENTS: dict[str, Any] = {
    "ready": None, "frames": Size, "pixels": Pixels, "inspection": Inspection, "seeks": bool, "timing": Timing,
    "error": tuple[str, str, str], "end": None,
}  # fmt: skip
_ADAPTERS = {kind: TypeAdapter[Any](content) for kind, content in _CONTENTS.items()}


def packed(message: Any) -> bytes:
    """Encode plain values. Strings may contain surrogates, which stand for bytes of file names that are not UTF-8."""
    data = json.dumps(message).encode("ascii")
    return LENGTH.pack(len(data)) + data


def send(stream: IO[bytes], message: Any) -> None:
    """Send a message from the decoder process."""
    stream.write(packed(message))
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Wait for a message in the decoder process. Exits if the parent has closed the pipe."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise SystemExit
    return json.loads(stream.read(LENGTH.unpack(head)[0]))


def parsed(data: bytes) -> tuple[str, Any]:
    """Decode and validate an answer of a decoder process. Return its kind and content. Raises Malformed."""
    try:
        kind, content = json.loads(data)
        return kind, _ADAPTERS[kind].validate_python(content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Malformed(f"{error!s:.200}") from None
