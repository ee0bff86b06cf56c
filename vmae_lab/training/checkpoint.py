"""What a run survives: a newest checkpoint that is not whole, a request to stop, a second start."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from vmae_lab.utils.atomic_io import atomic_write, flush_to_disk
from vmae_lab.utils.errors import UserError

T = TypeVar("T")
STOPPED = 128 + signal.SIGTERM  # the exit status by which shells and Slurm know it


class UnreadableCheckpoint(UserError, RuntimeError):
    """A run's folder in which no checkpoint can be read."""


class Stopped(SystemExit):
    """A run that was asked to stop, and has saved where it stands."""

    def __init__(self) -> None:
        super().__init__(STOPPED)

    def __reduce__(self) -> tuple[Any, ...]:
        return Stopped, ()


class FolderInUse(UserError, RuntimeError):
    """A run's folder in which another process trains."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others from training in a folder while the block runs. Raises FolderInUse where one does already.

    The system frees it where its holder is killed.
    """
    lock = FileLock(folder / ".training.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"another process trains in {folder}, and two would overwrite each other's checkpoints. Wait for it or stop it; "
            "`vmae-lab` goes on from where it was"
        ) from None
    try:
        yield
    finally:
        lock.release()


class Checkpoints:
    """The newest checkpoint of a run, and the one before it."""

    def __init__(self, folder: Path, name: str = "checkpoint"):
        self.newest, self.before = folder / f"{name}.pt", folder / f"{name}.before.pt"
        self.newest_is_broken = False

    def save(self, state: dict[str, Any]) -> None:
        """Write a state; at every moment one whole checkpoint stands. Raises StorageError, and both are as they were."""
        with atomic_write(self.newest) as temporary:
            torch.save(state, temporary)
            flush_to_disk(temporary)  # before the older one goes
            if self.newest.exists() and not self.newest_is_broken:
                os.replace(self.newest, self.before)
        self.newest_is_broken = False

    def load(self) -> dict[str, Any] | None:
        """The newest state that can be read, on the CPU, with a warning where that is not the newest; None where none stands.

        Raises UnreadableCheckpoint where none can be read.
        """
        broken = []
        for path in (self.newest, self.before):
            if not path.exists():
                continue
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # whatever a reader meets in a file that is cut, PyTorch has no type for it
                broken.append(f"{path} ({type(error).__name__})")
                continue
            if broken:
                self.newest_is_broken = True  # it is written over, and not put in the place of the one that was read
                warnings.warn(f"cannot read {broken[0]}; going on from the one before, step {state['step']}", stacklevel=3)
            return state
        if broken:
            raise UnreadableCheckpoint(f"cannot read {' nor '.join(broken)}. To start this run anew, delete what is there")
        return None

    def drop(self) -> None:
        """Remove them: the run is finished."""
        for path in (self.newest, self.before):
            path.unlink(missing_ok=True)


class _StopRequested(BaseException):
    """A stop request that arrived while the next item was awaited. No `except Exception` of a dataset may catch it."""


class StopRequests:
    """Called, it returns whether a stop request has arrived: SIGTERM, or the end of the launcher of several processes, which
    leaves them behind if it is killed.
    """

    def __init__(self) -> None:
        self.arrived, self._waiting = False, False
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __call__(self) -> bool:
        return self.arrived or self._launcher not in (None, os.getppid())

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        self.arrived = True
        if self._waiting:
            self._waiting = False
            raise _StopRequested

    def until_requested(self, items: Iterator[T]) -> Iterator[T]:
        """The items of an iterator, up to a stop request. It also ends the wait for an item, which may take without end."""
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
    """While the block runs, SIGTERM (which Slurm sends before it takes a node back) only is a stop request.

    Only the main thread can catch signals; in others none is seen.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    earlier = signal.signal(signal.SIGTERM, requests.handle)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGTERM, earlier)
    if requests.arrived:  # too late for the block to end by it: for those around it, else the process's own end
        signal.raise_signal(signal.SIGTERM)
