"""Stop requests: on SIGTERM, which Slurm sends before it preempts a job, a run saves a checkpoint and ends."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
STOPPED = 128 + signal.SIGTERM  # the exit status that shells and Slurm expect


class Stopped(SystemExit):
    """Exit of a run that got a stop request and has saved a checkpoint."""

    def __init__(self, status: int = STOPPED) -> None:  # the parameter makes it picklable
        super().__init__(status)


class _StopRequested(BaseException):
    """A stop request during the wait for an item. A BaseException, so that no `except Exception` in a dataset catches it."""


class StopRequests:
    """A call returns whether the run should stop: because of SIGTERM, or because its launcher was killed."""

    def __init__(self) -> None:
        self.arrived, self._waiting = False, False
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __call__(self) -> bool:
        return self.arrived or self._launcher not in (None, os.getppid())

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM."""
        self.arrived = True
        if self._waiting:
            self._waiting = False
            raise _StopRequested

    def until_requested(self, items: Iterator[T]) -> Iterator[T]:
        """Yield the items of an iterator until a stop request, which also ends the wait for an item (that may never come)."""
        try:
            while True:
                self._waiting = True
                item = None if self() else next(items, None)
                self._waiting = False
                if item is None:
                    return
                yield item
        except _StopRequested:
            return
        finally:
            self._waiting = False


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Turn SIGTERM into a stop request inside the block. Python allows this only in the main thread."""
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    earlier = signal.signal(signal.SIGTERM, requests.handle)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGTERM, earlier)
    if requests.arrived:  # pass it on to the enclosing block, or end the process
        signal.raise_signal(signal.SIGTERM)
