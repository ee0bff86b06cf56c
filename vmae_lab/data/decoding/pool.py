"""Decoding in another process, which is ended and replaced if a file makes it hang, crash or take too much memory."""

import contextlib
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Any, Literal, overload

import numpy as np

from vmae_lab.data.decoding.container import DecoderUnavailable, VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.decoders import Choose, Decoded
from vmae_lab.data.decoding.inspection import Inspection
from vmae_lab.data.decoding.messages import (
    LARGEST,
    LENGTH,
    Malformed,
    chosen_frames,
    error_of,
    from_fields,
    packed,
    parsed,
    pixels_of,
)
from vmae_lab.data.decoding.timing import Timing

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CHILD = "vmae_lab.data.decoding.worker"  # what runs in a decoder's process
START_SECONDS = 60.0  # that a decoder's process may take to start on a busy machine


class _Gone(Exception):
    """The decoder's process ended, or did not answer in time."""


class DecoderProcess:
    """One decoder in a process of its own. Not for two threads at once, except for `kill`.

    Whatever is asked of it raises DecoderUnavailable if no process can be started. Its answers are checked: one that no sound
    decoder gives is a VideoError of that file, and ends the process.
    """

    def __init__(self, settings: VideoSettings):
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline, self._late = 0.0, ""  # of the answer, and what is said if it comes later

    def read(self, video: VideoFile, choose: Choose, short_side: int | None = None) -> Decoded:
        """As `read_video`, in the other process, for no longer than `timeout_s`. Raises VideoError."""
        with self._asked("read", video, short_side):
            indices: list[int] = []
            while (answer := self._answer("frames", "pixels"))[0] == "frames":
                indices, reply = chosen_frames(choose, answer[1], self.settings)
                self._write(packed(reply))
            shape, info = pixels_of(answer[1], len(indices), short_side, self.settings)
            if self._length() != math.prod(shape):
                raise Malformed(f"its pixels are not as many as {shape} needs")
            frames = np.frombuffer(self._bytes(math.prod(shape)), np.uint8).reshape(shape)
            return Decoded(frames, tuple(indices), info)

    def inspect(self, video: VideoFile) -> Inspection:
        """As `inspect_video`, in the other process, for no longer than `timeout_s`. Raises VideoError."""
        with self._asked("inspect", video):
            return from_fields(Inspection, self._answer("inspection")[1])

    def time(self, video: VideoFile) -> Timing:
        """As `time_video`, in the other process, for no longer than `timeout_s`. Raises VideoError."""
        with self._asked("time", video):
            return from_fields(Timing, self._answer("timing")[1])

    @property
    def pid(self) -> int | None:
        """The process that decodes, once there is one."""
        return self._process.pid if self._process else None

    def kill(self) -> None:
        """End the process while another thread waits for its answer, which is then a VideoError."""
        if process := self._process:
            process.kill()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (*self._pipes, self._words):
                stream.close()
            self._process = None

    @contextlib.contextmanager
    def _asked(self, what: str, video: VideoFile, short_side: int | None = None) -> Iterator[None]:
        """Send a request; in the block its answer is read."""
        try:
            self._start()
            self._deadline = time.monotonic() + self.settings.timeout_s
            self._late = f"its decoder did not answer within {self.settings.timeout_s:g} s (timeout_s) and was ended"
            self._write(packed([what, os.getcwd(), asdict(video), short_side]))
            yield
        except (_Gone, BrokenPipeError) as gone:
            raise VideoError(video.path, self._end(str(gone) or "its decoder ended")) from None
        except Malformed as error:
            self.close()
            raise VideoError(video.path, f"its decoder gave an answer that makes no sense ({error}) and was ended") from None
        except BaseException as error:
            if not isinstance(error, VideoError):
                self.close()  # the answer to this request must not be taken for that to the next
            raise

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Where requests go, and where answers come from, while there is a process."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        return process.stdin, process.stdout

    def _start(self) -> None:
        """Have a process that is ready for requests. Raises DecoderUnavailable if none can be started."""
        if self._process is not None and self._process.poll() is None and not _ready(self._pipes[1], 0.0):
            return
        self.close()  # also one that says more than it was asked: the next file must not be blamed for that
        try:
            self._launch()
        except (_Gone, Malformed, OSError) as error:
            cause = self._end(str(error) or "it ended at once") if self._process else str(error)
            raise DecoderUnavailable(
                f"no process to decode videos in could be started: {cause}. The fault is this machine's or this "
                "installation's, not a video's; more free memory, or fewer compute.workers, may help"
            ) from None

    def _launch(self) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(os.getpid())], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._words, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_ONE_THREAD},
        )  # fmt: skip
        os.set_blocking(self._pipes[0].fileno(), False)  # a decoder that reads nothing must not stop this process
        self._deadline = time.monotonic() + START_SECONDS
        self._late = f"its decoder did not start within {START_SECONDS:.0f} s"
        self._write(packed(self.settings.model_dump(mode="json")))
        self._answer("ready")

    def _answer(self, *kinds: str) -> tuple[str, Any]:
        """The kind and the content of an answer, of the `kinds` expected. Raises VideoError if it is an error."""
        if (length := self._length()) > LARGEST:
            raise Malformed(f"it takes {length} bytes")
        kind, content = parsed(bytes(self._bytes(length)))
        if kind == "error":
            raise error_of(content)
        if kind not in kinds:
            raise Malformed(f"it is {kind!r:.50}")
        return kind, content

    def _length(self) -> int:
        return LENGTH.unpack(self._bytes(LENGTH.size))[0]

    def _bytes(self, count: int) -> bytearray:
        """So many bytes of the answer. Raises _Gone if they do not come in time."""
        data, got = bytearray(count), 0
        view, stream = memoryview(data), self._pipes[1]
        while got < count:
            if not _ready(stream, self._deadline - time.monotonic()):
                raise _Gone(self._late)
            if not (arrived := os.readv(stream.fileno(), [view[got:]])):
                raise _Gone
            got += arrived
        return data

    def _write(self, data: bytes) -> None:
        """Send bytes. Raises _Gone if they are not read in time."""
        view, stream = memoryview(data), self._pipes[0]
        while view:
            if not _ready(stream, self._deadline - time.monotonic(), selectors.EVENT_WRITE):
                raise _Gone(self._late)
            view = view[os.write(stream.fileno(), view) :]

    def _end(self, cause: str) -> str:
        """Why the process is gone, as far as can be told, with the last line that it printed."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        code = self._process.poll()
        self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - 400))
        last = self._words.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code is not None and code < 0:
            cause = f"its decoder was ended by {signal.Signals(-code).name}"
        return f"{cause}: {last[-1]}" if last and code is not None else cause


def _ready(stream: IO[bytes], seconds: float, event: int = selectors.EVENT_READ) -> bool:
    """Whether a pipe can be read (or written) within so many seconds; one that is closed can."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, event)
        return bool(selector.select(max(0.0, seconds)))


