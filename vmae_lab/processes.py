"""Pools of worker processes that never outlive the process that started them."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


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
