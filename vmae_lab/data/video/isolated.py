"""Decoding in another process, which is ended and started anew where a file makes it hang, crash or take too much memory."""

import contextlib
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Literal, overload

import numpy as np

from vmae_lab.data.video.child import LENGTH, send
from vmae_lab.data.video.decoders import Choose, Decoded
from vmae_lab.data.video.inspection import Inspection
from vmae_lab.data.video.screen import DecoderUnavailable, VideoError, VideoFile, VideoSettings
from vmae_lab.data.video.timing import TIMING, Timing

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CHILD = "vmae_lab.data.video.child"  # what runs in a decoder's process
START_SECONDS = 60.0  # that a decoder's process may take to start on a busy machine


class _Gone(Exception):
    """The decoder's process ended, or did not answer in time."""


class DecoderProcess:
    """One decoder in a process of its own. Not for two threads at once.

    Whatever is asked of it raises DecoderUnavailable where no process can be started.
    """

    def __init__(self, settings: VideoSettings):
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, video: VideoFile, choose: Choose, short_side: int | None = None) -> Decoded:
        """As `read_video`, in the other process, for no longer than `timeout_s`. Raises VideoError."""
        return self._ask(video, choose, short_side)

    def inspect(self, video: VideoFile) -> Inspection:
        """As `inspect_video`, in the other process, for no longer than `timeout_s`. Raises VideoError."""
        return self._ask(video, None, None)

    def time(self, video: VideoFile) -> Timing:
        """As `time_video`, in the other process, for no longer than `timeout_s`. Raises VideoError."""
        return self._ask(video, TIMING, None)

    @property
    def pid(self) -> int | None:
        """The process that decodes, once there is one."""
        return self._process.pid if self._process else None

    def _ask(self, video: VideoFile, choose: Choose | str | None, short_side: int | None) -> Any:
        """Decoded, Inspection or Timing, as was asked."""
        try:
            self._start()
            deadline = time.monotonic() + self.settings.timeout_s
            late = f"its decoder did not answer within {self.settings.timeout_s:g} s (timeout_s) and was ended"
            send(self._pipes[0], (os.getcwd(), video, choose, short_side))
            answer = self._message(deadline, late)
            if answer[0] == "error":
                raise answer[1]
            if answer[0] == "seen":
                return answer[1]
            _, shape, indices, info = answer
            frames = np.frombuffer(self._bytes(int(np.prod(shape)), deadline, late), np.uint8).reshape(shape)
            return Decoded(frames, indices, info)
        except (_Gone, BrokenPipeError) as gone:
            raise VideoError(video.path, self._end(str(gone) or "its decoder ended")) from None
        except BaseException as error:
            if not isinstance(error, VideoError):
                self.close()  # the answer to this request must not be taken for that to the next
            raise

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (*self._pipes, self._words):
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
            self._process = None

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Where requests go, and where answers come from, while there is a process."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        return process.stdin, process.stdout

    def _start(self) -> None:
        """Have a process that is ready for requests. Raises DecoderUnavailable where none comes up."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        try:
            self._launch()
        except (_Gone, OSError) as error:
            cause = self._end(str(error) or "it ended at once") if self._process else str(error)
            raise DecoderUnavailable(
                f"no process to decode videos in could be started: {cause}. The fault is this machine's or this "
                "installation's, not a video's; more free memory, or fewer compute.workers, may help"
            ) from None

    def _launch(self) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._words, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_ONE_THREAD},
        )  # fmt: skip
        send(self._pipes[0], self.settings)
        self._message(time.monotonic() + START_SECONDS, f"its decoder did not start within {START_SECONDS:.0f} s")

    def _message(self, deadline: float, late: str) -> Any:
        return pickle.loads(self._bytes(LENGTH.unpack(self._bytes(LENGTH.size, deadline, late))[0], deadline, late))

    def _bytes(self, count: int, deadline: float, late: str) -> bytearray:
        """So many bytes of the answer. Raises _Gone, saying `late`, where they do not come in time."""
        data, got = bytearray(count), 0
        view, stream = memoryview(data), self._pipes[1].fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while got < count:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise _Gone(late)
                arrived = os.readv(stream, [view[got:]])
                if not arrived:
                    raise _Gone
                got += arrived
        return data

    def _end(self, cause: str) -> str:
        """Why the process is gone, as far as can be told; its last word is kept."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        code = self._process.poll()
        self._words.seek(0)
        last = self._words.read()[-400:].decode(errors="replace").strip().splitlines()
        self.close()
        if code is not None and code < 0:
            cause = f"its decoder was ended by {signal.Signals(-code).name}"
        return f"{cause}: {last[-1]}" if last and code is not None else cause


ToRead = tuple[VideoFile, Choose, int | None]
ToTime = tuple[VideoFile, Literal["timing"], None]  # TIMING
ToInspect = tuple[VideoFile, None, None]


class Decoders:
    """Decoder processes for one process, started when they are first needed: also in a copy that was forked or pickled."""

    def __init__(self, settings: VideoSettings, processes: int = 1):
        self.settings, self.processes = settings, processes
        self._owner, self._idle = os.getpid(), deque[DecoderProcess]()

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
            for request in requests:
                waiting.append(threads.submit(self._attempt, request))
                if len(waiting) > 2 * self.processes:  # what is read ahead is kept in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

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
            self._owner, self._idle = os.getpid(), deque()
        try:
            decoder = self._idle.popleft()
        except IndexError:
            decoder = DecoderProcess(self.settings)
        try:
            yield decoder
        finally:
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
