"""The process that decodes for another: a file that hangs or kills its decoder takes this process down, and no run.

Started by `isolated.DecoderProcess`; answers pickled requests on its standard input until that is closed.
"""

import os
import pickle
import resource
import signal
import struct
import sys
import time
from threading import Thread
from typing import IO, Any

LENGTH = struct.Struct("<Q")


def main() -> None:
    """Take settings, say "ready", and answer requests `(folder, video, choose, short_side)`: paths are relative to the folder.

    An answer is `("ok", shape, indices, info)` and then the pixels, or `("error", VideoError)`. Where `choose` is None the
    video is looked at, whole: `("seen", Inspection)`; where it is TIMING, its packets are: `("seen", Timing)`.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints must not come between the answers
    # Slurm asks a whole group to stop: who decodes for a training goes on until that has saved, and blames no video.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    from vmae_lab.data.video.decoders import read_video
    from vmae_lab.data.video.inspection import inspect_video
    from vmae_lab.data.video.screen import VideoError
    from vmae_lab.data.video.timing import TIMING, time_video

    settings = receive(sys.stdin.buffer)
    _limit_memory(settings.memory_mib << 20)
    send(answers, "ready")
    while (request := receive(sys.stdin.buffer)) is not None:
        folder, video, choose, short_side = request
        try:
            os.chdir(folder)
            if choose in (None, TIMING):
                send(answers, ("seen", time_video(video, settings) if choose else inspect_video(video, settings)))
                continue
            decoded = read_video(video, choose, settings, short_side)
        except VideoError as error:
            send(answers, ("error", error))
        except MemoryError:
            send(answers, ("error", VideoError(video.path, "it takes more memory than it may (memory_mib)")))
        except Exception as error:
            send(answers, ("error", VideoError(video.path, f"{type(error).__name__}: {error}")))
        else:
            send(answers, ("ok", decoded.frames.shape, decoded.indices, decoded.info))
            answers.write(decoded.frames.data.cast("B"))
            answers.flush()
            del decoded


def send(stream: IO[bytes], message: Any) -> None:
    """One pickled message with its length before it."""
    data = pickle.dumps(message)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """The next message; None where the other side is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    data = stream.read(LENGTH.unpack(head)[0])
    return pickle.loads(data)


def _limit_memory(extra: int) -> None:
    """Let this process take `extra` bytes beyond what it has now; a file that asks for more gets an error, not the machine."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:
            now = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (now + extra, now + extra))


def _end_with_parent(parent: int) -> None:
    """End also while a decoder hangs, when the process that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
