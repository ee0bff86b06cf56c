"""Temporal detection on long videos: the detector and Soft-NMS, whose time should grow in proportion to what they read.

`python benchmarks/localisation.py --out reports/benchmarks`. The detector is ActionFormer's size on THUMOS14 (512 wide, six
levels, features of 1408); Soft-NMS gets random segments of 20 classes along a video that grows with their number. Ratios are
to the row before, side by side in one run; with twice the input, 2 is in proportion.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from parts.timing import timed
from parts.written import machine_words, write_benchmark

from vmae_lab.detection.soft_nms import SuppressSettings, suppress
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape

LENGTHS = [1250, 2500, 5000, 10000, 20000]  # time steps; of THUMOS14's features, four frames apart, 10,000 are 22 minutes
COUNTS = [6250, 12500, 25000, 50000, 100000]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5, help="timed calls at each point")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rows = [row for what in (detector, soft_nms) for row in what(options.rounds)]
    write_benchmark(
        options.out, "localisation", "Temporal detection on long videos",
        f"Medians of {options.rounds} calls after one, one thread, float32; forward passes alone. {machine_words()}.",
        pd.DataFrame(rows),
    )  # fmt: skip


@torch.no_grad()
def detector(rounds: int) -> list[dict]:
    """A forward pass over features of each length."""
    shape = ActionFormerShape()
    model = ActionFormer(shape, 1408, [str(i) for i in range(20)]).eval()

    def at(length: int) -> Callable[[], object]:
        whole = length + -length % shape.multiple
        features, padding = torch.randn(1, whole, 1408), torch.arange(whole)[None] >= length
        return lambda: model(features, padding)

    return measured("detector, time steps", LENGTHS, at, rounds)


def soft_nms(rounds: int) -> list[dict]:
    """Soft-NMS with voting of each number of segments; 200 are kept."""

    def at(count: int) -> Callable[[], object]:
        generator = torch.Generator().manual_seed(count)
        starts, scores = torch.rand(count, generator=generator) * count, torch.rand(count, generator=generator)
        segments = torch.stack([starts, starts + 1 + 30 * torch.rand(count, generator=generator)], 1)
        labels = torch.randint(20, (count,), generator=generator)
        return lambda: suppress(segments, scores, labels, SuppressSettings())

    return measured("Soft-NMS, segments", COUNTS, at, rounds)


def measured(what: str, sizes: list[int], at: Callable[[int], Callable[[], object]], rounds: int) -> list[dict]:
    """Seconds at each size, its rate, and how much longer it takes than the size before."""
    rows: list[dict] = []
    for size in sizes:
        call = at(size)
        call()
        taken = median(timed(call) for _ in range(rounds))
        before = rows[-1] if rows else {"size": float("nan"), "s a call": float("nan")}
        rows.append({
            "what": what, "size": size, "s a call": taken, "a second": size / taken,
            "size, x before": size / before["size"], "s, x before": taken / before["s a call"],
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
