"""Processes that this one starts and those that a launcher started next to it; and this one's threads."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context, parent_process

import torch
from accelerate import PartialState
from threadpoolctl import threadpool_limits

from vmae_lab.lifetime import end_when

WAIT = timedelta(hours=6)  # for the slowest process: the first one may evaluate alone while the others wait


def launched() -> bool:
    """Whether this process is one of several that a launcher (accelerate, torchrun, srun) has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_state() -> PartialState:
    """This process among those of its launcher, connected to them; on CPUs where not each has an accelerator."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_cpu = launched() and torch.accelerator.device_count() < here
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # for Accelerator, which would look for a GPU
    return PartialState(cpu=on_cpu, timeout=WAIT)


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes: forked ones would inherit threads and open decoders, and then hang.

    If the block fails, the workers are asked to end (SIGTERM); one that trains saves first.
    """
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            workers = list((pool._processes or {}).values())  # before shutdown, which forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            raise


def end_with_parent() -> None:
    """End this process, which multiprocessing started, about a second after its parent, also if that is killed (SIGKILL)."""
    parent, started_by = parent_process(), os.getppid()
    assert parent is not None, "only for processes that multiprocessing started"
    # A later fork of the parent holds a copy of the pipe that `is_alive` looks at, so the parent's id is compared as well.
    end_when(lambda: not parent.is_alive() or os.getppid() != started_by)


@contextmanager
def fixed_threads(count: int | None) -> Iterator[None]:
    """A fixed number of CPU threads for PyTorch and the BLAS behind scikit-learn: results depend on it in the last bits."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
