"""`vmae-lab info`: versions, devices and folders, for a bug report."""

import os
from pathlib import Path
from typing import Any

import typer

from vmae_lab.utils.counts import counted

commands = typer.Typer()


@commands.command(epilog="\b\nExample:\n  vmae-lab info")
def info() -> None:
    """Print versions, devices and decoders, and the folders of runs and data with their sizes."""
    import importlib.util

    import torch

    from vmae_lab.data.motionworld.writer import cache_home
    from vmae_lab.lab.report.provenance import provenance
    from vmae_lab.utils.paths import project_root, runs_folder

    made = provenance()
    lines = {
        "vmae_lab": made["code"],
        "python": made["python"],
        **made["packages"],
        "device": made["device"],
        **{f"GPU {index}": _gpu(torch.cuda, index) for index in range(torch.cuda.device_count())},
        "PyTorch threads": str(torch.get_num_threads()),
        "decoders": ", ".join(name for name in ("decord", "av", "torchcodec") if importlib.util.find_spec(name)),
        "project": str(project_root()),
        "runs": f"{_stages(runs_folder())}, {_size(runs_folder())}: {runs_folder()}",
        "cache of data": f"{_size(cache_home())}: {cache_home()}",
    }
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))


def _gpu(cuda: Any, index: int) -> str:
    device = cuda.get_device_properties(index)
    bf16 = "bf16" if cuda.is_bf16_supported(including_emulation=False) else "no bf16"
    return f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}"


def _stages(folder: Path) -> str:
    stages = [path for path in folder.glob("*") if path.is_dir()]
    finished = sum((stage / "result.json").exists() for stage in stages)
    return f"{counted(finished, 'finished stage')}, {len(stages) - finished} unfinished"


def _size(folder: Path) -> str:
    """Return the total size of the files in a folder. Links are not followed."""
    total = sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(folder) for name in names)
    return f"{total / 1e9:.2f} GB" if total > 1e8 else f"{total / 1e6:.1f} MB"
