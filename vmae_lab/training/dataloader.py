"""The DataLoader of the training loop: batches in order of their steps, from worker processes. Lost workers are replaced.

Several workers build parts of one batch. What they build ahead is bounded in bytes.
"""

import atexit
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from multiprocessing.connection import Listener, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.counts import counted
from vmae_lab.utils.processes import ProcessLost, end_with_parent, ignore_stop_requests, sendable

Batch = dict[str, Tensor]
TOTAL_WEIGHT = "total_weight"  # in a batch, optional: the task's weight of the global batch, repeated for each row
AHEAD = 2  # number of parts that each worker builds ahead if memory allows; more if parts are small
MOST_LOST = 3  # times that workers are replaced; if they are killed more often, memory is too small for any
WORKER_END_S = 1.0  # seconds that workers have to end by themselves before they are killed
SOCKET_PATH = 103  # longest path of a socket on macOS, in bytes; Linux allows 107
SOCKET_NAME = len("/pymp-12345678/listener-12345678")  # what multiprocessing appends to the temporary folder


@dataclass(frozen=True)
class RowSize:
    """What the loader has to know about the rows of a batch.

    `bytes`: of a row, without small tensors; 0 if unknown. `together`: a part of a batch has a multiple of this number of
    consecutive rows; None: all rows.
    """

    bytes: int = 0
    together: int | None = None


@dataclass(frozen=True)
class Loading:
    """How loader workers build the batches of one process."""

    workers: int
    parts: int = 1  # of a batch, with equal numbers of rows; each is built by one worker
    ahead: int = AHEAD  # parts that each worker builds ahead
    shared_bytes: int = 0  # of all parts that are built ahead, in shared memory; 0 if the size of a row is unknown

    @property
    def words(self) -> str:
        ahead = (
            f", {counted(self.ahead * self.workers, 'part')} ahead ({self.shared_bytes / 2**20:.3g} MiB)"
            if self.workers
            else ""
        )
        return f"{counted(self.workers, 'loader worker')}, {counted(self.parts, 'part')} per batch{ahead}"


