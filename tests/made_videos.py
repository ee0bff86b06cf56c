"""Small videos whose frames show their own number."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"  # real files, which only the project's developers have
NO_VIDEOS = "no real videos: ../shared/videos is not part of a clone"


def drawn(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Return a frame that shows `number` in eight bars, red above and blue below them: uint8 `(H, W, 3)`."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 3] = (200, 40, 40)
    pixels[height - height // 3 :] = (40, 40, 200)
    for bit in range(8):
        pixels[height // 3 : height - height // 3, bit * width // 8 : (bit + 1) * width // 8] = 220 if number >> bit & 1 else 20
    return pixels


def shown(frames: np.ndarray) -> list[int]:
    """Return the numbers that frames show."""
    middle = frames[:, frames.shape[1] // 2].mean(2)
    width = frames.shape[2]
    return [sum(int(row[bit * width // 8 + width // 16] > 120) << bit for bit in range(8)) for row in middle]


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Restore the scheduling of this thread after the block.

    If root runs it, SVT-AV1 gives the encoding thread real-time priority. All processes that it starts would inherit this
    priority, and two busy ones would starve the tests that wait for them.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def write_video(
    path: Path, frames: int | Sequence[np.ndarray] = 40, codec: str = "h264", pix_fmt: str = "yuv420p", gop: int = 12,
    size: tuple[int, int] = (64, 48), options: dict[str, str] | None = None, mux: dict[str, str] | None = None,
    display: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Encode numbered or given frames. The file's name selects the container. `display` is for set_display_rotation."""
    pictures = [drawn(number, *size) for number in range(frames)] if isinstance(frames, int) else frames
    with scheduled_as_before(), av.open(str(path), "w", options=mux or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        if display:
            stream.set_display_rotation(**display)
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return path


def write_late_start(path: Path, source: Path, skipped: int) -> Path:
    """Write the packets of a video from number `skipped` on, so that it does not start with a key frame."""
    with av.open(str(source)) as video, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(video.streams.video[0])
        for number, packet in enumerate(packet for packet in video.demux(video=0) if packet.size):
            if number >= skipped:
                packet.stream = stream
                output.mux(packet)
    return path


def write_edited(path: Path, source: Path, hidden: int) -> Path:
    """Write the packets of a video, the first of them before time 0, which an MP4 hides with an edit list."""
    with av.open(str(source)) as video, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as output:
        stream = output.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = stream
                packet.pts, packet.dts = packet.pts - hidden * packet.duration, packet.dts - hidden * packet.duration
                output.mux(packet)
    return path


def write_filtered(path: Path, source: Path, filters: str) -> Path:
    """Write the packets of a video, changed by a bitstream filter."""
    with av.open(str(source)) as video, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(video.streams.video[0])
        changed = BitStreamFilterContext(filters, video.streams.video[0])
        for packet in video.demux(video=0):
            for found in changed.filter(packet if packet.size else None):
                found.stream = stream
                output.mux(found)
    return path


def write_two_streams(path: Path) -> Path:
    """Write a video with two streams: first a small one that shows the numbers of frames, then a larger one."""
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("h264", rate=25) for _ in range(2)]
        for stream, scale in zip(streams, (1, 2), strict=True):
            stream.width, stream.height, stream.pix_fmt = 64 * scale, 48 * scale, "yuv420p"
        for number in range(40):
            for stream, shift in zip(streams, (0, 100), strict=True):
                picture = drawn(number + shift, stream.width, stream.height)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            output.mux(stream.encode())
    return path


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Give an MP4 a display matrix: players show pixel (x, y) at (ax + cy, bx + dy), moved into the picture."""
    fixed = [round(value * (1 << 16)) for value in (a, b, 0, c, d, 0, 0, 0)]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = np.array([*fixed, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
    return path


def boxes(path: Path) -> list[tuple[str, bytes]]:
    """Return the boxes at the top level of an MP4, with their types."""
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append((data[4:8].decode(), data[:size]))
        data = data[size:]
    return found


def status_of(pid: int, key: str) -> float:
    """Return a number of mebibytes from /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
