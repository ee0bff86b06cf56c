"""`vmae-lab doctor`: it passes on this machine, and finds what is missing, full, too small or too slow."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from vmae_lab.cli import main
from vmae_lab.data.memmap_dataset import MemmapDataset
from vmae_lab.lab import doctor
from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.lab.scales import read_scale
from vmae_lab.lab.stages import measure

ROOT = Path(__file__).parents[2]
CHECKS = [
    "packages", "decoders", "devices", "all-reduce", "open files", "stage store", "cache of data", "shared memory",
    "kill and resume", "training step", "data loader",
]  # fmt: skip
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def recipe(smoke, project, monkeypatch) -> Recipe:
    monkeypatch.setenv("VMAE_LAB_HOME", str(project / "home"))  # without embedded data
    monkeypatch.setattr(doctor, "LOADER_S", 0.3)
    return build_recipe({**smoke, "arms": ["none"]})


@pytest.mark.slow
def test_it_passes_on_this_machine(project, capsys, warm):
    """All checks, with one table on the screen and the same results in a file."""
    assert main(["doctor", str(ROOT / "params" / "smoke.yaml"), "--json", str(project / "new" / "doctor.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["check", "result", "figure", "remedy"]
    written = json.loads((project / "new" / "doctor.json").read_text())
    found = {finding["check"]: finding for finding in written["checks"]}
    assert list(found) == CHECKS
    assert {finding["result"] for finding in found.values()} <= {"ok", "warning"}
    assert all(name in printed for name in CHECKS)
    assert "2 CPU processes with gloo" in found["all-reduce"]["figure"] or "NCCL" in found["all-reduce"]["figure"]
    assert "resumed from step 10: all weights are equal" in found["kill and resume"]["figure"]
    assert not [path for path in (project / "runs").iterdir() if path.name.startswith(".doctor")]


@pytest.mark.slow
def test_a_missing_decoder_fails_its_check_and_not_the_command():
    """In a process in which decord cannot be imported, as if it were not installed."""
    script = """
import sys

class Blocked:
    def find_spec(self, name, *_):
        if name == "decord":
            raise ModuleNotFoundError("No module named 'decord'", name=name)

