"""Stages as jobs of a real Slurm. tests/slurm/setup.sh starts one on a machine where packages may be installed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest

from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.lab.executors import StageFailed
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.slurm import FILES, queued_jobs
from vmae_lab.lab.stages import Job, Stage, pretrain_stage
from vmae_lab.training.checkpoint import Checkpoints
from vmae_lab.training.metrics import latest_step
from vmae_lab.training.settings import Compute, ImpossibleHere

ROOT = Path(__file__).parents[2]
PATIENCE_S = 1800
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(queued_jobs() is None, reason="no Slurm answers here; tests/slurm/setup.sh starts one"),
]


class WaitingStage(Stage):
    """Waits for a file in the run store, then fails."""

    kind = "waiting"

    until: str

    def run(self, job: Job) -> dict:
        while not (job.folder.parent / self.until).exists():
            time.sleep(0.1)
        raise RuntimeError("on purpose")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Jobs import this checkout and the classes of this file, with one thread each. Jobs that a test leaves are cancelled."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path(__file__).parent}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(queued_jobs() or ())
    yield
    if left := set(queued_jobs() or ()) - before:
        subprocess.run(["scancel", *left], check=True)


@pytest.fixture
def recipe(smoke) -> Recipe:
    """A training of some seconds that is saved only on a stop request."""
    changes = {"compute.log_every": 1, "compute.checkpoint_every": 10**6, "pretrain.steps": 600}
    changes |= {"compute.executor": "slurm", "compute.jobs": 2, "compute.slurm.gpus": 0}
    return build_recipe({**smoke, "arms": ["one"], "override": changes})


def wait_until(happened) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def jobs_of(folder: Path) -> list[str]:
    return [path.name.split("_")[0] for path in (folder / FILES).glob("*_submitted.pkl")]


def metrics(runs: Path) -> dict[str, dict]:
    """The results of the stages in a run store, without times."""
    return {path.parent.name: json.loads(path.read_text())["metrics"] for path in runs.glob("*/result.json")}


def test_a_killed_notebook_finds_its_jobs_and_the_results_are_bit_equal(tmp_path):
    """The decoder-mask notebook as jobs: killed, then run again to its end; and in one process."""
    command = [
        sys.executable,
        "-m",
        "vmae_lab",
        "run",
        str(ROOT / "notebooks" / "ablation_decoder_mask.ipynb"),
        "--scale",
        "smoke",
    ]
    few = {"arms": "[none, running_cell_50]", "seeds": "[0]", "pretrain.keep_at": "[]", "evaluate.controls": "[]"}
    command += [word for name, value in few.items() for word in ("-p", name, value)]
    slurm = [*command, "-p", "compute.executor", "slurm", "-p", "compute.jobs", "2", "-p", "compute.slurm.gpus", "0"]
    homes = {name: {**os.environ, "VMAE_LAB_PROJECT": str(tmp_path / name)} for name in ("jobs", "alone")}
    runs = {name: tmp_path / name / "runs" for name in homes}
    for folder in homes:
        (tmp_path / folder).mkdir()
        for link in ("params", "notebooks"):
            (tmp_path / folder / link).symlink_to(ROOT / link)

    notebook = subprocess.Popen(slurm, env=homes["jobs"], cwd=tmp_path / "jobs", stdout=subprocess.DEVNULL)
    wait_until(lambda: any(runs["jobs"].glob("*/slurm/*_submitted.pkl")))
    processes = [notebook, *psutil.Process(notebook.pid).children(recursive=True)]
    for process in processes:  # the notebook's kernel too
        process.send_signal(signal.SIGKILL)
    notebook.wait()
    submitted = {folder.name: jobs_of(folder) for folder in runs["jobs"].iterdir() if folder.is_dir() and jobs_of(folder)}
    assert submitted
    assert all(job in (queued_jobs() or ()) for jobs in submitted.values() for job in jobs), "the jobs continue"

    again = subprocess.run(slurm, env=homes["jobs"], cwd=tmp_path / "jobs", capture_output=True, text=True, timeout=PATIENCE_S)
    assert again.returncode == 0, again.stderr[-3000:] + again.stdout[-3000:]
    for name, jobs in submitted.items():
        assert jobs_of(runs["jobs"] / name) == jobs, "found, not submitted again"
    alone = [*command, "-p", "compute.executor", "local"]
    subprocess.run(alone, env=homes["alone"], cwd=tmp_path / "alone", check=True, capture_output=True, timeout=PATIENCE_S)
    assert len(metrics(runs["alone"])) >= 4
    assert metrics(runs["jobs"]) == metrics(runs["alone"])
    for path in runs["alone"].glob("*/model.safetensors"):
        assert path.read_bytes() == (runs["jobs"] / path.parent.name / path.name).read_bytes()


def test_a_requeued_training_resumes(recipe, home, tmp_path):
    """`scontrol requeue`, as after preemption, and then the signal before the time limit. The result is bit-equal."""
    store, alone, stage = RunStore(tmp_path / "jobs"), RunStore(tmp_path / "alone"), pretrain_stage(recipe, 0)
    folder, saved = store.folder(stage), list[int]()

    def interrupt() -> None:
        for command in (["scontrol", "requeue"], ["scancel", "--batch", "--signal=USR2"]):
            before = saved[-1] if saved else 0
            wait_until(lambda before=before: latest_step(folder) > before)
            subprocess.run([*command, *jobs_of(folder)], check=True)
            wait_until(lambda: (folder / "checkpoint.pt").exists())
            wait_until(lambda before=before: (Checkpoints(folder).load() or {}).get("step", 0) > before)
            saved.append(Checkpoints(folder).load()["step"])

    watcher = Thread(target=interrupt, daemon=True)
    watcher.start()
    store.complete_all([stage], recipe.compute)
    assert len(saved) == 2
    assert 0 < saved[0] < saved[1] < 600
    assert len(jobs_of(folder)) == 1, "the same job"
    alone.complete(stage, recipe.compute, progress=False)
    assert store.result(stage)["metrics"] == alone.result(stage)["metrics"]
    assert (folder / "model.safetensors").read_bytes() == (alone.folder(stage) / "model.safetensors").read_bytes()


def test_failed_and_cancelled_jobs_do_not_stop_others(recipe, home, tmp_path):
    store, short = RunStore(tmp_path), recipe.with_overrides({"pretrain.steps": 4})
    failing, cancelled = WaitingStage(until="go"), WaitingStage(until="never")
    trained = pretrain_stage(short, 0)

    def interrupt() -> None:
        wait_until(lambda: jobs_of(store.folder(cancelled)) and (store.folder(cancelled) / "settings.yaml").exists())
        subprocess.run(["scancel", *jobs_of(store.folder(cancelled))], check=True)
        (tmp_path / "go").touch()

    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(StageFailed, match="2 stages failed") as caught:
        store.complete_all([failing, cancelled, trained], short.compute)
    assert store.finished(trained)
    assert "RuntimeError: on purpose" in str(caught.value)
    assert "CANCELLED" in str(caught.value)


def test_a_refused_job_is_reported(tmp_path):
    settings = {"gpus": 0, "partition": "none_of_this_name"}
    with pytest.raises(ImpossibleHere, match=r"(?s)Slurm refuses the job of waiting-.*compute\.slurm"):
        RunStore(tmp_path).complete_all([WaitingStage(until="")], Compute(executor="slurm", slurm=settings))


def test_the_script_for_several_machines_saves_and_is_queued_again(home, tmp_path):
    """docs/slurm.sh on one machine with two processes. USR1 is what Slurm sends before the time limit."""
    arguments = "-p pretrain.steps 400 -p compute.log_every 1 -p compute.checkpoint_every 1000000 --seed 0"
    values = {"NODES": "1", "GPUS": "0", "PROCESSES": "2", "CPUS": "1", "TIME": "30", "NOTICE": "60", "PARAMS": "smoke"}
    values |= {"ARGUMENTS": arguments, "CONFIG": str(ROOT / "params" / "accelerate" / "two_processes.yaml")}
    values |= {"OPTIONS": f"--output={tmp_path}/log.txt", "VMAE_LAB_PROJECT": str(tmp_path), "ACTIVATE": activate()}
    for link in ("params", "notebooks"):
        (tmp_path / link).symlink_to(ROOT / link)
    script, variables = str(ROOT / "docs" / "slurm.sh"), {**os.environ, **values}
    submitted = subprocess.run(["bash", script], env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    job = submitted.stdout.split()[-1]
    runs = tmp_path / "runs"
    wait_until(lambda: any(latest_step(folder) for folder in runs.glob("pretrain-*")))
    [folder] = runs.glob("pretrain-*")
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_until(lambda: (folder / "checkpoint.pt").exists())
    saved = Checkpoints(folder).load()["step"]
    assert 0 < saved < 400
    wait_until(lambda: (folder / "result.json").exists() or job not in (queued_jobs() or {job: ""}))
    log = (tmp_path / "log.txt").read_text(errors="replace")
    assert (folder / "result.json").exists(), log[-3000:]
    assert "stop requested" in (folder / "run.log").read_text()
    assert json.loads((folder / "result.json").read_text())["training"]["processes"] == 2


def activate() -> str:
    """The file that activates the environment of this Python."""
    return str(Path(sys.executable).parent / "activate")
