"""Pools of worker processes that never outlive the process that started them, and the threads of this one."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread

import torch
from threadpoolctl import threadpool_limits


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of spawned processes: a fork would carry over threads and open decoders, which then hang."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone: a SIGKILL there would leave it behind, idle."""
    parent = parent_process()

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
