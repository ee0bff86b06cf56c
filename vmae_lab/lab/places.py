"""Where runs and reports stand: found from anywhere inside the project, whatever folder a notebook runs in."""

import os
from pathlib import Path

ELSEWHERE = "run it in the project's folder, or set VMAE_LAB_PROJECT"  # the remedy where what it brings is not found


def project_root() -> Path:
    """`$VMAE_LAB_PROJECT`, or the nearest folder at or above the current one that holds this project, or the current one."""
    chosen = os.environ.get("VMAE_LAB_PROJECT")
    if chosen:
        return Path(chosen).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
            return folder
    return here


def runs_folder() -> Path:
    return project_root() / "runs"


def report_folder(scale: str, notebook: str) -> Path:
    return project_root() / "reports" / scale / notebook
