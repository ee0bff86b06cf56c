"""A process that decodes for another: a file that hangs, crashes or takes over its decoder does so here.

Started by `isolated.DecoderProcess`; answers requests on its standard input until that is closed.
"""

import os
import resource
import signal
import sys
from dataclasses import asdict

from vmae_lab.utils.distributed import end_when, ignore_stop_requests


def main() -> None:
    """Read settings, answer "ready", and answer requests `(what, folder, video, short_side)`; paths are relative to the folder.

    `what` and its answer: "read", `("pixels", {shape, info})` and then the pixels; "inspect", `("inspection", Inspection)`;
    "time", `("timing", Timing)`; each also `("error", VideoError)`. To choose frames, the other process is asked with
    `("frames", their number)`. All is sent as JSON (`wire.py`).
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints must not come between the answers
    # A signal to a whole group is for the training, which needs its decoders until it has saved, and no video is to blame.
    ignore_stop_requests()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(sys.argv[1])
    end_when(lambda: os.getppid() != parent)  # also while a decoder hangs
    from vmae_lab.data.decoding.container import VideoError, VideoFile, VideoSettings
    from vmae_lab.data.decoding.decoders import read_video
    from vmae_lab.data.decoding.inspection import inspect_video
    from vmae_lab.data.decoding.messages import LENGTH, REFUSALS, receive, send
    from vmae_lab.data.decoding.timing import time_video

    requests = sys.stdin.buffer

    def choose(frames: int) -> list[int]:
        send(answers, ["frames", frames])
        kind, content = receive(requests)
        if kind in REFUSALS:
            raise REFUSALS[kind](content)
        return content

    def fail(error: VideoError) -> None:
        send(answers, ["error", {"path": error.path, "cause": error.cause, "codec": error.codec}])

    def answer(what: str, video: VideoFile, short_side: int | None) -> None:
        if what == "inspect":
            send(answers, ["inspection", asdict(inspect_video(video, settings))])
        elif what == "time":
            send(answers, ["timing", asdict(time_video(video, settings))])
        else:
            decoded = read_video(video, choose, settings, short_side)
            send(answers, ["pixels", {"shape": decoded.frames.shape, "info": asdict(decoded.info)}])
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
        except VideoError as error:
            fail(error)
        except MemoryError:
            fail(VideoError(video.path, "it takes more memory than it may (memory_mib)"))
        except Exception as error:
            fail(VideoError(video.path, f"{type(error).__name__}: {error}"))


def _limit_memory(extra: int) -> None:
    """Let this process take `extra` bytes beyond what it has now; a file that asks for more gets an error, not the machine."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:
            now = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + extra, now + extra))


if __name__ == "__main__":
    main()
