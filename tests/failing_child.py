"""A decoder process that fails as the name of a file tells it, because no real file makes a correct decoder fail like this."""

import ctypes
import json
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import numpy as np

from vmae_lab.data.decoding import decoders, inspection, worker
from vmae_lab.data.decoding.decoders import read_video
from vmae_lab.data.decoding.inspection import inspect_video
from vmae_lab.data.decoding.messages import LENGTH


def loop() -> None:
    while True:
        pass


FAILURES: dict[str, Callable[[], object]] = {
    "hang": lambda: time.sleep(600),
    "nap": lambda: time.sleep(1),
    "loop": loop,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "crash": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(3),
    "swallow_memory": lambda: np.ones(4 << 30, np.uint8),
    "print": lambda: os.write(1, b"\0" * 100_000),
}


class Evil:
    """Unpickling it creates a folder."""

    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


INFO = {"container": "mov", "codec": "h264", "width": 64, "height": 48, "frames": 20, "fps": 25.0, "decoder": "pyav"}


def pixels(shape: object, count: int, **changes: object) -> bytes:
    """Return an answer with raw frames, as this checkout's decoder sends it, with `changes` to the header of the file."""
    names = decoders.VideoInfo.__dataclass_fields__
    info = {**dict.fromkeys(names, 0), **{name: value for name, value in INFO.items() if name in names}, **changes}
    return message(["pixels", {"shape": shape, "info": info}]) + LENGTH.pack(count) + bytes(min(count, 10**6))


def message(content: object) -> bytes:
    data = json.dumps(content).encode()
    return LENGTH.pack(len(data)) + data


def framed(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


# Answers of a decoder that a malicious file controls. One frame was requested: 9216 bytes.
ANSWERS: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: framed(pickle.dumps(("ok", Evil()))),
    "endless": lambda: LENGTH.pack(2**62),
    "large": lambda: LENGTH.pack(2**31),
    "binary": lambda: framed(b"\xff\xfe\0"),
    "deep": lambda: framed(b"[" * 100_000),
    "number": lambda: message(7),
    "unknown": lambda: message(["what", None]),
    "other": lambda: message(["timing", None]),
    "bare": lambda: message(["pixels", None]),
    "many_frames": lambda: pixels([2, 48, 64, 3], 2 * 9216),
    "no_frames": lambda: pixels([0, 48, 64, 3], 0),
    "huge": lambda: pixels([1, 2**31, 2**31, 3], 3 * 2**62),
    "negative": lambda: pixels([1, -48, -64, 3], 9216),
    "flat": lambda: pixels([1, 9216], 9216),
    "words": lambda: pixels("1x48x64x3", 9216),
    "grey": lambda: pixels([1, 48, 64, 1], 3072),
    "too_few_bytes": lambda: pixels([1, 48, 64, 3], 9215),
    "too_many_bytes": lambda: pixels([1, 48, 64, 3], 9217),
    "no_codec": lambda: pixels([1, 48, 64, 3], 9216, codec=None),
    "negative_size": lambda: pixels([1, 48, 64, 3], 9216, width=-64),
    "no_number": lambda: pixels([1, 48, 64, 3], 9216, fps=float("nan")),
    "extra_field": lambda: pixels([1, 48, 64, 3], 9216, another=1),
    "frames_negative": lambda: message(["frames", -1]),
    "frames_words": lambda: message(["frames", "20"]),
    "error_of_numbers": lambda: message(["error", [1, 2, 3]]),
}
SENT_BEFORE = {"many_frames", "no_frames", "huge", "negative", "flat", "words", "grey", "too_few_bytes", "too_many_bytes"}
SENT_BEFORE |= {"no_codec", "negative_size", "no_number", "extra_field"}  # after they have asked which frames are wanted


def failing_read(video, choose, *rest):
    name = Path(video.path).stem
    if name in FAILURES:
        FAILURES[name]()
    if name in ANSWERS:
        if name in SENT_BEFORE:
            choose(20)
        os.write(ANSWERS_TO, ANSWERS[name]())
        time.sleep(600)
    if name == "surplus":  # after its answer
        Timer(0.3, lambda: os.write(ANSWERS_TO, message(["frames", 20]))).start()
    return read_video(video, choose, *rest)


def failing_inspection(video, settings):
    FAILURES.get(Path(video.path).stem, int)()
    return inspect_video(video, settings)


if __name__ == "__main__":
    ANSWERS_TO = os.dup(1)
    decoders.read_video, inspection.inspect_video = failing_read, failing_inspection
    worker.main()
