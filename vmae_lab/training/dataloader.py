"""Batches for the training loop, in the order of their positions, from worker processes that may be lost."""

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
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.processes import ProcessLost, end_with_parent, ignore_stop_requests, sendable

Batch = dict[str, Tensor]
MOST_LOST = 3  # a machine that kills more workers is short of memory, and would kill the next ones
WORKER_END_S = 1.0  # that workers may take to end by themselves before they are killed
SOCKET_PATH = 103  # bytes that the path of a socket may have on macOS; Linux allows 107
SOCKET_NAME = len("/pymp-12345678/listener-12345678")  # multiprocessing's, in the temporary folder


@dataclass(frozen=True)
class _Failure:
    """An error of a dataset in a worker, and its traceback there."""

    error: Exception
    traceback: str


class _Guarded(Dataset):
    """A dataset as worker processes read it. It returns its errors, so that they arrive as what they are: PyTorch would raise
    another one, of the same type if that takes a message alone, else a RuntimeError, like those for lost workers.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except Exception as error:
            return _Failure(sendable(error), traceback.format_exc())


def data_loader(dataset: Dataset, positions: range, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches at some positions of a dataset, in order. Lost workers are replaced, with a warning, three times at most.

    Raises what the dataset raises, also in a worker; ProcessLost; and ImpossibleHere if workers cannot send batches here.
    Close the generator to end the workers.
    """
    if not workers:
        yield from _loader(dataset, positions, 0, pin_memory)
        return
    _make_room_for_sockets()
    lost = 0
    while positions:
        with _workers_of(dataset, positions, workers, pin_memory) as (batches, processes):
            while positions:
                try:
                    batch = next(batches)
                except Exception as error:  # the dataset's errors come as values, so this is the loader's own
                    if not wait([process.sentinel for process in processes], timeout=WORKER_END_S):
                        raise
                    if lost == MOST_LOST:
                        raise ProcessLost(
                            f"loader processes were lost {lost + 1} times, the last ones at batch {positions.start}; if the "
                            "machine is short of memory, lower compute.workers or batch_size"
                        ) from error
                    lost += 1
                    warnings.warn(
                        f"a loader process was lost, perhaps for lack of memory; others are started at batch {positions.start} "
                        f"({lost} of {MOST_LOST} times)",
                        stacklevel=2,
                    )
                    break
                if isinstance(batch, _Failure):
                    batch.error.add_note(f"in a loader process: {batch.traceback}")
                    raise batch.error
                positions = positions[1:]
                yield batch


def _loader(dataset: Dataset, positions: range, workers: int, pin_memory: bool) -> Any:
    return iter(
        DataLoader(
            dataset, batch_size=None, sampler=positions, num_workers=workers, pin_memory=pin_memory,
            generator=torch.Generator(), worker_init_fn=_begin_worker,
        )
    )  # fmt: skip


@contextmanager
def _workers_of(
    dataset: Dataset, positions: range, workers: int, pin_memory: bool
) -> Iterator[tuple[Iterator[Any], Sequence[BaseProcess]]]:
    """What a loader with workers gives, and its workers, which end with the block, or else with this process."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main_thread else None
    others = set(active_children())
    try:
        batches = _loader(_Guarded(dataset), positions, workers, pin_memory)
    except BaseException:
        _kill(set(active_children()) - others)
        raise
    processes = [process for process in active_children() if process not in others]
    if in_main_thread:
        # PyTorch's handler would raise in the middle of an optimiser step; without it, a loss shows when a batch is awaited.
        signal.signal(signal.SIGCHLD, handler)
    kill = partial(_kill, processes)
    atexit.register(kill)  # else multiprocessing's own exit would send them SIGTERM, and wait
    late = threading.Timer(WORKER_END_S, kill)
    late.daemon = True
    try:
        yield batches, processes
    finally:
        if any(process.is_alive() for process in processes):
            late.start()
            batches._shutdown_workers()  # before they are killed, since a killed worker may hold a lock that this takes
            late.cancel()
            kill()
        atexit.unregister(kill)


def _kill(processes: Collection[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _begin_worker(_number: int) -> None:
    """A worker gets SIGTERM too if a whole job does. It goes on until the training has saved, and ends with its parent."""
    ignore_stop_requests()
    end_with_parent()


def _make_room_for_sockets() -> None:
    """Have workers make the sockets by which they send batches in /tmp if the path of the temporary folder is too long.

    Newer versions of Python do so as well. A worker that cannot make a socket would send nothing, and be waited for without
    end, so one is made here first. Raises ImpossibleHere.
    """
    chosen = tempfile.tempdir
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) + SOCKET_NAME > SOCKET_PATH:
        tempfile.tempdir = "/tmp"
    try:
        Listener(family="AF_UNIX").close()
    except OSError as error:
        raise ImpossibleHere(
            f"loader processes cannot make sockets in the temporary folder {folder} ({error}): set TMPDIR to another folder "
            "with a short path, or set compute.workers to 0"
        ) from None
    finally:
        tempfile.tempdir = chosen


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch as micro-batches of equally many rows."""
    if parts == 1:
        return [batch]
    pieces = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]