ToRead = tuple[VideoFile, Choose, int | None]
ToTime = tuple[VideoFile, Literal["timing"], None]  # TIMING
ToInspect = tuple[VideoFile, None, None]


class Decoders:
    """Decoder processes for one process, started when they are first needed: also in a copy that was forked or pickled."""

    def __init__(self, settings: VideoSettings, processes: int = 1):
        self.settings, self.processes = settings, processes
        self._owner, self._idle, self._busy = os.getpid(), deque[DecoderProcess](), set[DecoderProcess]()

    def read(self, video: VideoFile, choose: Choose, short_side: int | None = None) -> Decoded:
        """As `read_video`, in a decoder's process that no other thread uses. Raises VideoError."""
        with self._borrowed() as decoder:
            return decoder.read(video, choose, short_side)

    @overload
    def map(self, requests: Iterable[ToRead]) -> Iterator[Decoded | VideoError]: ...
    @overload
    def map(self, requests: Iterable[ToTime]) -> Iterator[Timing | VideoError]: ...
    @overload
    def map(self, requests: Iterable[ToInspect]) -> Iterator[Inspection | VideoError]: ...
    def map(self, requests: Iterable[ToRead | ToTime | ToInspect]) -> Iterator[Any]:
        """What each request gives, in their order, `processes` at a time; a failure is handed over, not raised."""
        with ThreadPoolExecutor(self.processes) as threads:
            waiting: deque[Future] = deque()
            try:
                for request in requests:
                    waiting.append(threads.submit(self._attempt, request))
                    if len(waiting) > 2 * self.processes:  # what is read ahead is kept in memory
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:  # nobody takes the rest, which the threads would wait for
                threads.shutdown(wait=False, cancel_futures=True)
                while not all(future.done() for future in waiting):
                    for decoder in tuple(self._busy):
                        decoder.kill()
                    time.sleep(0.05)
                raise

    def close(self) -> None:
        """End the processes. They also end with the process that started them."""
        if self._owner == os.getpid():
            while self._idle:
                self._idle.pop().close()

    __del__ = close

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "processes": self.processes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Decoders.__init__(self, **state)

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[DecoderProcess]:
        if self._owner != os.getpid():  # the processes that a fork inherited answer to another
            self._owner, self._idle, self._busy = os.getpid(), deque(), set()
        try:
            decoder = self._idle.popleft()
        except IndexError:
            decoder = DecoderProcess(self.settings)
        self._busy.add(decoder)
        try:
            yield decoder
        finally:
            self._busy.remove(decoder)
            self._idle.append(decoder)

    def _attempt(self, request: ToRead | ToTime | ToInspect) -> Decoded | Timing | Inspection | VideoError:
        video, choose, short_side = request
        try:
            with self._borrowed() as decoder:
                if choose is None:
                    return decoder.inspect(video)
                return decoder.time(video) if isinstance(choose, str) else decoder.read(video, choose, short_side)
        except VideoError as error:
            return error
