"""What a run survives: a newest checkpoint that is not whole, a request to stop, a second start."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from vmae_lab.files import flush_to_disk, whole_file

STOPPED = 128 + signal.SIGTERM  # the exit status by which shells and Slurm know it


class UnreadableCheckpoint(RuntimeError):
    """A run's folder in which no checkpoint can be read."""


class Stopped(SystemExit):
    """A run that was asked to stop, and has saved where it stands."""

    def __init__(self) -> None:
        super().__init__(STOPPED)

    def __reduce__(self) -> tuple[Any, ...]:
        return Stopped, ()


class FolderInUse(RuntimeError):
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
        with whole_file(self.newest) as temporary:
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


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While the block runs, SIGTERM (Slurm's, before it takes a node back) ends nothing: yields a function that says whether
    one came, or whether the launcher of several processes is gone, which leaves them behind where it is killed. Only the main
    thread can catch signals; in others none is seen.
    """
    came, launcher = threading.Event(), os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def asked() -> bool:
        return came.is_set() or launcher not in (None, os.getppid())

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    earlier = signal.signal(signal.SIGTERM, lambda _number, _frame: came.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, earlier)
    if came.is_set():  # too late for the block to end by it: for those around it, else the process's own end
        signal.raise_signal(signal.SIGTERM)


def ignore_stop_requests(_worker: int = 0) -> None:
    """For helpers of a training, which get the signal too where a whole group does: they end when the training has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
