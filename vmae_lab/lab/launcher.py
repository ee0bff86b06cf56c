"""Start a stage in several processes, with accelerate's launcher."""

import os
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
from vmae_lab.training.settings import Compute
from vmae_lab.utils.atomic_io import write_json
from vmae_lab.utils.paths import how_to_find_it, project_root
from vmae_lab.utils.processes import ProcessLost
from vmae_lab.utils.progress import VARIABLE, Progress

SPECIFICATION, LAUNCHED = "launch.json", "vmae_lab.lab.worker"
GRACE = "300"  # seconds for a step and a checkpoint after a stop request; accelerate's default of 30 is short for large models


def accelerate_config(name: str) -> Path:
    """The path of an accelerate configuration, by its name in params/accelerate/ or its path. Raises FileNotFoundError."""
    folder = project_root() / "params" / "accelerate"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml"))) or "none"
        raise FileNotFoundError(
            f"compute.launch: there is no accelerate configuration {path}; those in {folder}: {known}{how_to_find_it()}"
        )
    machines = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("num_machines", 1)
    if machines > 1:
        raise FileNotFoundError(f"compute.launch: {path} is of {machines} machines, which a cluster starts: see docs/slurm.sh")
    return path


def launch(stage: Stage, folder: Path, compute: Compute, progress: bool) -> None:
    """Run a stage, whose folder is in a store, in the processes of `compute.launch`, and wait for them.

    They print where this process prints; their progress is read from the run's log. Raises ProcessLost if one of them fails,
    and Stopped, after they have saved, if this process is asked to stop.
    """
    config = accelerate_config(str(compute.launch))
    inside = compute.model_copy(update={"launch": None})
    plain = {"stage": stage.plain(), "compute": inside.model_dump(mode="json"), "progress": progress}
    write_json(folder / SPECIFICATION, plain)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["-m", LAUNCHED, str(folder / SPECIFICATION)]
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
            f"{stage.key} failed in the processes that were started with {config}: their messages are above. "
            "If it is started again, it goes on from its last checkpoint"
        )


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen]:
    """Run a command during the block, then send it SIGTERM once and wait.

    If this process is killed, the command's processes see that their standard input, a pipe, is closed (see worker.py).
    """
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE, **os.environ, VARIABLE: "off"}
    with subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # the group: for one process the launcher does not forward it
                process.wait()
