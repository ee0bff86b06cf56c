"""When a video's frames are shown, told by its packets, without decoding: what a time in seconds means in frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import av
import numpy as np

from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings, cause_of, screen
from vmae_lab.data.decoding.decoders import VideoInfo, is_as_checked, probe
from vmae_lab.data.decoding.mp4 import box_types, is_fragmented
from vmae_lab.data.decoding.pyav import best_stream, open_pyav, open_source

TIMING: Final = "timing"  # in place of a choice of frames, in a request to a decoder's process
OFF = 0.1  # seconds by which a frame may be shown before or after its number says


@dataclass(frozen=True)
class Timing:
    """What a file is, and the rate by which every frame is shown no more than `off` seconds from where its number says.

    Of all constant rates it is the best. `off` is 0 if packets have no times. If only decoding tells `info.frames`, packets are
    counted: packed MPEG-4 in AVI and damaged files have a few more of them than frames.
    """

    info: VideoInfo
    rate: float
    off: float

    @property
    def steady(self) -> bool:
        """Whether frame number and time can be told from one another."""
        return self.off <= OFF


def time_video(video: VideoFile, settings: VideoSettings) -> Timing:
    """Read a video file's header and the times of its packets, in this process. Raises VideoError."""
    path = screen(video, settings.follow_links)
    source, container = open_source(video, path)
    info = probe(video.path, source, container, settings, video if is_as_checked(video, path) else None)
    complete = container == "mov" and not is_fragmented(box_types(source))
    try:
        with open_pyav(source, container) as opened:
            times, count = _times(opened, complete)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise VideoError(video.path, f"its packets cannot be read: {cause_of(error)}", info.codec) from None
    if not count:
        raise VideoError(video.path, "no frame of it can be decoded", info.codec)
    return Timing(replace(info, frames=info.frames or count), *pace(times, info.fps))


def pace(times: Sequence[float], said: float) -> tuple[float, float]:
    """The rate of frames shown at `times`, and how far they are off it: what the header `said` if that holds."""
    shown = np.sort(np.asarray(times, float))
    if len(shown) < 2 or shown[-1] <= shown[0]:
        return said, 0.0
    measured = (len(shown) - 1) / (shown[-1] - shown[0])
    off = {rate: float(np.abs(shown - shown[0] - np.arange(len(shown)) / rate).max()) for rate in (said, measured) if rate}
    return next(((rate, by) for rate, by in off.items() if by <= OFF), (measured, off[measured]))


def _times(opened: av.container.InputContainer, complete: bool) -> tuple[list[float], int]:
    """Seconds at which frames are shown, and how many there are. A `complete` sample table tells at once."""
    stream = best_stream(opened)
    assert stream is not None, "there is one: `probe` looks first"
    assert stream.time_base is not None
    entries = stream.index_entries if complete else None
    if entries and stream.frames == len(entries) and not any(entry.is_discard for entry in entries):
        return [float(entry.timestamp * stream.time_base) for entry in entries], len(entries)
    packets = [packet for packet in _whole(opened, stream) if packet.size and not packet.is_discard]
    first = next((place for place, packet in enumerate(packets) if packet.is_keyframe), 0)
    packets = packets[first:]  # what is cut off behind a key frame cannot be decoded
    told = [packet.dts if packet.pts is None else packet.pts for packet in packets]
    return [float(time * stream.time_base) for time in told if time is not None], len(packets)


def _whole(opened: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Packets up to the first that cannot be read, as a decoder gets them."""
    try:
        yield from opened.demux(stream)
    except av.FFmpegError:
        return
