"""Decoder processes. They are killed and replaced if a file makes them hang, crash or use too much memory."""

import contextlib
import fcntl
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Any, TypeVar

import numpy as np

from vmae_lab.data.decoding.container import DecoderUnavailable, VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.decoders import Choose, Decoded
from vmae_lab.data.decoding.inspection import Inspection, Timing
from vmae_lab.data.decoding.messages import LARGEST, LENGTH, REFUSALS, Malformed, Pixels, packed, parsed
from vmae_lab.data.decoding.stream import CHUNK

CHILD = "vmae_lab.data.decoding.worker"  # the module that a decoder process runs
PIPE_BYTES = 1 << 20  # buffer for answers; usual limit of Linux. Its default is 64 KiB
START_SECONDS = 60.0  # time limit for the start of a decoder process
LEAST_FRAME = 256  # smallest size of a frame in bytes; limits the chosen indices if a header announces billions of frames
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
T = TypeVar("T")
R = TypeVar("R")


class _Gone(Exception):
    """The decoder process has ended, or did not answer in time."""


class DecoderProcess:
    """One decoder process. Threads must not share it, except for `kill`.

    Requests raise VideoError if the file cannot be read, the process does not answer within `timeout_s`, or its answer is
    invalid. In the last two cases, the process is replaced. They raise DecoderUnavailable if no process can be started.
    """

    def __init__(self, settings: VideoSettings):
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline, self._late = 0.0, ""  # of the next answer, and the message if it is late

    def read(self, video: VideoFile, choose: Choose, short_side: int | None = None) -> Decoded:
        """Call `read_video` in the decoder process."""
        with self._request("read", video, short_side):
            indices: list[int] = []
            while (answer := self._answer("frames", "pixels"))[0] == "frames":
                indices, reply = _chosen(choose, answer[1], self.settings)
                self._write(packed(reply))
            return self._decoded(answer[1], tuple(indices), short_side)

    def stream(self, video: VideoFile, short_side: int | None = None) -> Iterator[Decoded]:
        """Call `stream_video` in the decoder process. It decodes at most one chunk ahead."""
        with self._request("stream", video, short_side):
            start = 0
            while (answer := self._answer("pixels", "end"))[0] == "pixels":
                count = min(answer[1].shape[0], CHUNK)
                yield self._decoded(answer[1], tuple(range(start, start + count)), short_side)
                start += count
                self._deadline = time.monotonic() + self.settings.timeout_s  # for the next chunk

    def inspect(self, video: VideoFile) -> Inspection:
        """Call `inspect_video` in the decoder process."""
        with self._request("inspect", video):
            return self._answer("inspection")[1]

    def seeks_exactly(self, video: VideoFile) -> bool:
        """Call `seeks_exactly` in the decoder process."""
        with self._request("seeks", video):
            return self._answer("seeks")[1]

    def time(self, video: VideoFile) -> Timing:
        """Call `time_video` in the decoder process."""
        with self._request("time", video):
            return self._answer("timing")[1]

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def kill(self) -> None:
        """Kill the process. A thread that waits for its answer then raises VideoError."""
        if process := self._process:
            process.kill()

    def close(self) -> None:
        """Kill the process and close its pipes."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (*self._pipes, self._printed):
                stream.close()
            self._process = None

    # ------------------------------------------------------------------------------------------------------------------
    # The process

    @contextlib.contextmanager
    def _request(self, what: str, video: VideoFile, short_side: int | None = None) -> Iterator[None]:
        """Send a request. The answer must be read in the block."""
        try:
            self._start()
            self._deadline = time.monotonic() + self.settings.timeout_s
            self._late = f"its decoder did not answer within {self.settings.timeout_s:g} s (timeout_s) and was killed"
            self._write(packed([what, os.getcwd(), asdict(video), short_side]))
            yield
        except VideoError:
            raise
        except (_Gone, BrokenPipeError) as gone:
            raise VideoError(video.path, self._end(str(gone) or "its decoder ended")) from None
        except Malformed as error:
            self.close()
            raise VideoError(video.path, f"its decoder gave an invalid answer ({error}) and was killed") from None
        except BaseException:
            self.close()  # otherwise the next request would get this answer
            raise

    @property
    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """The pipes for requests and for answers."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _start(self) -> None:
        """Start a process if none is ready for requests. Raises DecoderUnavailable."""
        if self._process is not None and self._process.poll() is None and not _ready(self._pipes[1], 0.0):
            return
        self.close()  # also if it sent more than its answer, which would be read as that of the next file
        try:
            self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (read after the process has ended)
            self._process = subprocess.Popen(
                [sys.executable, "-m", CHILD, str(os.getpid())], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._printed, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_ONE_THREAD},
            )  # fmt: skip
            _enlarge(self._pipes[1])
            os.set_blocking(self._pipes[0].fileno(), False)  # a stopped decoder must not block this process
            self._deadline = time.monotonic() + START_SECONDS
            self._late = f"its decoder did not start within {START_SECONDS:.0f} s"
            self._write(packed(self.settings.model_dump(mode="json")))
            self._answer("ready")
        except (_Gone, Malformed, OSError) as error:
            cause = self._end(str(error) or "it ended immediately") if self._process else str(error)
            raise DecoderUnavailable(
                f"no decoder process could be started: {cause}. This is a problem of the machine or the installation, not of a "
                "video; free memory, or reduce compute.workers"
            ) from None

    def _end(self, cause: str) -> str:
        """Close the process. Return the reason of its end, with the last line that it printed."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        code = self._process.poll()
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - 400))
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code is not None and code < 0:
            cause = f"its decoder was killed by {signal.Signals(-code).name}"
        return f"{cause}: {lines[-1]}" if lines and code is not None else cause

    # ------------------------------------------------------------------------------------------------------------------
    # Messages with a deadline

    def _decoded(self, announced: Pixels, indices: tuple[int, ...], short_side: int | None) -> Decoded:
        """Return the frames, with these indices, whose pixels come next. Raises Malformed if they are announced wrongly."""
        shape = announced.shape
        frames, height, width, _ = shape
        size = math.prod(shape)
        if (
            frames != len(indices)
            or len(announced.times) not in (0, frames)
            or height * width > self.settings.max_pixels
            or min(height, width) > (short_side or math.inf)
            or size > self.settings.memory_mib << 20
            or self._length() != size
        ):
            raise Malformed(f"expected pixels of {len(indices)} frames, got the shape {shape!r:.50}")
        return Decoded(np.frombuffer(self._bytes(size), np.uint8).reshape(shape), indices, announced.info, announced.times)

    def _answer(self, *kinds: str) -> tuple[str, Any]:
        """Return the kind (one of `kinds`) and the content of the next answer. Raises VideoError if it is an error."""
        if (length := self._length()) > LARGEST:
            raise Malformed(f"it has {length} bytes")
        kind, content = parsed(bytes(self._bytes(length)))
        if kind == "error":
            raise VideoError(*content)
        if kind not in kinds:
            raise Malformed(f"its kind is {kind!r}")
        return kind, content

    def _length(self) -> int:
        return LENGTH.unpack(self._bytes(LENGTH.size))[0]

    def _bytes(self, count: int) -> bytearray:
        """Return the next `count` bytes of the answer. Raises _Gone."""
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
        """Send bytes. Raises _Gone."""
        view, stream = memoryview(data), self._pipes[0]
        while view:
            if not _ready(stream, self._deadline - time.monotonic(), selectors.EVENT_WRITE):
                raise _Gone(self._late)
            view = view[os.write(stream.fileno(), view) :]


def _enlarge(pipe: IO[bytes]) -> None:
    """Increase the buffer of a pipe, if the system allows it, so that both processes take turns less often."""
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _ready(stream: IO[bytes], seconds: float, event: int = selectors.EVENT_READ) -> bool:
    """Wait up to `seconds` until a pipe can be read (or written) or is closed. Return whether it is."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, event)
        return bool(selector.select(max(0.0, seconds)))


