"""The decoder process, which `pool.DecoderProcess` starts. A broken file can only hang, crash or take over this process.

It answers requests on its standard input until that is closed.
"""

import os
import resource
import signal
import sys
from dataclasses import asdict

from vmae_lab.utils.processes import end_when, ignore_stop_requests


def main() -> None:
    """Read the settings, answer "ready", then answer requests `(what, folder, video, short_side)`. Paths start at `folder`.

    `what` is "read", "stream", "inspect", "seeks" or "time". The answers are defined in `messages.py`. Raw pixels follow the
    answer "pixels". To choose frames, this process sends `("frames", number of frames)` and gets indices or an error. A stream
    is several answers "pixels" and the answer "end".
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a decoder must not mix with the answers
    # Signals to the whole process group are for the training process, which needs its decoders until it has saved.
    ignore_stop_requests()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(sys.argv[1])
    end_when(lambda: os.getppid() != parent)  # also if a decoder hangs
    from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings, cause_of
    from vmae_lab.data.decoding.decoders import Decoded, read_video, seeks_exactly
    from vmae_lab.data.decoding.inspection import inspect_video, time_video
    from vmae_lab.data.decoding.messages import LENGTH, REFUSALS, Pixels, receive, send
    from vmae_lab.data.decoding.stream import stream_video

    requests = sys.stdin.buffer

    def choose(frames: int) -> list[int]:
        send(answers, ["frames", frames])
        kind, content = receive(requests)
        if kind in REFUSALS:
            raise REFUSALS[kind](content)
        return content

    def answer(what: str, video: VideoFile, short_side: int | None) -> None:
        if what == "inspect":
            send(answers, ["inspection", asdict(inspect_video(video, settings))])
        elif what == "seeks":
            send(answers, ["seeks", seeks_exactly(video, settings)])
        elif what == "time":
            send(answers, ["timing", asdict(time_video(video, settings))])
        elif what == "stream":
            for decoded in stream_video(video, settings, short_side):
                send_pixels(decoded)
            send(answers, ["end", None])
        else:
            send_pixels(read_video(video, choose, settings, short_side))

    def send_pixels(decoded: Decoded) -> None:
        send(answers, ["pixels", asdict(Pixels(decoded.frames.shape, decoded.info, decoded.times))])
        answers.write(LENGTH.pack(decoded.frames.nbytes))
        answers.write(decoded.frames.data.cast("B"))
        answers.flush()

    settings = VideoSettings(**receive(requests))
    _limit_memory(settings.memory_mib << 20)
    send(answers, ["ready", None])
    while True:
        what, folder, fields, short_side = receive(requests)
        video = VideoFile(**fields)
        try:
            os.chdir(folder)
            answer(what, video, short_side)
        except Exception as error:
            if isinstance(error, MemoryError):
                error = VideoError(video.path, cause_of(error))
            elif not isinstance(error, VideoError):
                error = VideoError(video.path, f"{type(error).__name__}: {error}")
            send(answers, ["error", [error.path, error.cause, error.codec]])


def _limit_memory(extra: int) -> None:
    """Limit the memory of this process to the present amount plus `extra` bytes, and disable core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:
            now = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + extra, now + extra))


if __name__ == "__main__":
    main()
