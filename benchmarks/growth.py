"""Scaling exponents of a training step, of the order of samples, and of listing the run store.

Run `python benchmarks/growth.py --out reports/benchmarks`. Exponents are fitted to log seconds over log size. The table also
has the exponent of the counted multiply-accumulates of the same steps. That of the seconds should be about the same.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from parts.timing import timed
from parts.written import machine_words, write_benchmark

from vmae_lab.data.samplers import sample_order
from vmae_lab.lab.run_store import RESULT, RunStore
from vmae_lab.lab.stages.measure import MemoryTaken, measure_step
from vmae_lab.lab.stages.pretrain import InitialStage
from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts, training_macs
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.utils.atomic_io import make_folder, write_json

MASKS = MaskSettings(decoder="running_cell", decoder_ratio=0.5)
BASE = {"size": "small", "frames": 16, "side": 112}
AXES: dict[str, tuple[list, str]] = {  # values, and the name of the setting
    "clips per step": ([1, 2, 4, 8, 16], "batch"),
    "frames": ([8, 16, 32, 64], "frames"),
    "side, pixels": ([64, 96, 128, 192, 256], "side"),
    "model size": (["tiny", "mini", "small", "base", "large"], "size"),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=5, help="number of timed steps per point")
    arguments.add_argument("--out", type=Path, help="folder for the tables")
    options = arguments.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that measure
    points = [point for axis in AXES for point in step_points(axis, options.steps)]
    write_benchmark(
        options.out, "growth_steps", "Seconds per step",
        f"A pre-training step of {BASE['size']} on 4 clips of {BASE['frames']} x {BASE['side']} x {BASE['side']} pixels with "
        f"decoder ratio 0.5. One setting varies at a time. Medians of {options.steps} steps, one thread. {machine_words()}.",
        pd.DataFrame(points),
    )  # fmt: skip
    by_axis = {axis: [point for point in points if point["changed"] == axis] for axis in AXES}
    rows = [fitted(axis, found) for axis, found in by_axis.items() if len(found) > 1]
    rows += [sample_order_growth(), run_store_growth()]
    write_benchmark(
        options.out, "growth", "Scaling exponents",
        "Exponents of seconds, fitted to the points of growth_steps.md or to the range in the table; 1 is linear. Model size "
        f"is measured by multiply-accumulates, so its counted exponent is 1. {machine_words()}.", pd.DataFrame(rows),
    )  # fmt: skip


def step_points(axis: str, steps: int) -> list[dict]:
    """Return seconds and counted cost of a step for each value of an axis that fits in memory. The rest has base values."""
    values, name = AXES[axis]
    rows = []
    for value in values:
        settings = {**BASE, "patch": 8 if axis == "model size" else 16, **({} if name == "batch" else {name: value})}
        model, batch = ModelSettings(**settings), value if name == "batch" else 4
        counts = TokenCounts.of(MASKS, model.clip)
        macs = batch * training_macs(model.dimensions, model.clip, counts.visible, counts.decoded)
        try:
            measured = measure_step(model, MASKS, batch, steps)
        except MemoryTaken as error:
            measured = {"fits": False}
            print(error, flush=True)
        if not measured["fits"]:
            print(f"{axis} {value}: does not fit in memory, skipped", flush=True)
            continue
        taken = measured["seconds_per_step"]
        rows.append(
            {"changed": axis, "value": value, "s per step": taken, "G MAC": macs / 1e9, "GFLOP/s": 2 * macs / taken / 1e9}
        )
        print(rows[-1], flush=True)
    return rows


def fitted(axis: str, points: Sequence[dict]) -> dict:
    counted = [point["G MAC"] for point in points]
    sizes = counted if axis == "model size" else [point["value"] for point in points]
    return {
        "what": f"step, by {axis}", "from": points[0]["value"], "to": points[-1]["value"],
        "exponent": exponent(sizes, [point["s per step"] for point in points]), "counted": exponent(sizes, counted),
        "seconds at the largest": points[-1]["s per step"],
    }  # fmt: skip


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def sample_order_growth() -> dict:
    """Return the growth of the seconds to look up 10,000 samples with the number of clips, in a mixture of two sources."""
    sizes, seconds = [10**3, 10**4, 10**5, 10**6], []
    for size in sizes:
        order = sample_order(["one"] * (size // 2) + ["other"] * (size // 2), 0.5, 0)
        seconds.append(timed(lambda order=order: [order[position * 97] for position in range(10_000)]))
    return {
        "what": "looking up 10,000 samples, by clips", "from": sizes[0], "to": sizes[-1],
        "exponent": exponent(sizes, seconds), "counted": 0.0, "seconds at the largest": seconds[-1],
    }  # fmt: skip


def run_store_growth() -> dict:
    """Return the growth of the seconds to list the finished stages of a run store with their number."""
    sizes, seconds = [100, 1000, 10_000], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(Path(folder))
            stages = [InitialStage(model=ModelSettings(size="micro", frames=4, side=16), seed=seed) for seed in range(size)]
            for stage in stages:
                write_json(make_folder(store.folder(stage)) / RESULT, {})
            seconds.append(timed(lambda store=store, stages=stages: [store.progress(stage) for stage in stages]))
    return {
        "what": "listing the run store, by stages", "from": sizes[0], "to": sizes[-1],
        "exponent": exponent(sizes, seconds), "counted": 1.0, "seconds at the largest": seconds[-1],
    }  # fmt: skip


if __name__ == "__main__":
    main()