def _chosen(choose: Choose, frames: int, settings: VideoSettings) -> tuple[list[int], Any]:
    """Return the frames that `choose` picks, and the message for the decoder process: the frames, or the error."""
    try:
        picked = choose(frames)
        if len(picked) * LEAST_FRAME > settings.memory_mib << 20:
            raise MemoryError
    except (IndexError, ValueError, MemoryError) as error:
        return [], [type(error).__name__ if type(error).__name__ in REFUSALS else "ValueError", str(error)]
    indices = [int(index) for index in picked]
    return indices, ["indices", indices]


class Decoders:
    """A pool of decoder processes, started on first use. A forked or pickled copy starts its own processes."""

    def __init__(self, settings: VideoSettings, processes: int = 1):
        self.settings, self.processes = settings, processes
        self._owner, self._idle, self._busy = os.getpid(), deque[DecoderProcess](), set[DecoderProcess]()

    def read(self, video: VideoFile, choose: Choose, short_side: int | None = None) -> Decoded:
        """Call `read_video` in a free decoder process. Raises VideoError."""
        with self._borrowed() as decoder:
            return decoder.read(video, choose, short_side)

    def read_all(self, requests: Iterable[tuple[VideoFile, Choose, int | None]]) -> Iterator[Decoded | VideoError]:
        """Call `read` for every (video, choose, short side), see `map`."""
        return self.map(lambda decoder, request: decoder.read(*request), requests)

    def stream(self, video: VideoFile, short_side: int | None = None) -> Iterator[Decoded]:
        """Yield all frames of a video in order, in chunks, each decoded once. Raises VideoError, perhaps after some chunks."""
        with self._borrowed() as decoder:
            yield from decoder.stream(video, short_side)

    def map(self, call: Callable[[DecoderProcess, R], T], requests: Iterable[R]) -> Iterator[T | VideoError]:
        """Yield the result of each call, or its VideoError, in order. `processes` calls run in parallel.

        `call` is DecoderProcess.inspect, DecoderProcess.time or a function of a decoder and a request.
        """

        def attempt(request: R) -> T | VideoError:
            try:
                with self._borrowed() as decoder:
                    return call(decoder, request)
            except VideoError as error:
                return error

        with ThreadPoolExecutor(self.processes) as threads:
            waiting: deque[Future[T | VideoError]] = deque()
            try:
                for request in requests:
                    waiting.append(threads.submit(attempt, request))
                    if len(waiting) > 2 * self.processes:  # limit the results in memory
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:  # the other results are not needed
                threads.shutdown(wait=False, cancel_futures=True)
                while not all(future.done() for future in waiting):
                    for decoder in tuple(self._busy):
                        decoder.kill()
                    time.sleep(0.05)
                raise

    def close(self) -> None:
        """Kill the processes. They also end with this process."""
        if self._owner == os.getpid():
            while self._idle:
                self._idle.pop().close()

    __del__ = close

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.settings, self.processes)

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[DecoderProcess]:
        if self._owner != os.getpid():  # after a fork, the processes belong to the parent
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
