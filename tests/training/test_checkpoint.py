"""Runs survive stop requests, kills, lost processes and truncated checkpoints, in one process and in two."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from warm_python import forked_pid

from vmae_lab.data.dataset import load_clips
from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.checkpoint import Checkpoints, UnreadableCheckpoint
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.preemption import STOPPED
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainTask

SCRIPT = """
import json, sys, time
from pathlib import Path
import torch
from accelerate import PartialState
from vmae_lab.lab.config import build_recipe
from vmae_lab.data.dataset import load_clips
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainTask

recipe, folder, workers, pause = build_recipe(json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
more = json.loads(sys.argv[5])

class Slow(PretrainTask):
    def loss(self, model, batch, device):
        time.sleep(pause)
        return super().loss(model, batch, device)

if __name__ == "__main__":
    torch.set_num_threads(1)
    clips = load_clips(recipe.data, "train")
    task = Slow(recipe.model, recipe.mask, recipe.pretrain, recipe.data, clips, seed=1)
    compute = Compute(checkpoint_every=4, log_every=1, tensorboard=False, workers=workers, **more)
    trained = train(task, folder, compute, progress=False)
    if PartialState().is_main_process:
        torch.save(trained.model.state_dict(), folder / "last.pt")
"""
STEPS = 12
# If the launcher shared its store, restarted processes would find the addresses of the lost ones there.
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.fixture(scope="module")
def recipe(smoke) -> Recipe:
    """With random masks, clips have unequal numbers of tokens in the loss, so the mean is not the mean of two means."""
    changes = {"pretrain.steps": STEPS, "mask.decoder": "random", "mask.decoder_ratio": 0.5}
    return build_recipe({**smoke, "arms": ["none"], "override": changes})


@pytest.fixture(scope="module")
def start(home, recipe, tmp_path_factory):
    """Start a run as a job in its own process group: one process, or several that communicate through gloo."""
    script = tmp_path_factory.mktemp("script") / "job.py"
    script.write_text(SCRIPT)
    parameters = json.dumps(recipe.model_dump(mode="json"))

    def begin(
        folder: Path, processes: int = 1, workers: int = 0, pause: float = 0.0, restarts: int = 0, sharded: bool = False,
        before: tuple[str, ...] = (), **more,
    ) -> subprocess.Popen:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            f"--max_restarts={restarts}",
        ]
        arguments = [str(script), parameters, str(folder), str(workers), str(pause), json.dumps(more)]
        command = [*before, sys.executable, *(launcher if processes > 1 else []), *arguments]
        environment = {**os.environ, **ON_CPU, **(FSDP if sharded else {})}
        with open(folder / "output.txt", "a") as output:
            return subprocess.Popen(command, env=environment, start_new_session=True, stdout=output, stderr=output)

    return begin


def finish(process: subprocess.Popen, folder: Path) -> dict[str, torch.Tensor]:
    assert process.wait(240) == 0, (folder / "output.txt").read_text()[-3000:]
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
    """Weights and log of uninterrupted runs, by number of processes."""
    made = {}

    def of(processes: int):
        if processes not in made:
            folder = tmp_path_factory.mktemp(f"unbroken{processes}")
            made[processes] = finish(start(folder, processes), folder), read_metrics(folder)
        return made[processes]

    return of


def wait_for_step(step: int, process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 180
    while len(read_metrics(folder)) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, f"the run ended too early: {(folder / 'output.txt').read_text()[-2000:]}"


def kill_all(process: subprocess.Popen) -> None:
    """Send SIGKILL to a process and all its descendants; those of a launcher have their own sessions."""
    family = [*ranks(process, recursive=True), psutil.Process(forked_pid(process.pid))]
    for member in family:
        member.kill()
    process.wait(60)
    psutil.wait_procs(family, 60)


def ranks(process: subprocess.Popen, recursive: bool = False) -> list[psutil.Process]:
    """The processes that a launcher has started."""
    return psutil.Process(forked_pid(process.pid)).children(recursive)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def losses(folder_or_rows) -> list[float]:
    rows = read_metrics(folder_or_rows) if isinstance(folder_or_rows, Path) else folder_or_rows
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_two_processes_have_the_losses_of_one(unbroken):
    """One process with batch 4 and two with 2 each: only the order of float32 sums differs."""
    (_, alone), (_, together) = unbroken(1), unbroken(2)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
    assert [row["lr"] for row in together] == [row["lr"] for row in alone]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("more", [{}, {"checkpoint_activations": True}])
def test_sharded_training_has_the_same_losses(start, unbroken, tmp_path, more):
    """FSDP in two processes, stopped and resumed in one process without FSDP, and the other way round."""
    one_model = tmp_path / "one"
    process = start(one_model, 2, pause=0.2, sharded=True, **more)
    wait_for_step(5, process, one_model)
    process.terminate()
    process.wait(60)
    finish(start(one_model, 1), one_model)
    assert losses(one_model) == pytest.approx(losses(unbroken(1)[1]), rel=1e-4)
    other = tmp_path / "other"
    process = start(other, 1, pause=0.2)
    wait_for_step(5, process, other)
    process.terminate()
    process.wait(60)
    ends = finish(start(other, 2, sharded=True, **more), other)
    assert losses(other) == pytest.approx(losses(unbroken(1)[1]), rel=1e-4)
    assert "sharded (FSDP2)" in (other / "run.log").read_text()
    assert {name: value.shape for name, value in ends.items()} == {n: v.shape for n, v in unbroken(1)[0].items()}


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (2, 2)])
def test_a_run_resumes_bit_equal_after_sigterm(start, unbroken, tmp_path, processes, workers):
    """SIGTERM to the whole process group, as Slurm sends it, at a step without a checkpoint."""
    step = random.Random(f"{processes} {workers}").choice([2, 3, 5, 6, 7, 9])
    process = start(tmp_path, processes, workers, pause=0.2)
    wait_for_step(step, process, tmp_path)
    os.killpg(forked_pid(process.pid), signal.SIGTERM)
    status, output = process.wait(60), (tmp_path / "output.txt").read_text()
    assert status == STOPPED or processes > 1, output  # a launcher has its own exit status
    saved = Checkpoints(tmp_path).load()["step"]
    assert step <= saved < STEPS
    assert f"saved after step {saved} of {STEPS}" in output
    again = start(tmp_path, processes, workers)
    assert same(finish(again, tmp_path), unbroken(processes)[0])
    assert losses(tmp_path) == losses(unbroken(processes)[1])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_two_processes_stop_together_if_one_gets_sigterm(start, unbroken, tmp_path):
    process = start(tmp_path, 2, pause=0.2)
    wait_for_step(3, process, tmp_path)
    ranks(process)[-1].terminate()
    process.wait(60)
    assert 3 <= Checkpoints(tmp_path).load()["step"] < STEPS
    assert same(finish(start(tmp_path, 2), tmp_path), unbroken(2)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("kill_after", [2, 10])
def test_killed_processes_lose_at_most_one_checkpoint_interval(start, unbroken, tmp_path, kill_after):
    process = start(tmp_path, 2, pause=0.2)
    wait_for_step(kill_after, process, tmp_path)
    kill_all(process)
    state = Checkpoints(tmp_path).load()
    assert (state["step"] if state else 0) >= kill_after - 4
    assert same(finish(start(tmp_path, 2), tmp_path), unbroken(2)[0])
    assert losses(tmp_path) == losses(unbroken(2)[1])


@pytest.mark.slow
def test_processes_save_and_end_if_their_launcher_is_killed(start, unbroken, tmp_path, request):
    """Otherwise they would train on, next to a run that is started again."""
    process = start(tmp_path, 2, pause=0.2)
    wait_for_step(2, process, tmp_path)
    orphans = ranks(process)
    process.kill()
    process.wait(60)
    _, alive = psutil.wait_procs(orphans, 60)
    assert not alive
    assert 2 <= Checkpoints(tmp_path).load()["step"] < STEPS
    request.getfixturevalue("warm")  # not earlier: a warm process is not a child of its launcher
    assert same(finish(start(tmp_path, 2), tmp_path), unbroken(2)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_second_run_in_the_same_folder_is_refused(start, unbroken, tmp_path):
    first = start(tmp_path, pause=0.2)
    wait_for_step(1, first, tmp_path)
    psutil.Process(forked_pid(first.pid)).suspend()  # it must not end before the second one is refused
    second = start(tmp_path)
    assert second.wait(60) == 1
    psutil.Process(forked_pid(first.pid)).resume()
    assert f"FolderInUse: another process is working in {tmp_path}" in (tmp_path / "output.txt").read_text()
    assert same(finish(first, tmp_path), unbroken(1)[0])
    assert losses(tmp_path) == losses(unbroken(1)[1])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_the_launcher_restarts_a_lost_process(start, unbroken, tmp_path):
    """With --max_restarts, the launcher restarts the processes, and the run resumes from its checkpoint."""
    process = start(tmp_path, 2, pause=0.2, restarts=3)
    wait_for_step(6, process, tmp_path)
    ranks(process)[-1].kill()
    assert same(finish(process, tmp_path), unbroken(2)[0])
    assert losses(tmp_path) == losses(unbroken(2)[1])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_lost_loader_worker_is_replaced(start, unbroken, tmp_path):
    process = start(tmp_path, 1, workers=2, pause=0.2)
    wait_for_step(3, process, tmp_path)
    workers = [child for child in ranks(process) if "resource_tracker" not in " ".join(child.cmdline())]
    workers[0].kill()
    assert same(finish(process, tmp_path), unbroken(1)[0])
    assert "a loader worker was lost" in (tmp_path / "output.txt").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_run_resumes_with_another_number_of_processes(start, unbroken, tmp_path):
    """Stopped in two processes and resumed in one, it has the same losses up to rounding."""
    process = start(tmp_path, 2, pause=0.2)
    wait_for_step(5, process, tmp_path)
    os.killpg(forked_pid(process.pid), signal.SIGTERM)
    process.wait(60)
    finish(start(tmp_path, 1), tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(unbroken(1)[1]), rel=1e-4)


IN_PROCESS = Compute(checkpoint_every=4, log_every=1, tensorboard=False, threads=1)


@pytest.fixture(scope="module")
def task(recipe, home) -> PretrainTask:
    return PretrainTask(recipe.model, recipe.mask, recipe.pretrain, recipe.data, load_clips(recipe.data, "train"), seed=1)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory) -> tuple[dict[str, torch.Tensor], Path]:
    """Weights and folder of an uninterrupted run in this process."""
    folder = tmp_path_factory.mktemp("whole")
    return train(task, folder, IN_PROCESS, progress=False).model.state_dict(), folder


@pytest.fixture(scope="module")
def interrupted(task, tmp_path_factory) -> Path:
    """The folder of a run that ended after step 10, with checkpoints of steps 8 and 4."""
    folder = tmp_path_factory.mktemp("interrupted")

    class Interrupted(PretrainTask):
        def loss(self, *arguments):
            if len(read_metrics(folder)) == 10:
                raise KeyboardInterrupt
            return super().loss(*arguments)

    task = Interrupted(task.model, task.masks, task.settings, task.data, task.clips, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(task, folder, IN_PROCESS, progress=False)
    return folder


@pytest.fixture
def stopped(task, interrupted, tmp_path) -> PretrainTask:
    """The task of the interrupted run. The test's folder is a copy of the run's folder."""
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return task


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_falls_back_to_the_previous_one(stopped, whole, tmp_path, part):
    newest = Checkpoints(tmp_path).newest
    content = newest.read_bytes()
    newest.write_bytes(content[: int(part * len(content))])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt .*step 4"):
        trained = train(stopped, tmp_path, IN_PROCESS, progress=False)
    assert trained.steps_run == 8
    assert same(trained.model.state_dict(), whole[0])
    assert losses(tmp_path) == losses(whole[1])


def test_unreadable_checkpoints_stop_the_run(stopped, tmp_path):
    kept = Checkpoints(tmp_path)
    for path in (kept.newest, kept.before):
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(UnreadableCheckpoint, match=r"checkpoint\.pt .* nor .*checkpoint\.before\.pt"):
        train(stopped, tmp_path, Compute(tensorboard=False), progress=False)
    kept.drop()
    assert kept.load() is None


@pytest.mark.slow
def test_a_run_stops_on_a_full_disk_and_resumes_elsewhere(start, recipe, unbroken, tmp_path, request):
    """On a file system with space for two and a half checkpoints, the third one does not fit."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    for folder in (run, kept):
        folder.mkdir()
    model = VideoMAE(recipe.model.dimensions, recipe.model.clip)
    checkpoint = 3 * 4 * sum(weight.numel() for weight in model.parameters())
    small = f"mount -t tmpfs -o size={int(2.5 * checkpoint)} tmpfs {run}"
    alone = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if subprocess.run([*alone, small], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    start(run, before=(*alone, f'{small} && "$@"; cp -r {run}/. {kept}', "sh")).wait(240)
    output = (run / "output.txt").read_text()
    assert f"StorageError: cannot write to {run}: the disk is full" in output, output[-2000:]
    assert Checkpoints(kept).load()["step"] == 8
    request.getfixturevalue("warm")  # not earlier: the server of warm processes does not see the small disk
    assert same(finish(start(kept), kept), unbroken(1)[0])
    assert losses(kept) == losses(unbroken(1)[1])


@pytest.mark.parametrize(("where", "name"), [(torch, "save"), (os, "fsync")])
def test_a_full_disk_keeps_existing_checkpoints(tmp_path, monkeypatch, where, name):
    """Some file systems report only when a file is flushed that they are full."""
    kept = Checkpoints(tmp_path)
    kept.save({"step": 4})
    kept.save({"step": 8})

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, name, full)
    with pytest.raises(OSError, match="the disk is full"):
        kept.save({"step": 12})
    monkeypatch.undo()
    assert kept.load()["step"] == 8
    assert torch.load(kept.before, weights_only=True)["step"] == 4


def test_a_broken_checkpoint_never_replaces_a_good_one(tmp_path):
    Checkpoints(tmp_path).save({"step": 4})
    Checkpoints(tmp_path).save({"step": 8})
    again = Checkpoints(tmp_path)
    again.newest.write_bytes(b"cut")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt .*step 4"):
        again.load()
    for step, before in ((12, 4), (16, 12)):
        again.save({"step": step})
        assert torch.load(again.newest, weights_only=True)["step"] == step
        assert torch.load(again.before, weights_only=True)["step"] == before
