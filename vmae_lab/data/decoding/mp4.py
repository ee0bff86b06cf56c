"""The boxes of an MP4 or QuickTime file: they tell whether its sample table lists all of its frames."""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from typing import BinaryIO

BOX = struct.Struct(">I4s")  # size and type


def box_types(source: str | io.BytesIO) -> set[bytes]:
    """Return the types of the boxes at the top level and in `moov`, up to the first fragment behind `moov`."""
    found: set[bytes] = set()
    with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
        for kind, start, end in _boxes(file, 0, file.seek(0, os.SEEK_END)):
            found.add(kind)
            if kind == b"moov":
                found |= {inner for inner, _, _ in _boxes(file, start, end)}
            if {b"moov", b"moof"} <= found:
                break
    return found


def is_fragmented(boxes: set[bytes]) -> bool:
    """Whether frames may be outside the sample table: in fragments (`moof`), which `mvex` announces."""
    return not boxes.isdisjoint({b"mvex", b"moof"})


def has_idr(data: bytes) -> bool:
    """Whether a packet of H.264, as MP4, Matroska and FLV store it, holds a picture that decoding can start from (IDR)."""
    at = 0
    while at + 4 < len(data):
        if data[at + 4] & 31 == 5:
            return True
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return False


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box between two places, and where its content starts and ends."""
    while start + BOX.size <= end:
        file.seek(start)
        size, kind = BOX.unpack(file.read(BOX.size))
        content = start + BOX.size
        if size == 0:  # up to the end
            size = end - start
        elif size == 1 and content + 8 <= end:
            size, content = int.from_bytes(file.read(8), "big"), content + 8
        if start + size < content:
            return
        yield kind, content, min(start + size, end)
        start += size
