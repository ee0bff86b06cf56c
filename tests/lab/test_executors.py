"""Executors: stages in processes that each see one device, and as jobs of submitit. Slurm itself: tests/slurm."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.executors import StageFailed, visible_devices
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Job, Stage, pretrain_stage
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute, ImpossibleHere
from vmae_lab.utils.processes import ProcessLost

slow = pytest.mark.slow


class DeviceStage(Stage):
    """Records the devices that it sees, and when it runs."""

    kind = "device"

    number: int
    seconds: float = 0.0
    fails: bool = False
    killed: bool = False

    def run(self, job: Job) -> dict:
        began = time.time()
        time.sleep(self.seconds)
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
def test_each_job_has_a_device_of_its_own(tmp_path, monkeypatch):
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
def test_jobs_share_devices_evenly_by_default(tmp_path, monkeypatch):
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


@slow
def test_failed_stages_do_not_stop_independent_ones(tmp_path, capsys):
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
def test_a_killed_process_is_replaced(tmp_path):
    store, stages = RunStore(tmp_path), [DeviceStage(number=0, killed=True), DeviceStage(number=1)]
    with pytest.raises(ProcessLost, match="was killed") as caught:
        store.complete_all(stages, Compute(executor="processes"))
    assert caught.value.__notes__ == [f"in {stages[0].key}"]
    assert store.finished(stages[1])
