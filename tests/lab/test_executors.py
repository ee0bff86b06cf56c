"""Executors: stages in processes that each see one device, and as jobs of submitit. Slurm itself: tests/slurm."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest
import submitit

from vmae_lab.lab import slurm
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.estimate import Machine
from vmae_lab.lab.executors import StageFailed, visible_devices
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Job, Stage, pretrain_stage
from vmae_lab.lab.stages.cost import Work
from vmae_lab.training.metrics import latest_step
from vmae_lab.training.preemption import stop_requests
from vmae_lab.training.settings import Compute, ImpossibleHere
from vmae_lab.utils.processes import ProcessLost

slow = pytest.mark.slow
ROOT = Path(__file__).parents[2]


class DeviceStage(Stage):
    """Records the devices that it sees, and when it runs."""

    kind = "device"

    number: int
    seconds: float = 0.0
    fails: bool = False
    killed: bool = False
    until: str = ""  # waits for this file in the run store

    def run(self, job: Job) -> dict:
        began = time.time()
        time.sleep(self.seconds)
        while self.until and not (job.folder.parent / self.until).exists():
            time.sleep(0.1)
        if self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails:
            raise RuntimeError(f"stage {self.number} fails on purpose")
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {
            "metrics": {"number": self.number},
            "device": seen,
            "process": os.getpid(),
            "began": began,
            "ended": time.time(),
        }


def overlap(first: dict, second: dict) -> bool:
    return first["began"] < second["ended"] and second["began"] < first["ended"]


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("0,1", ["0", "1"]), ("GPU-5", ["GPU-5"]), ("", []), ("-1", []), ("NoDevFiles", [])],
)
def test_visible_devices_are_those_of_this_process(monkeypatch, visible, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == devices


@slow
def test_each_job_has_a_device_of_its_own(tmp_path, monkeypatch, warm):
    """Four jobs at a time on two devices: each sees one, both are used equally, and no two jobs share one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    store, stages = RunStore(tmp_path), [DeviceStage(number=number, seconds=2.0) for number in range(4)]
    store.complete_all(stages, Compute(executor="processes", jobs=4))
    results = [store.result(stage) for stage in stages]
    assert Counter(result["device"] for result in results) == {"0": 2, "1": 2}
    assert os.getpid() not in {result["process"] for result in results}
    for first, second in ((a, b) for a in results for b in results if a is not b and a["device"] == b["device"]):
        assert not overlap(first, second)
    assert any(overlap(a, b) for a in results for b in results if a["device"] != b["device"]), "devices work at the same time"


@slow
def test_jobs_share_devices_evenly_by_default(tmp_path, monkeypatch, warm):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    store, stages = RunStore(tmp_path), [DeviceStage(number=number) for number in range(4)]
    store.complete_all(stages, Compute(jobs=4))
    assert Counter(store.result(stage)["device"] for stage in stages) == {"0": 2, "1": 2}


def test_a_stage_can_be_computed_in_this_process(tmp_path):
    store, stage = RunStore(tmp_path), DeviceStage(number=0)
    store.complete_all([stage], Compute(executor="local"))
    assert store.result(stage)["process"] == os.getpid()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute.executor": "local", "compute.jobs": 2}, r"jobs 2 with executor local.*set jobs 1"),
        ({"compute.executor": "processes", "compute.launch": "two_processes"}, "executor processes with launch two_processes"),
        ({"compute.executor": "cluster"}, r"compute\.executor"),
        ({"compute.slurm.hours": 1}, r"compute\.slurm\.hours"),
    ],
)
def test_settings_that_contradict_each_other_are_reported(smoke, changes, message):
    with pytest.raises(RecipeError, match=message):
        build_recipe({**smoke, "arms": ["one"], "override": changes})


def test_the_executor_is_not_part_of_a_key(smoke):
    recipe = build_recipe({**smoke, "arms": ["one"]})
    other = recipe.with_overrides({"compute.executor": "slurm", "compute.slurm.options.qos": "high", "compute.jobs": 4})
    assert pretrain_stage(other, 0).key == pretrain_stage(recipe, 0).key
    assert other.compute.slurm.options == {"qos": "high"}
    assert other.compute.processes == 1, "other machines compute the stages"


