"""Files of a run: checkpoints to resume from, and the weights after chosen steps."""

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from vmae_lab.models.checkpoints.save import write_weights
from vmae_lab.training.distributed import gathered_weights
from vmae_lab.utils.atomic_io import atomic_write, flush_to_disk
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.processes import process_state


class UnreadableCheckpoint(UserError, RuntimeError):
    """None of a run's checkpoints can be read."""


class FolderInUse(UserError, RuntimeError):
    """Another process is training in the same folder."""


@contextmanager
def alone_in(folder: Path, lock_file: Path | None = None, waiting: str | None = None) -> Iterator[None]:
    """Lock a folder against other processes inside the block. The lock also ends when its process dies.

    If the folder is locked, prints `waiting` and waits; raises FolderInUse if `waiting` is None. `lock_file`: by default one in
    the folder, which is for trainings.
    """
    lock = FileLock(lock_file or folder / ".training.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise FolderInUse(
                f"another process is working in {folder}. Wait until it ends, or stop it and start again: the run resumes from "
                "its last checkpoint"
            ) from None
        print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Checkpoints:
    """The latest checkpoint of a run and, in case it is damaged, the previous one."""

    def __init__(self, folder: Path, name: str = "checkpoint"):
        self.newest, self.before = folder / f"{name}.pt", folder / f"{name}.before.pt"
        self.newest_is_broken = False

    def save(self, state: dict[str, Any]) -> None:
        """Write a state. A complete checkpoint exists at any time. If this raises StorageError, both files are unchanged."""
        with atomic_write(self.newest) as temporary:
            torch.save(state, temporary)
            flush_to_disk(temporary)  # before the previous checkpoint is replaced
            if self.newest.exists() and not self.newest_is_broken:
                os.replace(self.newest, self.before)
        self.newest_is_broken = False

    def load(self) -> dict[str, Any] | None:
        """Load the latest readable state on the CPU. Returns None if there are no files.

        Raises UnreadableCheckpoint if there are files but none can be read.
        """
        broken = []
        for path in filter(Path.exists, (self.newest, self.before)):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # PyTorch raises many types for a truncated file
                broken.append(f"{path} ({type(error).__name__})")
                continue
            if broken:
                self.newest_is_broken = True  # `save` must not replace the readable one by it
                warnings.warn(f"cannot read {broken[0]}; resuming from the previous one, step {state['step']}", stacklevel=3)
            return state
        if broken:
            raise UnreadableCheckpoint(f"cannot read {' nor '.join(broken)}. Delete them to start this run from scratch")
        return None

    def drop(self) -> None:
        """Delete both files, once the run is finished."""
        for path in (self.newest, self.before):
            path.unlink(missing_ok=True)


def kept_file(step: int) -> str:
    """Return the name of the file with the weights after a step, in the run's folder."""
    return f"model-step-{step:06d}.safetensors"


def keep_weights(folder: Path, step: int, model: nn.Module) -> None:
    """Write the weights after a step, in the format of `model.safetensors`. All processes call this. Raises StorageError."""
    weights = gathered_weights(model, cpu=True)
    if process_state().is_main_process:
        write_weights(folder / kept_file(step), weights)


def drop_kept_weights(folder: Path, steps: Collection[int], after: int) -> None:
    """Delete the kept weights of steps later than `after`: a run that resumes there repeats these steps."""
    for step in steps:
        if step > after:
            (folder / kept_file(step)).unlink(missing_ok=True)
