"""Processes that this package starts end with the process that started them, also if that one is killed."""

import os
import signal
import time
from collections.abc import Callable
from threading import Thread

POLL_SECONDS = 1.0


def end_when(gone: Callable[[], bool], grace_s: float = 0.0) -> None:
    """End this process when `gone` returns True, whatever it is doing; `grace_s` is the time that it has to end by itself.

    `gone` is called once a second. A signal at the parent's death (prctl) would also come when the parent's thread ends.
    """

    def watch() -> None:
        while not gone():
            time.sleep(POLL_SECONDS)
        time.sleep(grace_s)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def ignore_stop_requests() -> None:
    """Ignore SIGTERM, which Slurm sends to all processes of a job: the training needs its helpers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