def plan_loading(row: RowSize, rows: range, workers: int, limit: int) -> Loading:
    """Divide the rows of a process into parts, so that all workers build each batch, and `limit` bytes are built ahead.

    About two batches are built ahead, less if they exceed the limit. If it is less than a part per worker, fewer workers are
    used, at least one.
    """
    if not workers:
        return Loading(0)
    together = row.together or len(rows)
    fitting = limit // row.bytes if row.bytes else sys.maxsize  # rows that may be built ahead
    # The largest equal parts with which all workers have one of each batch, and may build several ahead.
    sizes = [size for size in range(together, len(rows) + 1, together) if len(rows) % size == 0] or [len(rows)]
    most = min(math.ceil(len(rows) / workers), fitting // (AHEAD * workers))
    size = max((size for size in sizes if size <= most), default=sizes[0])
    parts, parts_fitting = len(rows) // size, max(1, fitting // size)
    workers = min(workers, parts_fitting)
    ahead = min(max(AHEAD, math.ceil(2 * parts / workers)), parts_fitting // workers)
    return Loading(workers, parts, ahead, workers * ahead * size * row.bytes)


def require_shared_memory(loading: Loading) -> None:
    """Raise ImpossibleHere if /dev/shm has too little space for what the workers of all processes here build ahead.

    A worker that exceeds it would be killed in the middle of the training.
    """
    shm, processes = Path("/dev/shm"), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = processes * loading.shared_bytes
    if loading.workers and shm.is_dir() and needed > (free := shutil.disk_usage(shm).free):
        raise ImpossibleHere(
            f"the loader workers of {counted(processes, 'process')} need {needed / 2**20:,.0f} MiB of shared memory, but "
            f"{shm} has {free / 2**20:,.0f} MiB free: enlarge it (docker run --shm-size), lower compute.prefetch_mib, or set "
            "compute.workers to 0"
        )


class BatchParts(Dataset):
    """Batches as a dataset of parts: part `number % parts` of one process's rows of the batch of step `number // parts`.

    `batch`: the function of a task that returns some rows of a step.
    """

    def __init__(self, batch: Callable[[int, range], Batch], rows: range, parts: int = 1):
        self.batch, self.rows, self.parts = batch, rows, parts

    def __getitem__(self, number: int) -> Batch:
        step, part = divmod(number, self.parts)
        size = len(self.rows) // self.parts
        return self.batch(step, self.rows[part * size : (part + 1) * size])


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch into micro-batches with equal numbers of rows."""
    pieces = zip(*(value.chunk(parts) for value in batch.values()), strict=True)
    return [dict(zip(batch, piece, strict=True)) for piece in pieces]


def data_loader(dataset: Dataset, steps: range, loading: Loading, pin_memory: bool) -> Generator[Batch, None, None]:
    """Yield the batches of some steps, in order. Close the generator to end the workers.

    Item `step * loading.parts + part` of the dataset is a part of a batch. Lost workers are replaced with a warning, at most
    three times; then this raises ProcessLost. Raises the dataset's own errors, also from workers, and ImpossibleHere if workers
    cannot send batches on this machine.
    """
    parts = loading.parts
    numbers = range(steps.start * parts, steps.stop * parts)
    with closing(_items(dataset, numbers, loading, pin_memory and parts == 1)) as items:
        if parts == 1:
            yield from items
            return
        batch: Batch = {}
        for number, item in enumerate(items):
            part = number % parts
            if part == 0:
                batch = {
                    name: torch.empty((parts * len(value), *value.shape[1:]), dtype=value.dtype, pin_memory=pin_memory)
                    for name, value in item.items()
                }
            for name, value in item.items():  # copying a part frees its shared memory
                batch[name][part * len(value) : (part + 1) * len(value)] = value
            if part == parts - 1:
                yield batch


def _items(dataset: Dataset, numbers: range, loading: Loading, pin_memory: bool) -> Generator[Batch, None, None]:
    """Yield the items of a dataset in order."""
    if not loading.workers:
        yield from _loader(dataset, numbers, loading, pin_memory)
        return
    _make_room_for_sockets()
    lost = 0
    while numbers:
        with _workers_of(dataset, numbers, loading, pin_memory) as (items, processes):
            while numbers:
                try:
                    item = next(items)
                except Exception as error:  # of the loader; the dataset's errors are returned as values
                    if not wait([process.sentinel for process in processes], timeout=WORKER_END_S):
                        raise
                    step = numbers.start // loading.parts
                    if lost == MOST_LOST:
                        raise ProcessLost(
                            f"loader workers were lost {lost + 1} times, most recently at batch {step}; if the machine runs "
                            "out of memory, lower compute.workers, compute.prefetch_mib or batch_size"
                        ) from error
                    lost += 1
                    warnings.warn(
                        f"a loader worker was lost, perhaps out of memory; starting new workers at batch {step} "
                        f"({lost} of {MOST_LOST} times)",
                        stacklevel=2,
                    )
                    break
                if isinstance(item, _Failure):
                    item.error.add_note(f"in a loader worker: {item.traceback}")
                    raise item.error
                numbers = numbers[1:]
                yield item


def _loader(dataset: Dataset, numbers: range, loading: Loading, pin_memory: bool) -> Any:
    return iter(
        DataLoader(
            dataset, batch_size=None, sampler=numbers, num_workers=loading.workers, pin_memory=pin_memory,
            prefetch_factor=loading.ahead if loading.workers else None, generator=torch.Generator(),
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

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except Exception as error:
            return _Failure(sendable(error), traceback.format_exc())


@contextmanager
def _workers_of(
    dataset: Dataset, numbers: range, loading: Loading, pin_memory: bool
) -> Iterator[tuple[Iterator[Any], Sequence[BaseProcess]]]:
    """Start a loader with workers: its items, and the workers, which end with the block or with this process."""
    handler = signal.getsignal(signal.SIGCHLD)  # None if it is not of Python
    in_main_thread = threading.current_thread() is threading.main_thread() and handler is not None
    others = set(active_children())
    try:
        items = _loader(_Guarded(dataset), numbers, loading, pin_memory)
    except BaseException:
        _kill(set(active_children()) - others)
        raise
    processes = [process for process in active_children() if process not in others]
    if in_main_thread:
        # PyTorch's handler would raise in the middle of an optimizer step. Without it, the next wait for a batch raises. It may
        # also have been there before, because of another loader in this process.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if _is_of_pytorch(handler) else handler)
    kill = partial(_kill, processes)
    atexit.register(kill)  # otherwise multiprocessing would send SIGTERM at exit, and wait
    late = threading.Timer(WORKER_END_S, kill)
    late.daemon = True
    try:
        yield items, processes
    finally:
        if any(process.is_alive() for process in processes):
            late.start()
            items._shutdown_workers()  # before killing them, since a killed worker may hold a lock that this call needs
            late.cancel()
            # If the timer has begun to kill, both threads call waitpid for a worker, and only one gets its exit status. Until
            # that thread has stored the status, multiprocessing lists the worker as active. So wait for the timer's thread.
            late.join()
            kill()
        atexit.unregister(kill)
        if in_main_thread and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def _is_of_pytorch(handler: Any) -> bool:
    return getattr(handler, "__module__", None) == torch.utils.data._utils.signal_handling.__name__


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
