"""Checks of a video file before a decoder opens it: path, links, container and MP4 boxes.

Without them, decoders would hang on named pipes, and would open the files and addresses that playlists name.
"""

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import Field

from vmae_lab.utils.atomic_io import readable
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.settings import Settings

FRAMES = "img_{:05d}.jpg"  # default file names in a folder of frames, as in the official code
HEAD = 400  # bytes that identify a container: two packets of an MPEG transport stream


class VideoError(UserError, ValueError):
    """A video cannot be read. The message has its `path`, `codec` (empty if unknown) and `cause`."""

    def __init__(self, path: str | Path, cause: str, codec: str = ""):
        self.path, self.cause, self.codec = str(path), readable(" ".join(cause.split())), codec
        super().__init__(readable(f"{self.path}{f' ({codec})' if codec else ''}: {self.cause}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.path, self.cause, self.codec)


class DecoderUnavailable(UserError, RuntimeError):
    """No decoder process can be started. This is not the fault of a video, so no video is skipped."""


class VideoSettings(Settings):
    """The decoder of video files, and its limits."""

    decoder: str = Field(
        "auto",
        pattern="^(auto|decord|pyav|torchcodec)$",
        description="auto: decord for files that it reads exactly, else PyAV. decord and torchcodec refuse inexact files",
    )
    max_pixels: int = Field(4096 * 2304, ge=1, description="largest frame in pixels; decoders need 100 bytes per pixel")
    memory_mib: int = Field(2048, ge=256, description="memory limit of a decoder process in MiB; Linux only")
    timeout_s: float = Field(60.0, gt=0, description="time limit of a read, in seconds")
    follow_links: bool = Field(False, description="whether symbolic links may point outside the root of the list")


URL = "it is a web address, and only files are read; download it first"


def is_url(location: str | Path) -> bool:
    """Return whether a location is a web address and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(location)) is not None


@dataclass(frozen=True)
class VideoFile:
    """The location of a video: a file, a folder of `total` numbered pictures from `start` on, or a part of a tar shard."""

    path: str
    root: str | None = None  # links must not point outside of it
    start: int = 1
    total: int = -1  # -1: a video file
    pattern: str = FRAMES
    offset: int = -1  # in bytes; -1: the whole file
    size: int = -1
    # Results of `vmae-lab data check`. They are valid if the file still has these `bytes`.
    decoder: str = ""
    frames: int = -1
    bytes: int = -1

    @property
    def is_as_checked(self) -> bool:
        """Whether the file has the size that `vmae-lab data check` recorded."""
        return self.decoder != "" and self.bytes == self.stored_bytes

    @property
    def stored_bytes(self) -> int:
        """Size of the video in bytes."""
        return self.size if self.size >= 0 else os.path.getsize(self.path)


def screen(video: VideoFile, follow_links: bool = False) -> str:
    """Check that a regular file (or folder of frames) may be opened, and return its real path. Raises VideoError."""
    if not video.path or "\0" in video.path:
        raise VideoError(video.path, "the path has a NUL byte" if video.path else "the path is empty")
    path = os.path.abspath(video.path)
    try:
        real, mode = os.path.realpath(path, strict=True), os.stat(path).st_mode
    except FileNotFoundError:
        raise VideoError(path, f"there is no such file{_hint_of_labels(path)}") from None
    except OSError as error:
        raise VideoError(path, error.strerror.lower() if error.strerror else str(error)) from None
    except UnicodeEncodeError as error:  # only for paths from other code: paths from lists fit the locale
        raise VideoError(path, f"the name cannot be encoded in {error.encoding} of this locale; set PYTHONUTF8=1") from None
    if video.root is not None and not follow_links:
        root = os.path.realpath(video.root)
        if os.path.commonpath([root, real]) != root:
            raise VideoError(path, f"it links to {real}, outside the root {root}; set follow_links: true to allow it")
    if video.total >= 0 and not stat.S_ISDIR(mode):
        raise VideoError(path, "it is listed as a folder of frames, but is not a folder")
    if video.total < 0 and not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise VideoError(path, f"it is not a regular file but {kinds.get(stat.S_IFMT(mode), 'a device')}")
    return real


def _hint_of_labels(path: str) -> str:
    """Return a hint if the file exists without the last word of its path: a line with a label that was read without labels."""
    match = re.fullmatch(r"(.*\S)(?:\s|,\s*)(\S+)", path, re.DOTALL)
    if match is None or not os.path.exists(match[1].rstrip(",")):
        return ""
    return f", but there is {os.path.basename(match[1].rstrip(','))}; if {match[2]!r} is its label, add --labelled"


Source = str | bytes  # the input of a decoder: a path, or the bytes of a part of a shard


def open_source(video: VideoFile, settings: VideoSettings) -> tuple[Source, str]:
    """Return the input of a decoder and its container. Raises VideoError."""
    path = screen(video, settings.follow_links)
    is_part = video.offset >= 0
    try:
        with open(path, "rb") as file:
            file.seek(video.offset if is_part else 0)
            data = file.read(video.size if is_part else HEAD)
    except OSError as error:
        raise VideoError(video.path, f"cannot be opened: {error.strerror}") from None
    try:
        return data if is_part else path, container_of(data[:HEAD])
    except ValueError as error:
        raise VideoError(video.path, str(error)) from None


def container_of(head: bytes) -> str:
    """Return FFmpeg's name of the container, from the first `HEAD` bytes of a file. Raises ValueError for other files.

    Only known binary containers are accepted. Text is refused, because HLS, DASH and ffconcat playlists name other files and
    addresses, which decoders would open.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        raise ValueError("not a video but a picture (HEIF, AVIF)")
    if head[4:8] in _FIRST_BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[::188] in (b"GG", b"GGG") or head[4::192] in (b"GG", b"GGG"):
        return "mpegts"
    for magic, name in _CONTAINERS.items():
        if head.startswith(magic):
            return name
    for magic, name in _OTHER_FILES.items():
        if head.startswith(magic):
            raise ValueError(f"not a video but {name}")
    for magic, name in _OTHER_CONTAINERS.items():
        if head.startswith(magic):
            raise ValueError(f"its container ({name}) is not supported; convert it, e.g. with 'ffmpeg -i IN OUT.mp4'")
    if not head:
        raise ValueError("the file is empty")
    text = not set(head) & set(range(9)) and b"\x7f" not in head
    raise ValueError("not a video but text" if text else "not a video: unknown container")


# Box types at the start of MP4 and QuickTime files, and of DASH and HLS segments.
_FIRST_BOXES = set(b"ftyp moov mdat free skip wide pnot uuid junk styp sidx ssix moof emsg prft".split())
_PICTURE_BRANDS = set(b"heic heix heim heis mif1 avif".split())
_CONTAINERS = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"FLV": "flv",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"OggS": "ogg",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
    b"GIF8": "gif",
}
_OTHER_CONTAINERS = {
    b"DKIF": "IVF",
    b".RMF": "RealMedia",
    b"\x06\x0e\x2b\x34": "MXF",
    b"nut/multimedia container": "NUT",
    b"YUV4MPEG2": "YUV4MPEG2",
    b"\x00\x00\x00\x01": "none, a raw stream of H.264 or H.265",
}
_OTHER_FILES = {
    b"#EXTM3U": "a playlist (HLS), which names other files",
    b"ffconcat": "a playlist (ffconcat), which names other files",
    b"version https://git-lfs": "a git-lfs pointer; fetch the file with 'git lfs pull'",
    b"<!DOCTYPE": "a web page, so the download failed",
    b"<!doctype": "a web page, so the download failed",
    b"<html": "a web page, so the download failed",
    b"<?xml": "an XML document",
    b"\xff\xd8\xff": "a picture (JPEG), or several without a container",
    b"\x89PNG": "a picture (PNG)",
    b"ID3": "audio only (MP3)",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}


def cause_of(error: Exception) -> str:
    """Return the message of an error, without positions in the source code of a decoder, error numbers and paths."""
    if isinstance(error, MemoryError):
        return "it needs more memory than allowed; increase memory_mib"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__  # also errors of FFmpeg have strerror
    return text.split("Check failed: ")[-1][:300]


# ----------------------------------------------------------------------------------------------------------------------
# Boxes of MP4 and QuickTime. They show whether the sample table has all frames


def box_types(source: Source) -> set[bytes]:
    """Return the types of the boxes at the top level and in `moov`, up to the first fragment after `moov`."""
    found: set[bytes] = set()
    with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as file:
        for kind, start, end in _boxes(file, 0, file.seek(0, os.SEEK_END)):
            found.add(kind)
            if kind == b"moov":
                found |= {inner for inner, _, _ in _boxes(file, start, end)}
            if {b"moov", b"moof"} <= found:
                break
    return found


def is_fragmented(boxes: set[bytes]) -> bool:
    """Return whether frames may be in fragments (`moof`, announced by `mvex`), outside the sample table."""
    return not boxes.isdisjoint({b"mvex", b"moof"})


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box between two positions, and the start and end of its content."""
    while start + 8 <= end:
        file.seek(start)
        size, kind, content = int.from_bytes(file.read(4), "big"), file.read(4), start + 8
        if size == 0:  # up to the end
            size = end - start
        elif size == 1 and content + 8 <= end:  # a size of 64 bits follows
            size, content = int.from_bytes(file.read(8), "big"), content + 8
        if start + size < content:
            return
        yield kind, content, min(start + size, end)
        start += size
