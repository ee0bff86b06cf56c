"""Seconds of the finished stages of a run store, by kind, and how much of them is training.

Run `python benchmarks/stage_seconds.py --out reports/benchmarks` after a notebook. The rest of a stage's time is spent on
reading data, evaluation, and writing files.
"""

import argparse
from pathlib import Path

import pandas as pd
import yaml
from parts.written import machine_words, write_benchmark

from vmae_lab.lab.run_store import RESULT, SETTINGS
from vmae_lab.utils.atomic_io import read_json
from vmae_lab.utils.paths import runs_folder


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=Path, default=runs_folder(), help="the run store; by default that of this project")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    rows = [of_stage(file.parent) for file in sorted(options.runs.glob(f"*/{RESULT}"))]
    if not rows:
        arguments.error(f"there are no finished stages in {options.runs}")
    table = pd.DataFrame(rows).groupby("kind", sort=False, as_index=False).sum().sort_values("seconds", ascending=False)
    table["rest, s"] = table["seconds"] - table["training, s"]
    table["share of all, %"] = 100 * table["seconds"] / table["seconds"].sum()
    rest = 100 * table["rest, s"].sum() / table["seconds"].sum()
    words = (
        f"Sums over stages, some of which may have run at the same time. {rest:.0f}% of all seconds are not training "
        f"steps: they are spent on reading data, evaluation, and writing files. {machine_words()}."
    )
    write_benchmark(options.out, "stage_seconds", "Seconds of stages by kind", words, table)


def of_stage(folder: Path) -> dict:
    """Return the kind of a finished stage, its seconds, and those of its training steps."""
    result, settings = read_json(folder / RESULT), yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    kind = settings["stage"]
    section = settings.get(kind)
    steps = section.get("steps", 0) if isinstance(section, dict) else 0
    training = steps * result["training"]["seconds_per_step"] if "training" in result else 0.0
    return {"kind": kind, "stages": 1, "seconds": result["seconds"], "training, s": training}


if __name__ == "__main__":
    main()
