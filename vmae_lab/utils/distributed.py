"""Processes that this one starts and those that a launcher started next to it; and this one's threads.

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
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from vmae_lab.utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

WAIT = timedelta(hours=6)  # for the slowest process: the first one may evaluate alone while the others wait


POOL_OF = "VMAE_LAB_POOL_OF"  # the process whose pools' workers inherit this variable; the package's __init__ reads it


class ProcessLost(UserError, RuntimeError):
    """A process that this one needs was killed or failed: says which, and what to do. The machine may be short of memory."""


def launched() -> bool:
    """Whether this process is one of several that a launcher (accelerate, torchrun, srun) has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_state() -> "PartialState":
    """This process among those of its launcher, connected to them; on CPUs where not each has an accelerator."""
    import torch
    from accelerate import PartialState

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_cpu = launched() and torch.accelerator.device_count() < here
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # for Accelerator, which would look for a GPU
    return PartialState(cpu=on_cpu, timeout=WAIT)


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes: forked ones would inherit threads and open decoders, and then hang.

    If the block fails, the workers are asked to end (SIGTERM); one that trains saves first. Raises ProcessLost if a worker
    was killed.
    """
    method = get_start_method(allow_none=True) or get_all_start_methods()[0]  # the default is the first
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin_pool_worker, initargs=(method,)) as pool:
        os.environ[POOL_OF] = str(os.getpid())  # workers are started when work is given to them
        try:
            yield pool
        except BaseException as error:
            workers = list((pool._processes or {}).values())  # before shutdown, which forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            while workers := [worker for worker in workers if worker.is_alive()]:
                for worker in workers:
                    worker.terminate()  # again, since a training that fails may have taken the first request for itself
                wait([worker.sentinel for worker in workers], timeout=1)
            if isinstance(error, BrokenProcessPool):
                raise ProcessLost("a worker process was killed, perhaps for lack of memory; use fewer at a time") from error
            raise
        finally:
            os.environ.pop(POOL_OF, None)


def _begin_pool_worker(start_method: str) -> None:
    """Start processes as the pool's owner does. A spawned process would spawn its loaders, and each imports PyTorch again."""
    set_start_method(start_method, force=True)
    end_with_parent()


def sendable(error: Exception) -> Exception:
    """The error itself if it can be sent to another process, else a RuntimeError of its type and message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a library's error raises when it is made again
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_with_parent() -> None:
    """End this process, which multiprocessing started, about a second after its parent, also if that is killed (SIGKILL)."""
    parent, started_by = parent_process(), os.getppid()
    assert parent is not None, "only for processes that multiprocessing started"
    # A later fork of the parent holds a copy of the pipe that `is_alive` looks at, so the parent's id is compared as well.
    end_when(lambda: not parent.is_alive() or os.getppid() != started_by)


def end_when(gone: Callable[[], bool], grace_s: float = 0.0) -> None:
    """End this process, whatever it is doing, when `gone`, which is called once a second, returns True.

    With `grace_s` it gets SIGTERM first, by which a training saves, and that many seconds. Not by prctl's signal at the
    parent's death: it also comes when the thread ends that started this process.
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
    """Ignore SIGTERM, which Slurm sends to all processes of a job: the training needs its helpers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def fixed_threads(count: int | None) -> Iterator[None]:
    """A fixed number of CPU threads for PyTorch and the BLAS behind scikit-learn: results depend on it in the last bits."""
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