def test_the_estimate_counts_the_devices_of_the_executor():
    """Four stages of one second at a time: they share the only device, or each has its own."""
    machine, works = Machine("GPU", 1e9, 1e9, 1e9, one_device=True), [Work(training=1e9)] * 4
    assert machine.wall_seconds(works, Compute(jobs=4)) == 4.0
    assert machine.wall_seconds(works, Compute(jobs=4, executor="slurm")) == 1.0


@slow
def test_failed_stages_do_not_stop_independent_ones(tmp_path, capsys, warm):
    """The error at the end names all failed stages, and those that were not run because of them."""
    failing, killed, last = (
        DeviceStage(number=0, fails=True),
        DeviceStage(number=1, killed=True),
        DeviceStage(number=2, seconds=1.0),
    )
    needing = DeviceStage(number=3, inputs=(failing,))
    store = RunStore(tmp_path)
    with pytest.raises(StageFailed, match="2 stages failed") as caught:
        store.complete_all([needing, killed, last], Compute(executor="processes", jobs=2))
    assert store.finished(last)
    message = str(caught.value)
    assert f"{failing.key}: RuntimeError: stage 0 fails on purpose" in message
    assert f"the process working on {killed.key} was killed" in message
    assert f"not run, because they need failed stages: {needing.key}" in message
    assert f"{failing.key} failed; stages that do not need it continue" in capsys.readouterr().out


@slow
def test_a_killed_process_is_replaced(tmp_path, warm):
    store, stages = RunStore(tmp_path), [DeviceStage(number=0, killed=True), DeviceStage(number=1)]
    with pytest.raises(ProcessLost, match="was killed") as caught:
        store.complete_all(stages, Compute(executor="processes"))
    assert caught.value.__notes__ == [f"in {stages[0].key}"]
    assert store.finished(stages[1])


# ---------------------------------------------------------------- submitit without Slurm

PATIENCE_S = 600
KILLED_PARENT = """
import sys
from pathlib import Path
import pytest
import submitit
from test_executors import DeviceStage, use_local_cluster
from vmae_lab.lab.run_store import RunStore
from vmae_lab.training.settings import Compute

use_local_cluster(pytest.MonkeyPatch())
RunStore(Path(sys.argv[1])).complete_all([DeviceStage(number=0, until="go")], Compute(executor="slurm"))
"""


def local_jobs() -> dict[str, str]:
    """The running jobs of submitit's local executor, in place of Slurm's queue."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        if "submitit.local._local" in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[str(process.pid)] = "RUNNING"
    return found


def use_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use submitit's local executor, whose jobs are processes of this machine that outlive this one."""
    for name, value in {"CLUSTER": "local", "queued_jobs": local_jobs, "POLL_S": 0.2, "GRACE_S": 1.0}.items():
        monkeypatch.setattr(slurm, name, value)
    # Jobs import the classes of this file.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path(__file__).parent}")


def wait_until(happened) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def jobs_of(store: RunStore, stage: Stage) -> list[str]:
    return [path.name.split("_")[0] for path in (store.folder(stage) / "slurm").glob("*_submitted.pkl")]


@slow
def test_a_job_that_is_queued_again_resumes(smoke, home, tmp_path, monkeypatch):
    """SIGUSR2, which Slurm sends before the time limit: the training saves, starts again, and the result is bit-equal."""
    use_local_cluster(monkeypatch)
    changes = {"compute.log_every": 1, "compute.checkpoint_every": 10**6, "pretrain.steps": 400, "compute.executor": "slurm"}
    recipe = build_recipe({**smoke, "arms": ["one"], "override": changes})
    store, alone, stage = RunStore(tmp_path / "jobs"), RunStore(tmp_path / "alone"), pretrain_stage(recipe, 0)

    def interrupt() -> None:
        wait_until(lambda: latest_step(store.folder(stage)))
        [job] = jobs_of(store, stage)
        psutil.Process(int(job)).children()[0].send_signal(signal.SIGUSR2)

    watcher = Thread(target=interrupt)
    watcher.start()
    store.complete_all([stage], recipe.compute)
    watcher.join()
    alone.complete(stage, recipe.compute, progress=False)
    log = (store.folder(stage) / "run.log").read_text()
    assert "stop requested" in log
    assert len(jobs_of(store, stage)) == 1, "the same job"
    assert store.result(stage)["metrics"] == alone.result(stage)["metrics"]
    assert (store.folder(stage) / "model.safetensors").read_bytes() == (alone.folder(stage) / "model.safetensors").read_bytes()


