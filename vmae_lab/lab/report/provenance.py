"""What code, machine and versions a result comes from."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "decord", "av", "numpy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Date, code version, device and the versions of what computes the numbers."""
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
    except PackageNotFoundError:  # on ARM and macOS
        return f"decord2 {version('decord2')}" if name == "decord" else "none"


def _code_version() -> str:
    """The commit that runs, marked where files were changed since; the package's version outside a checkout."""
    here = Path(__file__).parent
    try:
        git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # else the checkout around is another project's
        commit = git(here, "rev-parse", "--short=12", "HEAD")
        changed = git(here, "status", "--porcelain", "--", ":/vmae_lab")
    except (OSError, subprocess.CalledProcessError):
        return f"vmae-lab {version('vmae-lab')}"
    return commit + (" with local changes" if changed else "")


def git(folder: Path, *words: str) -> str:
    """What git prints in a folder. Raises CalledProcessError, or OSError without git."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    """The processor's name, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
