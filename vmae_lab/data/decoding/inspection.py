"""A video decoded once, whole, and what was seen: an index may promise what is not there, and damage need not be an error."""

import os
import re
from dataclasses import dataclass

import av

from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings, cause_of, screen
from vmae_lab.data.decoding.decoders import probe, read_video, shown_frames
from vmae_lab.data.decoding.pixels import orientation_of
from vmae_lab.data.decoding.pyav import open_source
from vmae_lab.data.frame_sampling import Everything

MISSING_FRAMES = 0.05  # of what the header promises; a few less are common in old AVI files, and harmless


@dataclass(frozen=True)
class Inspection:
    """What one video is. `status`: ok, damaged (it decodes, not as it should) or failed (no frame of it can be trusted)."""

    status: str
    cause: str = ""
    container: str = ""
    codec: str = ""
    width: int = 0  # upright
    height: int = 0
    rotation: int = 0  # degrees by which stored pictures are turned counterclockwise, after mirroring
    fps: float = 0.0
    frames: int = 0
    seconds: float = 0.0
    decoder: str = ""
    bytes: int = 0
    mirrored: bool = False  # whether left and right of stored pictures are swapped


def inspect_video(video: VideoFile, settings: VideoSettings) -> Inspection:
    """Decode every frame, in this process. A file that cannot be read is told, not raised."""
    try:
        path = screen(video, settings.follow_links)
        return _inspect_folder(video, path, settings) if video.total >= 0 else _inspect(video, path, settings)
    except VideoError as error:
        return Inspection("failed", error.cause, codec=error.codec)


def _inspect(video: VideoFile, path: str, settings: VideoSettings) -> Inspection:
    source, container = open_source(video, path)
    info = probe(video.path, source, container, settings)
    count, cause = 0, ""
    first: av.VideoFrame | None = None
    last: av.VideoFrame | None = None
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as logged:
            try:
                for frame in shown_frames(source, info):
                    count, first, last = count + 1, first or frame, frame
            except (av.FFmpegError, MemoryError, ValueError) as error:
                cause = f"decoding breaks off after {count} frames: {cause_of(error)}"
    finally:
        av.logging.set_level(level)
    if first is None or last is None:
        raise VideoError(video.path, "no frame of it can be decoded" + (f": {cause}" if cause else ""), info.codec)
    if not cause and logged:
        cause = f"the decoder complained {len(logged)} times, first: {re.sub('0x[0-9a-f]+', '', logged[0][2]).strip()}"
    if not cause and count < (1 - MISSING_FRAMES) * info.announced - 3:
        cause = f"{count} frames, but the header announces {info.announced}"
    turned = orientation_of(first)
    size = (first.height, first.width) if turned.quarters % 2 else (first.width, first.height)
    decoder = "pyav" if settings.decoder == "auto" and info.frames != count else info.decoder
    length = 0.0
    if first.pts is not None and last.pts is not None and last.time_base is not None:
        length = float((last.pts - first.pts) * last.time_base)
    seconds = max(0.0, length) + (1 / info.fps if info.fps else 0)
    return Inspection(
        "damaged" if cause else "ok", cause, info.container, info.codec, *size, 90 * turned.quarters, round(info.fps, 3),
        count, round(seconds, 3), decoder, video.size if video.size >= 0 else os.path.getsize(path), turned.mirrored,
    )  # fmt: skip


def _inspect_folder(video: VideoFile, path: str, settings: VideoSettings) -> Inspection:
    decoded = read_video(video, Everything(), settings, short_side=32)
    size = sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    info = decoded.info
    return Inspection(
        "ok", "", info.container, info.codec, info.width, info.height, 0, 0.0, len(decoded.frames), 0.0,
        info.decoder, size,
    )  # fmt: skip
