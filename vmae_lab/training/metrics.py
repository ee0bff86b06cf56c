"""The logs of a run: `metrics.jsonl` and `run.log` in its folder, TensorBoard and other trackers."""

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
from vmae_lab.utils.journal import read_rows

PROJECT = "vmae_lab"  # project name in trackers


class MetricsLog:
    """Writes to metrics.jsonl, TensorBoard and trackers. First deletes lines after `step`, which the run repeats."""

    def __init__(self, folder: Path, step: int, tensorboard: bool, trackers: tuple[str, ...] = ()):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.trackers = [tracker(name, folder.name) for name in trackers]
        if tensorboard:
            self.trackers.append(LOGGER_TYPE_TO_CLASS["tensorboard"]("tensorboard", folder, purge_step=step + 1))
        for opened in self.trackers:
            opened.start()

    def write(self, step: int, values: dict[str, float], seconds_per_step: float) -> None:
        with storing_in(self.path.parent), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values, "seconds_per_step": round(seconds_per_step, 4)}) + "\n")
        for opened in self.trackers:
            opened.log(values, step=step)

    def close(self) -> None:
        for opened in self.trackers:
            opened.finish()


def tracker(name: str, run: str) -> Any:
    """Return accelerate's tracker `wandb` or `trackio`. A resumed run continues the same run in the tracker.

    Raises ImpossibleHere if the package is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ImpossibleHere(f"compute.trackers: {name} is not installed: run `pip install {name}`, or remove it")
    same_run = {"id": run} if name == "wandb" else {}
    return LOGGER_TYPE_TO_CLASS[name](PROJECT, name=run, resume="allow", **same_run)


def note(folder: Path, text: str) -> None:
    """Append a line with the current time to `run.log`, the history of a run: starts, stops and roll-backs."""
    with storing_in(folder), open(folder / "run.log", "a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}  {text}\n")


def latest_step(folder: Path) -> int:
    """Return the step of the last complete line of a run's metrics, or 0. Reads only the end of the file."""
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
    """Return the lines of a run's metrics, without an incomplete last line (of a killed run)."""
    return list(read_rows(folder / "metrics.jsonl"))
