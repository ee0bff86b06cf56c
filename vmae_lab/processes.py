"""Other processes: those this one starts, which never outlive it, those a launcher started beside it; and its threads."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context, parent_process
from threading import Thread

import torch
from accelerate import PartialState
from threadpoolctl import threadpool_limits

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


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of spawned processes: a fork would carry over threads and open decoders, which then hang."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone: a SIGKILL there would leave it behind, idle."""
    parent = parent_process()
    assert parent is not None, "this runs in workers alone"

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


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
