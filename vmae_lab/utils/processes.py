"""Processes: those of a launcher (rank 0, ...), pools of workers, ending with the parent; and this process's threads.

Decoder processes import this module, so it imports PyTorch only in functions that use it.
"""

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_all_start_methods, get_context, get_start_method, parent_process, set_start_method
from multiprocessing.connection import wait
from threading import Thread
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from vmae_lab.utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

WAIT = timedelta(hours=6)  # for the slowest process: rank 0 may evaluate alone while the others wait
POOL_OF = "VMAE_LAB_POOL_OF"  # set to the id of a pool's owner for its workers; the package's __init__ reads it


class ProcessLost(UserError, RuntimeError):
    """A process that this one needs was killed or failed. The message says which one, and what to do."""


def launched() -> bool:
    """Return whether a launcher (accelerate, torchrun, srun) has started several processes, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_state() -> "PartialState":
    """Connect to the processes of the launcher. They compute on CPUs if there is not an accelerator for each."""
    import torch
    from accelerate import PartialState

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_cpu = launched() and torch.accelerator.device_count() < processes
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # for Accelerator, which would look for a GPU
    return PartialState(cpu=on_cpu, timeout=WAIT)


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of spawned processes. Forked ones would inherit threads and open decoders, and hang.

    If the block fails, the workers get SIGTERM, on which a training saves and ends. Raises ProcessLost if a worker was killed.
    """
    method = get_start_method(allow_none=True) or get_all_start_methods()[0]  # the default is the first
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin_pool_worker, initargs=(method,)) as pool:
        os.environ[POOL_OF] = str(os.getpid())  # workers start at the first task
        try:
            yield pool
        except BaseException as error:
            workers = list((pool._processes or {}).values())  # before shutdown, which forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            while workers := [worker for worker in workers if worker.is_alive()]:
                for worker in workers:
                    worker.terminate()  # repeatedly, since a training that fails may have consumed the first signal
                wait([worker.sentinel for worker in workers], timeout=1)
            if isinstance(error, BrokenProcessPool):
                raise ProcessLost("a worker process was killed, perhaps for lack of memory; use fewer at a time") from error
            raise
        finally:
            os.environ.pop(POOL_OF, None)


@contextmanager
def parallel_map(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a `map` over a pool of spawned processes; for one process it is the built-in `map`, in this process.

    A spawned process imports PyTorch, which takes seconds: longer than writing a small data set.
    """
    if processes == 1:
        with fixed_threads(1):  # as in each process of a pool
            yield map
    else:
        with worker_pool(processes) as pool:
            yield pool.map


def _begin_pool_worker(start_method: str) -> None:
    """Use the owner's start method: otherwise a spawned process spawns its loaders, and each imports PyTorch again."""
    set_start_method(start_method, force=True)
    end_with_parent()


def sendable(error: Exception) -> Exception:
    """Return the error if it can be sent to another process, else a RuntimeError with its type and message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a library's error may raise anything when it is unpickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_with_parent() -> None:
    """End this process, which multiprocessing started, about a second after its parent, even if that is killed (SIGKILL)."""
    parent, started_by = parent_process(), os.getppid()
    assert parent is not None, "only for processes that multiprocessing started"
    # `is_alive` checks a pipe, of which a later fork of the parent has a copy, so compare the parent's id as well.
    end_when(lambda: not parent.is_alive() or os.getppid() != started_by)


def end_when(gone: Callable[[], bool], grace_s: float = 0.0) -> None:
    """End this process when `gone`, which is called once a second, returns True.

    With `grace_s` it first gets SIGTERM, on which a training saves, and so many seconds. prctl's signal at the parent's death
    is not used: it also comes when the thread ends that started this process.
    """

    def watch() -> None:
        while not gone():
            time.sleep(1)
        if grace_s:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace_s)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def ignore_stop_requests() -> None:
    """Ignore SIGTERM, which Slurm sends to all processes of a job: a training needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def fixed_threads(count: int | None) -> Iterator[None]:
    """Fix the number of CPU threads of PyTorch and BLAS (scikit-learn) in the block: the last bits of results depend on it."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
