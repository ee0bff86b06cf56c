"""Paths of the project: root, runs and reports."""

import os
from pathlib import Path


def project_root() -> Path:
    """Return `$VMAE_LAB_PROJECT` if it is set, else the nearest project at or above the current folder, else that folder."""
    chosen = os.environ.get("VMAE_LAB_PROJECT")
    if chosen:
        return Path(chosen).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if holds_the_project(folder)), here)


def holds_the_project(folder: Path) -> bool:
    """Return whether a folder is a checkout of this project, or was made by `vmae-lab init`."""
    return (folder / "params").is_dir() and (folder / "notebooks").is_dir()


def how_to_find_it() -> str:
    """Return a hint for messages about missing project files. It is empty inside a project."""
    if holds_the_project(project_root()):
        return ""
    return (
        ". The current folder is not in a checkout of vmae_lab and not in a folder made by `vmae-lab init`: change to one, or "
        "set VMAE_LAB_PROJECT to it"
    )


def project_path(path: Path) -> str:
    """Return a path for files that may be committed: relative to the project's folder if it is inside, else absolute."""
    absolute, root = path.parent.resolve() / path.name, project_root().resolve()
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


def runs_folder() -> Path:
    return project_root() / "runs"


def report_folder(scale: str, notebook: str) -> Path:
    return project_root() / "reports" / scale / notebook
