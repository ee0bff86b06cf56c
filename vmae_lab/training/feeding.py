"""Batches for the loop, in the order of their positions, from worker processes that may be lost."""

import re
import signal
import threading
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vmae_lab.training.survival import ignore_stop_requests

Batch = dict[str, Tensor]
MOST_LOST = 3  # a machine that kills more is short of memory, and would kill the next ones


def feed(dataset: Dataset, positions: range, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches at some positions of a dataset, in turn. Lost workers are replaced, with a warning, three times at most."""
    lost = 0
    while positions:
        try:
            for batch in _loader(dataset, positions, workers, pin_memory):
                positions = positions[1:]
                yield batch
        except RuntimeError as error:
            if not re.search("DataLoader worker|Pin memory thread", str(error)) or lost == MOST_LOST:
                raise
            lost += 1
            warnings.warn(
                f"a loader process was lost ({' '.join(str(error).split())}), perhaps for lack of memory; others are started "
                f"from batch {positions.start} on ({lost} of {MOST_LOST} times)",
                stacklevel=2,
            )


def _loader(dataset: Dataset, positions: range, workers: int, pin_memory: bool) -> Iterator[Batch]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main_thread else None
    batches = iter(
        DataLoader(
            dataset, batch_size=None, sampler=positions, num_workers=workers, pin_memory=pin_memory,
            generator=torch.Generator(), worker_init_fn=ignore_stop_requests,
        )
    )  # fmt: skip
    if in_main_thread:
        # PyTorch's handler would raise in the middle of an optimiser step; without it the loss shows when a batch is asked for.
        signal.signal(signal.SIGCHLD, handler)
    return batches
