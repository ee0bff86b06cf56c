"""Time of temporal detection on long videos: the detector and Soft-NMS. Both should be linear in the length of their input.

Run `python benchmarks/localisation.py --out reports/benchmarks`. The detector has ActionFormer's size on THUMOS14 (width 512,
six levels, features of width 1408). Soft-NMS gets random segments of 20 classes in a video whose length is proportional to
their number. Ratios compare with the previous row: with twice the input, 2 is linear.
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

LENGTHS = [1250, 2500, 5000, 10000, 20000]  # time steps; with THUMOS14's stride of four frames, 10,000 are 22 minutes
COUNTS = [6250, 12500, 25000, 50000, 100000]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5, help="number of timed calls per point")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rows = [row for what in (detector, soft_nms) for row in what(options.rounds)]
    write_benchmark(
        options.out, "localisation", "Temporal detection on long videos",
        f"Medians of {options.rounds} calls after a warm-up call, forward pass only, one thread, float32. {machine_words()}.",
        pd.DataFrame(rows),
    )  # fmt: skip


@torch.no_grad()
def detector(rounds: int) -> list[dict]:
    """Return the time of a forward pass for each length of the features."""
    shape = ActionFormerShape()
    model = ActionFormer(shape, 1408, [str(i) for i in range(20)]).eval()

    def at(length: int) -> Callable[[], object]:
        whole = length + -length % shape.multiple
        features, padding = torch.randn(1, whole, 1408), torch.arange(whole)[None] >= length
        return lambda: model(features, padding)

    return measured("detector, time steps", LENGTHS, at, rounds)


def soft_nms(rounds: int) -> list[dict]:
    """Return the time of Soft-NMS with voting for each number of segments; 200 are kept."""

    def at(count: int) -> Callable[[], object]:
        generator = torch.Generator().manual_seed(count)
        starts, scores = torch.rand(count, generator=generator) * count, torch.rand(count, generator=generator)
        segments = torch.stack([starts, starts + 1 + 30 * torch.rand(count, generator=generator)], 1)
        labels = torch.randint(20, (count,), generator=generator)
        return lambda: suppress(segments, scores, labels, SuppressSettings())

    return measured("Soft-NMS, segments", COUNTS, at, rounds)


def measured(what: str, sizes: list[int], at: Callable[[int], Callable[[], object]], rounds: int) -> list[dict]:
    """Return seconds and rate at each size, and the ratio of the seconds to those of the previous size."""
    rows: list[dict] = []
    for size in sizes:
        call = at(size)
        call()
        taken = median(timed(call) for _ in range(rounds))
        previous = rows[-1] if rows else {"size": float("nan"), "s per call": float("nan")}
        rows.append({
            "what": what, "size": size, "s per call": taken, "per second": size / taken,
            "size, ratio": size / previous["size"], "s, ratio": taken / previous["s per call"],
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