sys.meta_path.insert(0, Blocked())
from vmae_lab.cli import main
from vmae_lab.lab import doctor
doctor.all_reduce = doctor.kill_and_resume = lambda: doctor.Outcome("ok", "not run")
sys.exit(main(["doctor"]))
"""
    environment = {**os.environ, "VMAE_LAB_PROJECT": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    rows = {line[:15].strip(): line[15:] for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert "failed" in rows["decoders"]
    assert "decord cannot be imported" in rows["decoders"]
    assert "not checked" in rows["data loader"]
    assert "ok" in rows["devices"]


@pytest.mark.parametrize(("package", "check"), [("decord", "decoders"), ("av", "decoders"), ("timm", "packages")])
def test_a_blocked_import_is_reported(package, check, monkeypatch, recipe):
    def failing(*_: object) -> doctor.Outcome:
        return doctor.Outcome("ok", "not run")

    for name in ("all_reduce", "kill_and_resume", "training_step", "data_loader"):
        monkeypatch.setattr(doctor, name, failing)
    monkeypatch.setitem(sys.modules, package, None)
    found = {finding.check: finding for finding in doctor.examine(lambda: recipe)}
    assert found[check].result == "failed"
    assert package in found[check].figure
    assert "pip install" in found[check].remedy


def test_decoders_read_generated_videos():
    outcome = doctor.decoders()
    assert outcome.result == "ok", outcome
    assert "pyav, decord" in outcome.figure


def test_a_decoder_that_returns_wrong_frames_fails(monkeypatch):
    from vmae_lab.data.decoding import decoders

    def late(*arguments):
        frames, indices = original(*arguments)
        return frames[[0, *range(len(frames) - 1)]], indices

    original = decoders.READERS["decord"]
    monkeypatch.setitem(decoders.READERS, "decord", late)
    outcome = doctor.decoders()
    assert outcome.result == "failed"
    assert "decord, small.mp4: wrong frames" in outcome.figure
    assert "pyav" not in outcome.figure


# ---------------------------------------------------------------------------------------------------------------------------
# Disks, shared memory and limits


@pytest.mark.parametrize(("free_mib", "result"), [(50, "failed"), (80, "failed"), (10**6, "ok")])
def test_a_full_disk_fails(recipe, monkeypatch, free_mib, result):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free_mib << 20))
    monkeypatch.setattr(doctor, "SLOW_DISK", 0)
    # About 30 MiB are needed for weights and checkpoints, and 64 MiB to measure the speed.
    outcome = doctor.stage_store(recipe)
    assert outcome.result == result, outcome
    assert ("the disk is full" in outcome.figure) == (result == "failed")


def test_embedded_data_that_is_not_written_yet_needs_space(recipe):
    assert "; 0 MiB needed" not in doctor.cache_of_data(recipe).figure


def test_a_folder_without_permission_fails(recipe, project, monkeypatch):
    (project / "runs").write_text("a file")
    found = {finding.check: finding for finding in doctor_of_disks(recipe, monkeypatch)}
    assert found["stage store"].result == "failed"
    assert "StorageError" in found["stage store"].figure
    assert "VMAE_LAB_PROJECT" in found["stage store"].remedy


def doctor_of_disks(recipe: Recipe, monkeypatch) -> list[doctor.Finding]:
    """The findings of all checks that take no long."""
    for name in ("packages", "decoders", "devices", "all_reduce", "kill_and_resume", "training_step", "data_loader"):
        monkeypatch.setattr(doctor, name, lambda *_: doctor.Outcome("ok", "not run"))
    return doctor.examine(lambda: recipe)


@pytest.mark.parametrize(("free_mib", "result"), [(1, "failed"), (64, "ok")])
def test_too_small_shared_memory_fails(recipe, monkeypatch, free_mib, result):
    workers = recipe.with_overrides({"compute.workers": 2, "pretrain.batch_size": 64})
    monkeypatch.setattr(doctor, "SHARED_MEMORY", Path.cwd())  # not every system has /dev/shm
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free_mib << 20))
    outcome = doctor.shared_memory(workers)
    assert outcome.result == result, outcome
    # Two batches of 64 clips of 3 x 8 x 24 x 24 bytes, in four parts
    assert f"{2 * 64 * 3 * 8 * 24 * 24 / 2**20:.2g} MiB needed" in outcome.figure
    assert ("--shm-size" in outcome.remedy) == (result == "failed")
    assert doctor.shared_memory(recipe).figure == "not used: compute.workers is 0"


@pytest.mark.slow
def test_small_file_systems_fail(recipe, tmp_path):
    """A real disk and a real /dev/shm of 1 MiB, mounted in a namespace of their own."""
    enter = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not allow a user to mount file systems")
    workers = recipe.with_overrides({"compute.workers": 2, "pretrain.batch_size": 64})
    (tmp_path / "recipe.json").write_text(json.dumps(workers.model_dump(mode="json")))
    (tmp_path / "runs").mkdir()
    script = f"""
