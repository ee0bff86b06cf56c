"""What is decided about a file before a decoder sees it: a decoder hangs on a pipe and follows a playlist wherever it leads."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.utils.atomic_io import readable
from vmae_lab.utils.errors import UserError

FRAMES = "img_{:05d}.jpg"  # the official code's names in a folder of frames
HEAD = 400  # bytes that tell a container; two packets of an MPEG transport stream


class VideoError(UserError, ValueError):
    """A video that cannot be read: `path`, `codec` (empty where it is not known) and `cause`, all in the message."""

    def __init__(self, path: str | Path, cause: str, codec: str = ""):
        self.path, self.cause, self.codec = str(path), readable(" ".join(cause.split())), codec
        super().__init__(readable(f"{self.path}{f' ({codec})' if codec else ''}: {self.cause}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.path, self.cause, self.codec)


class DecoderUnavailable(UserError, RuntimeError):
    """No decoder can be started: the machine is at fault, not a video, and none may be set aside for it."""


class VideoSettings(BaseModel):
    """How real files are decoded, and what none of them may exceed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decoder: str = Field(
        "auto",
        pattern="^(auto|decord|pyav|torchcodec)$",
        description="auto: decord for files it reads exactly, PyAV for the rest; another refuses what it does not read exactly",
    )
    max_pixels: int = Field(4096 * 2304, ge=1, description="of a frame: decoders take a hundred bytes a pixel")
    memory_mib: int = Field(2048, ge=256, description="that a decoder's process may take; held on Linux alone")
    timeout_s: float = Field(60.0, gt=0, description="seconds a read may take before its decoder is ended")
    follow_links: bool = Field(False, description="whether symbolic links may lead out of the list's root")


@dataclass(frozen=True)
class VideoFile:
    """Where a video's bytes are: a file, `total` numbered pictures in a folder from `start` on, or a part of a tar shard."""

    path: str
    root: str | None = None  # links may not lead out of it
    start: int = 1
    total: int = -1  # -1: a video file
    pattern: str = FRAMES
    offset: int = -1  # bytes; -1: a file of its own
    size: int = -1
    # What `vmae-lab data check` saw, so that a read need not look again; holds while the file has these `bytes`.
    decoder: str = ""
    frames: int = -1
    bytes: int = -1


def screen(video: VideoFile, follow_links: bool = False) -> str:
    """The real, absolute path of a regular file (or folder of frames) that may be opened. Raises VideoError."""
    if not video.path or "\0" in video.path:
        raise VideoError(video.path, "an empty path" if not video.path else "the path holds a NUL byte")
    path = os.path.abspath(video.path)
    try:
        real, status = os.path.realpath(path, strict=True), os.stat(path)
    except OSError as error:
        raise VideoError(path, _system(error)) from None
    except UnicodeEncodeError as error:  # a path of a program, not of a list: lists are read in any locale
        raise VideoError(path, f"the name cannot be written in this locale's {error.encoding}; set PYTHONUTF8=1") from None
    if video.root is not None and not follow_links:
        root = os.path.realpath(video.root)
        if os.path.commonpath([root, real]) != root:
            raise VideoError(path, f"a link leads out of the root {root}, to {real} (follow_links: true allows it)")
    if video.total >= 0:
        if not stat.S_ISDIR(status.st_mode):
            raise VideoError(path, "a folder of frames was listed, and this is none")
    elif not stat.S_ISREG(status.st_mode):
        raise VideoError(path, f"not a regular file but {_kind(status.st_mode)}")
    return real


def container_of(head: bytes) -> str:
    """The container that a file's first `HEAD` bytes announce. Raises ValueError saying what it is instead, where it is none.

    Containers are let in by name, so nothing made of text passes: HLS, DASH and ffconcat playlists name other files and
    addresses, which decoders open.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        raise ValueError("not a video but a picture (HEIF, AVIF)")
    if head[4:8] in _FIRST_BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[::188] in (b"GG", b"GGG") or head[4::192] in (b"GG", b"GGG"):
        return "mpegts"
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    for magic, words in _NOT_VIDEO.items():
        if head.startswith(magic):
            raise ValueError(f"not a video but {words}")
    for magic, name in _OTHER_CONTAINERS.items():
        if head.startswith(magic):
            raise ValueError(f"its container is not read here ({name}); convert it, as with 'ffmpeg -i IN OUT.mp4'")
    if not head:
        raise ValueError("the file is empty")
    text = not set(head) & set(range(9)) and b"\x7f" not in head
    raise ValueError("not a video but text" if text else "not a video: its first bytes are of no container that is read here")


# The types of box that MP4 and QuickTime files begin with. Segments of DASH and HLS do, too: `mp4` tells them apart.
_FIRST_BOXES = set(b"ftyp moov mdat free skip wide pnot uuid junk styp sidx ssix moof emsg prft".split())
_PICTURE_BRANDS = set(b"heic heix heim heis mif1 avif".split())
_MAGIC = {
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
    b"\x00\x00\x00\x01": "none: a bare stream of H.264 or H.265",
}
_NOT_VIDEO = {
    b"#EXTM3U": "a playlist (HLS), which names other files",
    b"ffconcat": "a playlist (ffconcat), which names other files",
    b"version https://git-lfs": "a git-lfs pointer: fetch the file with 'git lfs pull'",
    b"<!DOCTYPE": "a web page: its download failed",
    b"<!doctype": "a web page: its download failed",
    b"<html": "a web page: its download failed",
    b"<?xml": "an XML document",
    b"\xff\xd8\xff": "a picture (JPEG), or several without a container",
    b"\x89PNG": "a picture (PNG)",
    b"ID3": "sound alone (MP3)",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}


def cause_of(error: Exception) -> str:
    """What went wrong, without the decoder's own places in its source."""
    if isinstance(error, MemoryError):
        return "it takes more memory than it may (memory_mib)"
    text = str(error) or type(error).__name__
    return text.split("Check failed: ")[-1][:300]


def _system(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"{error.strerror.lower()}" if error.strerror else str(error)


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
    return next((words for test, words in kinds.items() if test(mode)), "a socket")
