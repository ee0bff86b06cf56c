"""Small videos whose frames show their own number."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"  # real files, which only the project's developers have
NO_VIDEOS = "no real videos: ../shared/videos is not part of a clone"


def drawn(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame that shows `number` in eight bars, red above and blue below them: uint8 `(H, W, 3)`."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 3] = (200, 40, 40)
    pixels[height - height // 3 :] = (40, 40, 200)
    for bit in range(8):
        pixels[height // 3 : height - height // 3, bit * width // 8 : (bit + 1) * width // 8] = 220 if number >> bit & 1 else 20
    return pixels


def shown(frames: np.ndarray) -> list[int]:
    """The numbers that frames show."""
    middle = frames[:, frames.shape[1] // 2].mean(2)
    width = frames.shape[2]
    return [sum(int(row[bit * width // 8 + width // 16] > 120) << bit for bit in range(8)) for row in middle]


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Undo what SVT-AV1 does where root runs it: it makes the thread that encodes a real-time one. All that is started from
    there would be too, and two busy children would starve the tests that wait for them.
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
) -> Path:  # fmt: skip
    """Encode numbered frames, or those given; the container goes by the file's name."""
    pictures = [drawn(number, *size) for number in range(frames)] if isinstance(frames, int) else frames
    with scheduled_as_before(), av.open(str(path), "w", options=mux or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return path


def write_late_start(path: Path, source: Path, skipped: int) -> Path:
    """The packets of a video from the one numbered `skipped` on: no key frame comes first."""
    with av.open(str(source)) as video, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(video.streams.video[0])
        for number, packet in enumerate(packet for packet in video.demux(video=0) if packet.size):
            if number >= skipped:
                packet.stream = stream
                output.mux(packet)
    return path


def write_two_streams(path: Path) -> Path:
    """Two pictures at a time: the smaller one first, which shows the frames' numbers, and a larger one."""
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


def turned(path: Path, quarters: int) -> Path:
    """Have players turn an MP4 clockwise by so many quarters, as a telephone held upright does."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    matrix = np.array([cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30], ">i4")
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = matrix.tobytes()
    path.write_bytes(data)
    return path


def status_of(pid: int, key: str) -> float:
    """A number of mebibytes in /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
