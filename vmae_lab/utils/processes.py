"""Launched processes, worker pools, processes that end with their parent, and the number of threads.

Decoder processes import this module, so PyTorch is imported only in the functions that use it.
"""

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Mapping
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
    import torch
    from accelerate import PartialState

WAIT = timedelta(hours=6)  # the longest time that processes wait for each other: rank 0 may evaluate alone
POOL_OF = "VMAE_LAB_POOL_OF"  # set to the id of a pool's owner for its workers; the package's __init__ reads it


class ProcessLost(UserError, RuntimeError):
    """A process that this one depends on was killed or failed. The message says which one and what to do."""


def launched() -> bool:
    """Return whether a launcher (accelerate, torchrun, srun) has started several processes, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_state() -> "PartialState":
    """Return accelerate's state of the launched processes. They use CPUs unless every process has its own accelerator."""
    import torch
    from accelerate import PartialState

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_cpu = launched() and torch.accelerator.device_count() < processes
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # for Accelerator, which would look for a GPU
    return PartialState(cpu=on_cpu, timeout=WAIT)


class DeviceUnavailable(UserError, ValueError):
    """A device does not exist, or PyTorch cannot use it here. The message names the device."""


def chosen_device(name: str | None) -> "torch.device":
    """Return the device of a name such as `cuda:1`. Without a name, it is that of `process_state`.

    Raises DeviceUnavailable if tensors cannot be computed on it.
    """
    if name is None:
        return process_state().device
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without CUDA
        cause = str(error).split("\n")[0]
        raise DeviceUnavailable(f"device '{name}' cannot be used here ({cause}). Use cpu, or leave out --device") from None
    return device


@contextmanager
def worker_pool(processes: int, variables: Mapping[str, str] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of spawned processes. Forked processes would inherit threads and open decoders, and could hang.

    `variables`: environment variables of the workers. If the block fails, the workers get SIGTERM: training saves a checkpoint
    and stops. Raises ProcessLost if a worker was killed.
    """
    method = get_start_method(allow_none=True) or get_all_start_methods()[0]  # the default is the first
    given = (method, dict(variables or {}))
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin_pool_worker, initargs=given) as pool:
        os.environ[POOL_OF] = str(os.getpid())  # workers start at the first task
        try:
            yield pool
        except BaseException as error:
            workers = list((pool._processes or {}).values())  # before shutdown, which forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            while workers := [worker for worker in workers if worker.is_alive()]:
                for worker in workers:
                    worker.terminate()  # repeatedly: a failing training may have handled the first signal
                wait([worker.sentinel for worker in workers], timeout=1)
            if isinstance(error, BrokenProcessPool):
                raise ProcessLost("a worker process was killed, perhaps because memory ran out; use fewer workers") from error
            raise
        finally:
            os.environ.pop(POOL_OF, None)


@contextmanager
def parallel_map(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Open a pool of spawned processes and yield its `map`. For one process, yield the built-in `map` instead.

    A spawned process imports PyTorch, which takes seconds: longer than writing a small data set.
    """
    if processes == 1:
        with fixed_threads(1):  # as in each process of a pool
            yield map
    else:
        with worker_pool(processes) as pool:
            yield pool.map


def _begin_pool_worker(start_method: str, variables: Mapping[str, str]) -> None:
    """Use the owner's start method. Otherwise a spawned worker would spawn its data loaders, and each would import PyTorch."""
    os.environ.update(variables)  # CUDA reads its variables at the first use of a GPU
    set_start_method(start_method, force=True)
    end_with_parent()


def sendable(error: Exception) -> Exception:
    """Return the error if it can be pickled, else a RuntimeError with its type and message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a library's error may raise anything when it is unpickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_with_parent() -> None:
    """End this multiprocessing process about a second after its parent ends, even if the parent gets SIGKILL."""
    parent = parent_process()
    started_by = os.getppid()
    assert parent is not None, "only for processes that multiprocessing started"
    # `is_alive` checks a pipe. A later fork of the parent has a copy of it, so compare the parent's id as well.
    end_when(lambda: not parent.is_alive() or os.getppid() != started_by)


def end_when(gone: Callable[[], bool], grace_s: float = 0.0) -> None:
    """End this process when `gone` returns True. `gone` is called once a second.

    With `grace_s`, the process first gets SIGTERM and then has `grace_s` seconds to save. prctl's parent-death signal is not
    used, because it is also sent when the thread that started this process ends.
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
    """Ignore SIGTERM. Slurm sends it to all processes of a job, but training needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def fixed_threads(count: int | None) -> Iterator[None]:
    """Fix the number of CPU threads of PyTorch and BLAS in the block. The last bits of results depend on it."""
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
