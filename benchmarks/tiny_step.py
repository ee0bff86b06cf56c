"""Milliseconds per pre-training step of the demo's tiny model in the training loop: this checkout and another one.

Run `git worktree add /tmp/before <commit>`, then `python benchmarks/tiny_step.py --against /tmp/before --out
reports/benchmarks`. Both versions train alternately on the same pixels, each in its own process (one thread). The trained
weights are compared bit for bit. Without --against, only this checkout is measured.

Single functions are not timed on their own: with their data in the caches, they take half of their time in a step.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from parts.written import machine_words, write_benchmark

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.memmap_dataset import MemmapDataset
from vmae_lab.data.motionworld import ClipRecord
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask

HERE = Path(__file__).resolve().parents[1]
ARMS = {"none": MaskSettings(decoder="none", decoder_ratio=0), "running cell 50%": MaskSettings()}
WARM_UP = 20  # steps that are not measured
PIECES = ("batch", "forward and loss", "backward, AdamW and the rest")
CLIPS, FRAMES, SIDE = 96, 24, 40


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--against", type=Path, help="another checkout of this project")
    arguments.add_argument("--steps", type=int, default=200, help="steps per run")
    arguments.add_argument("--rounds", type=int, default=3, help="runs per version and mask, alternating")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    arguments.add_argument("--measure", choices=sorted(ARMS), help=argparse.SUPPRESS)
    arguments.add_argument("--clips", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure, options.steps, options.clips)))
        return
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips.npy"
        write_clips(clips)
        compare(options, clips)


def compare(options: argparse.Namespace, clips: Path) -> None:
    """Train alternately with each version, and write the table."""
    versions = {"before": options.against.resolve()} if options.against else {}
    versions["this version"] = HERE
    rows = []
    for arm in ARMS:
        found: dict[str, list[dict]] = {name: [] for name in versions}
        for _ in range(options.rounds):
            for name, checkout in versions.items():
                found[name].append(in_checkout(checkout, arm, options.steps, clips))
        first = next(iter(found.values()))
        for name, runs in found.items():
            row = {"decoder mask": arm, "version": name, "ms per step": statistics.median(run["ms"] for run in runs)}
            row |= {f"ms, {piece}": statistics.median(run["pieces"][piece] for run in runs) for piece in PIECES}
            ratios = [old["ms"] / new["ms"] for old, new in zip(first, runs, strict=True)]
            row |= {"speedup": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
            weights = {run["weights"] for run in [*first, *runs]}
            rows.append(row | {"same weights": "yes" if len(weights) == 1 else "no"})
            print(rows[-1], flush=True)
    words = (
        "One pre-training step of the demo's tiny model (8 x 24 x 24 pixels, patch 4, tube mask 0.9, batch 8) in the training "
        f"loop, one thread, float32. CPU time: medians over the steps of a run of {options.steps} without the first {WARM_UP}, "
        f"then over {options.rounds} alternating runs. 'speedup' compares the runs of one round; lowest and highest are its "
        f"range over rounds. 'same weights': all trained weights are equal, bit for bit. {machine_words()}."
    )
    write_benchmark(options.out, "tiny_step", "A pre-training step of the tiny model", words, pd.DataFrame(rows))


def in_checkout(checkout: Path, arm: str, steps: int, clips: Path) -> dict:
    """Return the result of `measured` with the package of a checkout, in its own process."""
    command = [sys.executable, __file__, "--measure", arm, "--steps", str(steps), "--clips", str(clips)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(arm: str, steps: int, clips: Path) -> dict:
    """Return CPU milliseconds per step, in total and per piece, and a hash of the trained weights."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        task = tiny_task(arm, steps, clips)
        model = train(task, Path(folder) / "run", Compute(checkpoint_every=200, log_every=50), progress=False).model
        stamps = [*task.stamps, time.process_time()]
    spent = 1000 * np.diff(stamps).reshape(steps, len(PIECES))[WARM_UP:]
    pieces = dict(zip(PIECES, np.median(spent, axis=0).tolist(), strict=True))
    weights = b"".join(value.numpy().tobytes() for _, value in sorted(model.state_dict().items()))
    return {"ms": float(np.median(spent.sum(1))), "pieces": pieces, "weights": hashlib.sha256(weights).hexdigest()}


def write_clips(path: Path) -> None:
    """Write clips of smooth noise. The measured process must not do this, since it frees large arrays."""
    coarse = torch.rand(CLIPS, 3, 8, 10, 10, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (FRAMES, SIDE, SIDE), mode="trilinear")
    np.save(path, (255 * smooth).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().numpy())


def tiny_task(arm: str, steps: int, path: Path) -> "TimedTask":
    """Return the demo's pre-training (params/demo.yaml) on the clips in a file."""
    sources = ("digits", "sticks", "sprites")
    records = [ClipRecord(f"{row}.mp4", "train", sources[row % 3], "spin", FRAMES) for row in range(CLIPS)]
    clips = MemmapDataset(np.load(path, mmap_mode="r"), np.arange(CLIPS), records)
    data = DataSettings(
        motionworld={"sources": sources, "side": 64, "frames": FRAMES},
        resident_side=SIDE, stride=2, crop_scales=(1.0, 0.9, 0.8),
    )  # fmt: skip
    settings = PretrainSettings(
        steps=steps, batch_size=8, lr=0.002, warmup_steps=min(100, steps // 2), clip_grad=1.0, target_eps=0.01
    )
    return TimedTask(ModelSettings(size="tiny", frames=8, side=24, patch=4), ARMS[arm], settings, data, clips, 0)


class TimedTask(PretrainTask):
    """Pre-training that records the CPU time at the start of each step, after its batch and after its loss."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stamps: list[float] = []

    def batch(self, step: int, rows: range):
        self.stamps.append(time.process_time())
        batch = super().batch(step, rows)
        self.stamps.append(time.process_time())
        return batch

    def loss(self, *arguments):
        loss = super().loss(*arguments)
        self.stamps.append(time.process_time())
        return loss


if __name__ == "__main__":
    main()
