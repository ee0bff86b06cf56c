"""Where runs and reports stand: found from anywhere inside the project, whatever folder a notebook runs in."""

import os
from pathlib import Path


def project_root() -> Path:
    """`$VMAE_LAB_PROJECT`, or the nearest folder at or above the current one that holds this project, or the current one."""
    chosen = os.environ.get("VMAE_LAB_PROJECT")
    if chosen:
        return Path(chosen).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if holds_the_project(folder)), here)


def how_to_find_it() -> str:
    """The end of a message about a file of the project that is not there: outside of the project, the way to it."""
    if holds_the_project(project_root()):
        return ""
    return ". This is no checkout of vmae_lab: change to one, or set VMAE_LAB_PROJECT to its folder"


def holds_the_project(folder: Path) -> bool:
    """Whether a folder is a checkout of this project."""
    return (folder / "params").is_dir() and (folder / "notebooks").is_dir()


def runs_folder() -> Path:
    return project_root() / "runs"


def report_folder(scale: str, notebook: str) -> Path:
    return project_root() / "reports" / scale / notebook
