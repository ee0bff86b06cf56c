"""Inspection of a video file: a full check by decoding it, and the times of its frames."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated

import av
import numpy as np
from pydantic import Field

from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings, box_types, cause_of, is_fragmented
from vmae_lab.data.decoding.decoders import (
    CHECKED,
    Count,
    Real,
    VideoInfo,
    best_stream,
    open_pyav,
    open_video,
    read_video,
    shown_frames,
)
from vmae_lab.data.decoding.images import orientation_of
from vmae_lab.data.frame_sampling import Everything
from vmae_lab.utils.counts import counted

MISSING_FRAMES = 0.05  # accepted share of missing frames: a few are common in old AVI files, and harmless
OFF = 0.1  # accepted difference in seconds between the time of a frame and its number divided by the rate


@dataclass(frozen=True)
class Inspection:
    """The result of a check. `status`: ok, damaged (decodes with errors) or failed (no frame is usable)."""

    __pydantic_config__ = CHECKED
    status: str
    cause: str = ""
    container: str = ""
    codec: str = ""
    width: Count = 0  # upright
    height: Count = 0
    rotation: Annotated[int, Field(strict=True, ge=-360, le=360)] = 0  # degrees counterclockwise, after mirroring
    fps: Real = 0.0
    frames: Count = 0
    seconds: Real = 0.0
    decoder: str = ""
    bytes: Count = 0
    mirrored: bool = False  # whether left and right of stored pictures are swapped


def inspect_video(video: VideoFile, settings: VideoSettings) -> Inspection:
    """Check a file by decoding every frame, in this process. If it cannot be read, the result has the cause."""
    try:
        return _inspect_folder(video, settings) if video.total >= 0 else _inspect(video, settings)
    except VideoError as error:
        return Inspection("failed", error.cause, codec=error.codec)


def _inspect(video: VideoFile, settings: VideoSettings) -> Inspection:
    source, info = open_video(video, settings, use_check=False)
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
                cause = f"decoding fails after {counted(count, 'frame')}: {cause_of(error)}"
    finally:
        av.logging.set_level(level)
    if first is None or last is None:
        raise VideoError(video.path, "no frame can be decoded" + (f": {cause}" if cause else ""), info.codec)
    if not cause and logged:
        first_error = re.sub("0x[0-9a-f]+", "", logged[0][2]).strip()
        cause = f"the decoder reported {counted(len(logged), 'error')}{', the first' if len(logged) > 1 else ''}: {first_error}"
    if not cause and count < (1 - MISSING_FRAMES) * info.announced - 3:
        cause = f"{counted(count, 'frame')} can be decoded; the header announces {info.announced}"
    turned = orientation_of(first)
    size = (first.height, first.width) if turned.quarters % 2 else (first.width, first.height)
    decoder = "pyav" if settings.decoder == "auto" and info.frames != count else info.decoder
    length = 0.0
    if first.pts is not None and last.pts is not None and last.time_base is not None:
        length = float((last.pts - first.pts) * last.time_base)
    seconds = max(0.0, length) + (1 / info.fps if info.fps else 0)
    return Inspection(
        "damaged" if cause else "ok", cause, info.container, info.codec, *size, 90 * turned.quarters, round(info.fps, 3),
        count, round(seconds, 3), decoder, video.stored_bytes, turned.mirrored,
    )  # fmt: skip


def _inspect_folder(video: VideoFile, settings: VideoSettings) -> Inspection:
    decoded = read_video(video, Everything(), settings, short_side=32)
    size = sum(entry.stat().st_size for entry in os.scandir(video.path) if entry.is_file())
    info = decoded.info
    return Inspection(
        "ok", "", info.container, info.codec, info.width, info.height, 0, 0.0, len(decoded.frames), 0.0, info.decoder, size
    )


# ----------------------------------------------------------------------------------------------------------------------
# Times of frames


@dataclass(frozen=True)
class Timing:
    """The header of a file, the constant frame `rate` that fits its times best, and the largest error `off` in seconds.

    `off` is 0 if packets have no times. If only decoding can count frames, `info.frames` is the number of packets, which is a
    little larger for packed MPEG-4 in AVI and for damaged files.
    """

    __pydantic_config__ = CHECKED
    info: VideoInfo
    rate: Real
    off: Real

    @property
    def steady(self) -> bool:
        """Whether the frame rate is constant, so that frame numbers and times can be converted."""
        return self.off <= OFF


def time_video(video: VideoFile, settings: VideoSettings) -> Timing:
    """Read the header and the packet times of a file, in this process, without decoding. Raises VideoError."""
    source, info = open_video(video, settings)
    complete = info.container == "mov" and not is_fragmented(box_types(source))
    try:
        with open_pyav(source, info.container) as opened:
            times, count = _times(opened, complete)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise VideoError(video.path, f"its packets cannot be read: {cause_of(error)}", info.codec) from None
    if not count:
        raise VideoError(video.path, "no frame can be decoded", info.codec)
    return Timing(replace(info, frames=info.frames or count), *pace(times, info.fps))


def pace(times: Sequence[float], announced: float) -> tuple[float, float]:
    """Return the rate of frames shown at `times` (the `announced` one if it fits), and its largest error in seconds."""
    shown = np.sort(np.asarray(times, float))
    if len(shown) < 2 or shown[-1] <= shown[0]:
        return announced, 0.0
    measured = (len(shown) - 1) / (shown[-1] - shown[0])
    rates = [rate for rate in (announced, measured) if rate]
    off = {rate: float(np.abs(shown - shown[0] - np.arange(len(shown)) / rate).max()) for rate in rates}
    return next(((rate, by) for rate, by in off.items() if by <= OFF), (measured, off[measured]))


def _times(opened: av.container.InputContainer, complete: bool) -> tuple[list[float], int]:
    """Return the times of frames in seconds, and their number. `complete`: the sample table has all frames."""
    stream = best_stream(opened)
    assert stream.time_base is not None
    entries = stream.index_entries if complete else None
    if entries and stream.frames == len(entries) and not any(entry.is_discard for entry in entries):
        return [float(entry.timestamp * stream.time_base) for entry in entries], len(entries)
    packets = list[av.Packet]()
    with suppress(av.FFmpegError):  # up to the first unreadable packet
        for packet in opened.demux(stream):
            if packet.size and not packet.is_discard:
                packets.append(packet)
    first = next((i for i, packet in enumerate(packets) if packet.is_keyframe), 0)
    packets = packets[first:]  # frames before the first key frame cannot be decoded
    stamps = [packet.dts if packet.pts is None else packet.pts for packet in packets]
    return [float(stamp * stream.time_base) for stamp in stamps if stamp is not None], len(packets)