@slow
def test_jobs_outlive_the_process_that_submitted_them(tmp_path, monkeypatch):
    use_local_cluster(monkeypatch)
    store, stage = RunStore(tmp_path), DeviceStage(number=0, until="go")
    parent = subprocess.Popen([sys.executable, "-c", KILLED_PARENT, str(tmp_path)])
    wait_until(lambda: jobs_of(store, stage))
    parent.kill()
    parent.wait()
    [job] = jobs_of(store, stage)
    assert job in local_jobs()
    Thread(target=lambda: (time.sleep(3), (tmp_path / "go").touch())).start()
    store.complete_all([stage], Compute(executor="slurm"))
    assert store.finished(stage)
    assert jobs_of(store, stage) == [job], "found, not submitted again"


@slow
def test_a_failed_job_is_reported_with_the_end_of_its_log(tmp_path, monkeypatch):
    use_local_cluster(monkeypatch)
    store, failing, last = RunStore(tmp_path), DeviceStage(number=0, fails=True), DeviceStage(number=1)
    needing = DeviceStage(number=2, inputs=(failing,))
    with pytest.raises(StageFailed, match="ended without a result") as caught:
        store.complete_all([needing, last], Compute(executor="slurm", jobs=2))
    assert "RuntimeError: stage 0 fails on purpose" in str(caught.value)
    assert str(store.folder(failing) / "slurm") in str(caught.value)
    assert any(needing.key in note for note in caught.value.__notes__)
    assert store.finished(last)


class Requeued(BaseException):
    """Raised by the test's replacement of submitit's handler, which queues the job again and ends the process."""


def train_one_step(*_) -> None:
    """A training whose only step is also its last one. The signal before the time limit arrives during this step."""
    with stop_requests() as stop_requested:
        signal.raise_signal(signal.SIGUSR2)
        assert stop_requested()


def raise_requeued(*_) -> None:
    raise Requeued


@pytest.fixture
def submitit_handlers() -> Iterator[list[int]]:
    """Handlers in place of submitit's. Yields the SIGTERM signals that were ignored."""
    ignored: list[int] = []
    handlers = {signal.SIGUSR2: raise_requeued, signal.SIGTERM: lambda number, _: ignored.append(number)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield ignored
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("complete", [train_one_step, lambda *_: signal.raise_signal(signal.SIGUSR2)])
def test_the_signal_before_the_time_limit_is_not_lost(submitit_handlers, complete):
    """In the last step of a training, which then ends normally, and outside a training: the job is queued again."""
    with pytest.raises(Requeued):
        slurm.StageJob(complete, DeviceStage(number=0), Compute())()


def test_a_job_ignores_sigterm_outside_a_training(submitit_handlers):
    slurm.StageJob(lambda *_: signal.raise_signal(signal.SIGTERM), DeviceStage(number=0), Compute())()
    assert submitit_handlers == [signal.SIGTERM]


def test_slurm_that_cannot_be_used_is_reported(tmp_path, monkeypatch):
    store, compute = RunStore(tmp_path), Compute(executor="slurm")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(ImpossibleHere, match="squeue fails or is missing"):
            store.complete_all([DeviceStage(number=0)], compute)
    monkeypatch.setattr("vmae_lab.lab.run_store.find_spec", lambda _: None)
    with pytest.raises(ImpossibleHere, match=r"pip install 'vmae-lab\[slurm\]'"):
        store.complete_all([DeviceStage(number=0)], compute)


@pytest.mark.parametrize(
    ("message", "hinted"), [("Invalid generic resource (gres) specification", True), ("no account", False)]
)
def test_a_cluster_without_gpus_is_told_the_setting(tmp_path, monkeypatch, message, hinted):
    class Refusing(submitit.LocalExecutor):
        def __init__(self, *_, **__):
            pass

        def update_parameters(self, **_):
            pass

        def submit(self, *_):
            raise submitit.core.utils.FailedJobError(f"sbatch: error: {message}")

    monkeypatch.setattr(submitit, "AutoExecutor", Refusing)
    queue = slurm.SlurmQueue(print, Compute(executor="slurm"), lambda stage: tmp_path, lambda stage: False)
    with pytest.raises(ImpossibleHere, match=message.split()[0]) as caught:
        queue._submit(DeviceStage(number=0))
    assert ("For a cluster without GPUs: -p compute.slurm.gpus 0" in str(caught.value)) == hinted
