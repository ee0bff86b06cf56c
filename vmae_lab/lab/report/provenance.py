"""The code, machine and package versions that a result is made with."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vmae_lab.utils.counts import counted

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "decord", "av", "numpy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Return the date, the code's version, the device, and the versions of Python and of the packages that compute results."""
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **_machine()}


@cache
def _machine() -> dict[str, Any]:
    return {
        "code": _code_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "python": platform.python_version(),
        "packages": {name: _installed(name) for name in PACKAGES},
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # on ARM and macOS, decord2 is installed instead of decord
        return f"decord2 {version('decord2')}" if name == "decord" else "none"


def _code_version() -> str:
    """Return the commit, with a mark if the package has local changes. Outside a checkout, return the package's version."""
    file = Path(__file__)
    try:
        git(file.parent, "ls-files", "--error-unmatch", file.name)  # fails inside the checkout of another project
        commit = git(file.parent, "rev-parse", "--short=12", "HEAD")
        changed = git(file.parent, "status", "--porcelain", "--", ":/vmae_lab")
    except (OSError, subprocess.CalledProcessError):
        return f"vmae-lab {version('vmae-lab')}"
    return commit + (" with local changes" if changed else "")


def git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command in a folder. Raises CalledProcessError, or OSError if git is not installed."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    """Return the processor's name and the number of cores that this process may use."""
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        name = next(models, name)
    return (
        f"{name}, {counted(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1, 'core')}"
    )
