"""The log of a training: a line of numbers every few steps, in the run's folder and for those who watch it."""

import importlib.util
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.atomic_io import atomic_write, storing_in

PROJECT = "vmae_lab"  # under which trackers file the runs


class MetricsLog:
    """metrics.jsonl, and the same in TensorBoard and trackers. Lines behind the step that a run resumes from are dropped."""

    def __init__(self, folder: Path, step: int, tensorboard: bool, trackers: tuple[str, ...] = ()):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.trackers = [tracker(name, folder.name) for name in trackers]

    def write(self, step: int, values: dict[str, float], seconds_per_step: float) -> None:
        with storing_in(self.path.parent), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values, "seconds_per_step": round(seconds_per_step, 4)}) + "\n")
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        for one in self.trackers:
            one.log(values, step=step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        for one in self.trackers:
            one.finish()


def tracker(name: str, run: str) -> Any:
    """One of accelerate's trackers, `wandb` or `trackio`, started; a run that goes on is the same one there.

    Raises ImpossibleHere where its package is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ImpossibleHere(f"compute.trackers: {name} is not installed: `pip install {name}`, or leave it out")
    same = {"id": run} if name == "wandb" else {}
    made = LOGGER_TYPE_TO_CLASS[name](PROJECT, name=run, resume="allow", **same)
    made.start()
    return made


def note(folder: Path, words: str) -> None:
    """A dated line in the run's `run.log`: every start of it, on what, and what happened to it."""
    with storing_in(folder), open(folder / "run.log", "a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}  {words}\n")


def latest_step(folder: Path) -> int:
    """The step of the last whole line of a run's log, or 0. It reads the end of the file only."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(-min(path.stat().st_size, 4096), os.SEEK_END)
        lines = file.read().splitlines()
    for line in reversed(lines):
        with suppress(ValueError):
            return int(json.loads(line)["step"])
    return 0


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log; a last line that a kill cut short is left out."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