import json
from vmae_lab.lab import doctor
from vmae_lab.lab.config import build_recipe
recipe = build_recipe(json.load(open("{tmp_path}/recipe.json")))
print(json.dumps([check(recipe).result for check in (doctor.stage_store, doctor.shared_memory)]))
"""
    mounts = f"mount -t tmpfs -o size=1m none {tmp_path}/runs && mount -t tmpfs -o size=1m none /dev/shm && "
    command = [*enter, "sh", "-c", mounts + 'exec "$0" -c "$1"', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["failed", "failed"]


def test_a_low_limit_of_open_files_fails(recipe, monkeypatch):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 4096))
    outcome = doctor.open_files(recipe)
    assert outcome.result == "failed"
    assert "limit 256" in outcome.figure


# ---------------------------------------------------------------------------------------------------------------------------
# Devices and speed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "result"), [("smoke", "ok"), ("demo", "ok"), ("gpu", "warning"), ("paper", "warning"), ("paper/k400", "warning")]
)
def test_a_recipe_for_gpus_on_a_machine_without_gpu_is_a_warning(monkeypatch, scale, result):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "Path", lambda _: Path("no GPU"))
    outcome = doctor.devices(build_recipe({**read_scale(scale, [ROOT / "params"]), "arms": ["none"]}))
    assert outcome.result == result
    assert "no GPU" in outcome.figure
    assert ("a machine with a GPU" in outcome.remedy) == (result == "warning")


def test_devices_that_do_not_answer_fail(monkeypatch):
    monkeypatch.setattr(doctor, "ANSWER_S", 0.05)
    outcome = doctor.all_reduce()
    assert outcome.result == "failed"
    assert "no answer from" in outcome.figure


@pytest.mark.parametrize(("rate", "result"), [(90, "failed"), (110, "warning"), (130, "ok")])
def test_a_loader_slower_than_the_device_fails(recipe, monkeypatch, rate, result):
    monkeypatch.setattr(doctor, "loader_rate", lambda recipe: rate)
    assert doctor.data_loader(recipe, 100.0).result == result
    shared = recipe.with_overrides({"compute.jobs": 4})
    assert doctor.data_loader(shared, 400.0).result == result, "four trainings share the device"


def test_without_the_device_s_rate_the_loader_is_only_measured(recipe, monkeypatch):
    monkeypatch.setattr(doctor, "loader_rate", lambda recipe: 100)
    outcome = doctor.data_loader(recipe, float("nan"))
    assert outcome.result == "warning"
    assert outcome.rate == 100


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_slow_dataset_is_measured(recipe, monkeypatch, workers):
    """Each clip takes 20 ms, so a process loads at most 50 clips per second, where the device needs 500."""

    class Slow(MemmapDataset):
        def video(self, *arguments):
            time.sleep(0.02)
            return super().video(*arguments)

    def slow_clips(*arguments) -> Slow:
        return Slow(**vars(original(*arguments)))

    original = doctor.noise_clips
    monkeypatch.setattr(doctor, "noise_clips", slow_clips)
    outcome = doctor.data_loader(recipe.with_overrides({"compute.workers": workers}), 500.0)
    assert outcome.result == "failed"
    assert 0 < outcome.rate <= 50 * max(1, workers) * 1.5  # some batches of workers may be ready at the start
    assert f"with {workers} workers; the device needs 500" in outcome.figure


def test_a_batch_that_does_not_fit_fails(recipe, monkeypatch):
    monkeypatch.setattr(measure, "measure_step", lambda *_, **__: {"fits": False})
    assert doctor.training_step(recipe).result == "failed"
    timed = {"fits": True, "seconds_per_step": 0.5, "peak_gib": 1.0}
    monkeypatch.setattr(measure, "measure_step", lambda *_, **__: timed)
    assert doctor.training_step(recipe).rate == recipe.pretrain.batch_size / 0.5
    monkeypatch.setattr(measure, "largest_batch", lambda *_: 2)
    outcome = doctor.training_step(recipe)
    assert (outcome.result, outcome.rate) == ("failed", 2 / 0.5)
    saving = recipe.with_overrides({"compute.checkpoint_activations": True})
    assert doctor.training_step(saving).result == "warning", "the estimate does not include what this saves"


def test_a_batch_is_divided_among_the_processes_of_the_configuration(recipe, monkeypatch):
    sizes = []
    monkeypatch.setenv("VMAE_LAB_PROJECT", str(ROOT))

    def timed(model, masks, batch, steps):
        sizes.append(batch)
        return {"fits": True, "seconds_per_step": 1.0, "peak_gib": 1.0}

    monkeypatch.setattr(measure, "measure_step", timed)
    for changes in ({}, {"pretrain.accumulation": 2}, {"compute.launch": "two_processes"}):
        doctor.training_step(recipe.with_overrides(changes))
    assert sizes == [4, 2, 2]


# ---------------------------------------------------------------------------------------------------------------------------
# The command


def test_wrong_arguments_are_usage_errors(project, capsys):
    assert main(["doctor", "none"]) == 2
    assert main(["doctor", "--json", "table.csv"]) == 2
    assert main(["doctor", str(ROOT / "params" / "smoke.yaml"), "-p", "pretrain.stepps", "1"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_a_failed_check_is_the_exit_status(recipe, project, monkeypatch, capsys):
    found = [doctor.Finding("devices", "ok", "one", "", 1.0), doctor.Finding("decoders", "failed", "none", "install one", 1.0)]
    monkeypatch.setattr(doctor, "examine", lambda read_recipe: found)
    assert main(["doctor", "--json", str(project / "doctor.json")]) == 1
    assert "2 checks for smoke in 0 s: 1 ok, 1 failed" in capsys.readouterr().out
    assert [row["result"] for row in json.loads((project / "doctor.json").read_text())["checks"]] == ["ok", "failed"]
    assert main(["doctor"]) == 1
    found.pop()
    assert main(["doctor"]) == 0
