"""The DataLoader of the training loop: batches in order of their steps, from worker processes. Lost workers are replaced."""

import atexit
import os
import signal
import tempfile
import threading
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from multiprocessing.connection import Listener, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.processes import ProcessLost, end_with_parent, ignore_stop_requests, sendable

Batch = dict[str, Tensor]
TOTAL_WEIGHT = "total_weight"  # in a batch, optional: the task's weight of the global batch, repeated for each row
MOST_LOST = 3  # times that workers are replaced; if they are killed more often, memory is too small for any
WORKER_END_S = 1.0  # seconds that workers have to end by themselves before they are killed
SOCKET_PATH = 103  # longest path of a socket on macOS, in bytes; Linux allows 107
SOCKET_NAME = len("/pymp-12345678/listener-12345678")  # what multiprocessing appends to the temporary folder


class DrawsBatches(Protocol):
    """The part of a task that loader workers use.

    If training needs other tensors than those that `batch` draws, a task also has `training_batch(step, rows)`.
    """

    def batch(self, step: int, rows: range) -> Batch: ...


class TaskDataset(Dataset):
    """A task as a dataset: step -> one process's rows of the batch of that step."""

    def __init__(self, task: DrawsBatches, rows: range):
        self.rows = rows
        self.draw = getattr(task, "training_batch", task.batch)

    def __getitem__(self, step: int) -> Batch:
        return self.draw(step, self.rows)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch into micro-batches with equal numbers of rows."""
    pieces = zip(*(value.chunk(parts) for value in batch.values()), strict=True)
    return [dict(zip(batch, piece, strict=True)) for piece in pieces]


def data_loader(dataset: Dataset, steps: range, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Yield the batches of some steps, in order. Close the generator to end the workers.

    Lost workers are replaced with a warning, at most three times; then this raises ProcessLost. Raises the dataset's own
    errors, also from workers, and ImpossibleHere if workers cannot send batches on this machine.
    """
    if not workers:
        yield from _loader(dataset, steps, 0, pin_memory)
        return
    _make_room_for_sockets()
    lost = 0
    while steps:
        with _workers_of(dataset, steps, workers, pin_memory) as (batches, processes):
            while steps:
                try:
                    batch = next(batches)
                except Exception as error:  # of the loader; the dataset's errors are returned as values
                    if not wait([process.sentinel for process in processes], timeout=WORKER_END_S):
                        raise
                    if lost == MOST_LOST:
                        raise ProcessLost(
                            f"loader workers were lost {lost + 1} times, most recently at batch {steps.start}; if the machine "
                            "runs out of memory, lower compute.workers or batch_size"
                        ) from error
                    lost += 1
                    warnings.warn(
                        f"a loader worker was lost, perhaps out of memory; starting new workers at batch {steps.start} "
                        f"({lost} of {MOST_LOST} times)",
                        stacklevel=2,
                    )
                    break
                if isinstance(batch, _Failure):
                    batch.error.add_note(f"in a loader worker: {batch.traceback}")
                    raise batch.error
                steps = steps[1:]
                yield batch


def _loader(dataset: Dataset, steps: range, workers: int, pin_memory: bool) -> Any:
    return iter(
        DataLoader(
            dataset, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin_memory, generator=torch.Generator(),
            worker_init_fn=_begin_worker,
        )
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------------
# Workers


@dataclass(frozen=True)
class _Failure:
    """An error that a dataset raised in a worker, and its traceback."""

    error: Exception
    traceback: str


class _Guarded(Dataset):
    """Returns the errors of a dataset as values, so that they keep their types.

    Otherwise PyTorch would raise a new error: of the same type if that takes only a message, else a RuntimeError, which it also
    raises if a worker is lost.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, step: int) -> Any:
        try:
            return self.dataset[step]
        except Exception as error:
            return _Failure(sendable(error), traceback.format_exc())


@contextmanager
def _workers_of(
    dataset: Dataset, steps: range, workers: int, pin_memory: bool
) -> Iterator[tuple[Iterator[Any], Sequence[BaseProcess]]]:
    """Start a loader with workers: its batches, and the workers, which end with the block or with this process."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main_thread else None
    others = set(active_children())
    try:
        batches = _loader(_Guarded(dataset), steps, workers, pin_memory)
    except BaseException:
        _kill(set(active_children()) - others)
        raise
    processes = [process for process in active_children() if process not in others]
    if in_main_thread:
        # PyTorch's handler would raise in the middle of an optimizer step. Without it, the next wait for a batch raises.
        signal.signal(signal.SIGCHLD, handler)
    kill = partial(_kill, processes)
    atexit.register(kill)  # otherwise multiprocessing would send SIGTERM at exit, and wait
    late = threading.Timer(WORKER_END_S, kill)
    late.daemon = True
    try:
        yield batches, processes
    finally:
        if any(process.is_alive() for process in processes):
            late.start()
            batches._shutdown_workers()  # before killing them, since a killed worker may hold a lock that this call needs
            late.cancel()
            # If the timer has begun to kill, both threads call waitpid for a worker, and only one gets its exit status. Until
            # that thread has stored the status, multiprocessing lists the worker as active. So wait for the timer's thread.
            late.join()
            kill()
        atexit.unregister(kill)


def _kill(processes: Collection[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _begin_worker(_number: int) -> None:
    """Ignore SIGTERM, which a job's workers get too: they must work until the main process has saved, and end with it."""
    ignore_stop_requests()
    end_with_parent()


def _make_room_for_sockets() -> None:
    """Use /tmp for the workers' sockets, as newer Pythons do, if the path of the temporary folder is too long for a socket.

    A worker that cannot create a socket cannot send anything, and training would wait forever. So this first tries to create
    one. Raises ImpossibleHere.
    """
    chosen, folder = tempfile.tempdir, tempfile.gettempdir()
    if len(os.fsencode(folder)) + SOCKET_NAME > SOCKET_PATH:
        tempfile.tempdir = "/tmp"
    try:
        Listener(family="AF_UNIX").close()
    except OSError as error:
        raise ImpossibleHere(
            f"loader workers cannot create sockets in the temporary folder {folder} ({error}): set TMPDIR to a folder with a "
            "short path, or set compute.workers to 0"
        ) from None
    finally:
        tempfile.tempdir = chosen
