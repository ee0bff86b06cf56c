"""Run a stage in several processes, with accelerate's launcher."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from vmae_lab.lab.stages import Stage
from vmae_lab.training.metrics import latest_step
from vmae_lab.training.preemption import STOPPED, Stopped, stop_requests
from vmae_lab.training.settings import Compute, ImpossibleHere
from vmae_lab.utils.atomic_io import atomic_write
from vmae_lab.utils.paths import how_to_find_it, project_root
from vmae_lab.utils.processes import ProcessLost
from vmae_lab.utils.progress import VARIABLE, Progress

GRACE = "300"  # seconds to finish a step and save after a stop request; accelerate's 30 are too few for large models


def accelerate_config(name: str) -> Path:
    """Find an accelerate configuration by its name in params/accelerate/ or its path.

    Raises FileNotFoundError, and ImpossibleHere if it is for several machines.
    """
    folder = project_root() / "params" / "accelerate"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"compute.launch: no accelerate configuration {path}; {folder} has: {known}{how_to_find_it()}")
    machines = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("num_machines", 1)
    if machines > 1:
        raise ImpossibleHere(f"compute.launch: {path} is for {machines} machines. Run it on a cluster: see docs/slurm.sh")
    return path


def process_count(launch: str | None) -> int:
    """Return the number of processes of one training, as `compute.launch` configures it. Raises as `accelerate_config`."""
    if not launch:
        return 1
    config = yaml.safe_load(accelerate_config(launch).read_text(encoding="utf-8"))
    return int(config.get("num_processes", 1))


def launch(stage: Stage, folder: Path, compute: Compute, progress: bool) -> None:
    """Run a stage in the processes of `compute.launch` and wait for them. `folder` is the stage's folder in a run store.

    The processes print to this process's output. Their progress is read from the log of the run. Raises ProcessLost if one of
    them fails, and Stopped, after they have saved, if this process gets a stop request.
    """
    config = accelerate_config(str(compute.launch))
    specification = folder / "launch.pickle"
    inside = compute.model_copy(update={"launch": None})
    with atomic_write(specification) as temporary:
        temporary.write_bytes(pickle.dumps((stage, inside, progress)))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["-m", "vmae_lab.lab.worker", str(specification)]
    bar = Progress(total=stage.steps, desc=stage.key, unit="steps", disable=not progress)
    with stop_requests() as stop_requested, bar, _running(command) as process:
        while process.poll() is None and not stop_requested():
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            bar.update(latest_step(folder) - bar.n)
        if stop_requested() or process.returncode == STOPPED:
            raise Stopped
    if process.returncode:
        raise ProcessLost(
            f"{stage.key} failed in the processes started with {config}. Their messages are above. If it is started again, it "
            "resumes from its last checkpoint"
        )


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen]:
    """Start a command. After the block, send it SIGTERM if it is still running, and wait for it.

    If this process is killed, the standard input of the command, a pipe, is closed, and its processes end (see worker.py).
    """
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE, **os.environ, VARIABLE: "off"}
    with subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # to the group: with one process, the launcher does not forward it
                process.wait()
