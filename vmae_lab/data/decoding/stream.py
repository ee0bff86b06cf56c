"""Read all frames of a video in order, in chunks. Each frame is decoded once. Memory does not grow with the video's length.

PyAV decodes all files here, also if `VideoSettings.decoder` is decord, which keeps about 600 full-size frames in memory (4 GB
at 1920 x 1080 pixels).
"""

from collections.abc import Iterator

import av
import numpy as np

from vmae_lab.data.decoding.container import Source, VideoError, VideoFile, VideoSettings, cause_of
from vmae_lab.data.decoding.decoders import (
    Decoded,
    VideoInfo,
    decoding_cause,
    open_video,
    read_video,
    shown_frames,
    with_pyav,
)
from vmae_lab.data.decoding.images import FrameConverter
from vmae_lab.data.frame_sampling import Stretch
from vmae_lab.utils.counts import counted

CHUNK = 32  # maximum number of frames in a chunk


def stream_video(video: VideoFile, settings: VideoSettings, short_side: int | None = None) -> Iterator[Decoded]:
    """Yield the frames of a video in display order, at most CHUNK at a time, decoded in this process. Raises VideoError.

    The frames equal those of `read_video` with PyAV as the decoder. Frames with a larger short side are reduced to
    `short_side` pixels.
    """
    if video.total >= 0:  # a folder of pictures
        for start in range(0, video.total, CHUNK):
            yield read_video(video, Stretch(start, CHUNK), settings, short_side)
        return
    source, info = open_video(video, with_pyav(settings))
    done = 0
    try:
        for frames, times in _chunks(source, info, short_side):
            yield Decoded(frames, tuple(range(done, done + len(frames))), info, times)
            done += len(frames)
        if not done:
            raise ValueError("no frame can be decoded")
    except (av.FFmpegError, RuntimeError, ValueError, MemoryError) as error:
        raise VideoError(video.path, decoding_cause(error), info.codec) from None


def _chunks(source: Source, info: VideoInfo, short_side: int | None) -> Iterator[tuple[np.ndarray, tuple[float, ...]]]:
    """Yield chunks of frames, uint8 `(T, H, W, 3)`, and their times in seconds. After a frame without a time, times are ().

    If the number of frames is unknown, a decoder error ends the video.
    """
    chunk: list[np.ndarray] = []
    times: list[float] = []
    count = 0
    timed = True  # whether all frames so far have a time
    try:
        for frame in shown_frames(source, info):
            if count == 0:
                to_pixels = FrameConverter(frame, short_side)
            if frame.is_corrupt:
                raise ValueError(f"frame {count} is damaged")
            chunk.append(to_pixels(frame))
            timed = timed and frame.time is not None
            times.append(frame.time or 0.0)
            count += 1
            if len(chunk) == CHUNK:
                yield np.stack(chunk), tuple(times) if timed else ()
                chunk, times = [], []
            if count == info.frames:
                break
    except av.FFmpegError as error:
        if info.frames:
            raise ValueError(f"only {counted(count, 'frame')} can be decoded: {cause_of(error)}") from None
    if chunk:
        yield np.stack(chunk), tuple(times) if timed else ()
