"""What a plan is said to cost: counted stages, bytes that are really written, and predictions set beside what was taken."""

import json

import pytest

from vmae_lab.lab.arms import PROGRESSIVE
from vmae_lab.lab.cost import plan_cost, predicted_and_actual, stage_bytes, stage_macs
from vmae_lab.lab.recipe import build_recipe
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.stages import WEIGHTS, Stage
from vmae_lab.lab.workbook import plan_notebook
from vmae_lab.training.settings import Compute


@pytest.fixture
def plan(smoke):
    recipe = build_recipe({**smoke, "arms": list(PROGRESSIVE), "seeds": [0]}, PROGRESSIVE)
    return plan_notebook("ablation_progressive_training", recipe)


def stage(plan, kind: str) -> Stage:
    return next(stage for stage in plan.stages if stage.kind == kind)


def weights_in(path) -> int:
    """Bytes of the tensors in a safetensors file: what is behind its header."""
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + header])
    return len(data) - 8 - header


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_the_disk_that_is_announced_is_what_the_weights_take(plan, home, tmp_path, kind):
    store, one = RunStore(tmp_path), stage(plan, kind)
    if kind == "finetune":
        one = plan.first("scratch").measures["finetune@0.25"]
    store.complete(one, Compute(threads=1, tensorboard=False), progress=False)
    assert weights_in(store.folder(one) / WEIGHTS) == stage_bytes(one)


def test_a_plan_says_what_is_finished_and_what_is_left(plan, tmp_path):
    store, kinds = RunStore(tmp_path), {"pretrain": 1, "post_pretrain": 2, "finetune": 8}
    fresh = plan_cost(plan, store, rate=1e9)
    assert (fresh.stages, fresh.reused) == (kinds, {})
    assert "finished before and reused: none; to run: " in fresh.sentence()
    done = stage(plan, "pretrain")
    store.folder(done).mkdir()
    (store.folder(done) / "result.json").write_text("{}")
    later = plan_cost(plan, store, rate=1e9)
    assert later.reused == {"pretrain": 1}
    assert later.macs == fresh.macs - stage_macs(done)
    assert "finished before and reused: 1 pretrain; to run: " in later.sentence()


def test_predicted_times_stand_beside_those_taken(plan, tmp_path):
    """At half of the rate that was assumed, everything takes twice as long."""
    store, rate = RunStore(tmp_path), 1e9
    for one in plan.stages:
        store.folder(one).mkdir()
        (store.folder(one) / "result.json").write_text(json.dumps({"seconds": 2 * stage_macs(one) / rate}))
    table = predicted_and_actual(plan, store, rate).set_index("kind")
    assert table.stages.to_dict() == {"pretrain": 1, "post_pretrain": 2, "finetune": 8, "all": 11}
    assert set(table["taken / predicted"]) == {"2.00"}
