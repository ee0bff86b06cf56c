"""The project's folder, and its folders of runs and reports, found from any folder inside the project."""

import os
from pathlib import Path


def project_root() -> Path:
    """Return `$VMAE_LAB_PROJECT`, or the nearest folder at or above the current one that is a checkout, or the current one."""
    chosen = os.environ.get("VMAE_LAB_PROJECT")
    if chosen:
        return Path(chosen).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if holds_the_project(folder)), here)


def holds_the_project(folder: Path) -> bool:
    """Return whether a folder is a checkout of this project."""
    return (folder / "params").is_dir() and (folder / "notebooks").is_dir()


def how_to_find_it() -> str:
    """Return the end of a message about a missing file of the project: outside of a checkout, how to get to one."""
    if holds_the_project(project_root()):
        return ""
    return ". This is no checkout of vmae_lab: change to one, or set VMAE_LAB_PROJECT to its folder"


def project_path(path: Path) -> str:
    """Return a path for files that may be committed: relative to the project's folder if it is inside, else absolute."""
    absolute, root = path.parent.resolve() / path.name, project_root().resolve()
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


def runs_folder() -> Path:
    return project_root() / "runs"


def report_folder(scale: str, notebook: str) -> Path:
    return project_root() / "reports" / scale / notebook
