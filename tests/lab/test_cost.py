"""What a plan is said to cost: counted stages, bytes that are really written, and predictions set beside what was taken."""

import json

import pytest

from vmae_lab.lab.arms import PROGRESSIVE
from vmae_lab.lab.cost import plan_cost, predicted_and_actual, stage_bytes, stage_macs
from vmae_lab.lab.recipe import build_recipe
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.stages import (
    WEIGHTS,
    Stage,
    finetune_stage,
    initial_stage,
    post_pretrain_stage,
    pretrain_stage,
    probe_stage,
    views_stage,
)
from vmae_lab.lab.workbook import plan_notebook
from vmae_lab.models.flops import classify_cost
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


def test_the_work_of_a_stage_by_hand(plan):
    """In passes of a clip through the classifier: 32 held-out ones of two sources, 8 classes, 2 clips each; backward as two."""
    recipe = plan.recipe.with_overrides({"evaluate.views.clips": 5, "evaluate.views.crops": 3, "evaluate.probe.draws": 2})
    one = classify_cost(recipe.model.dimensions, recipe.model.clip, 8).macs
    tuned, encoder = finetune_stage(recipe, None, 0), initial_stage(recipe, 0)
    for made, passes in (
        (tuned, 3 * 4 * 4 + 32),  # 4 steps of 4 clips
        (post_pretrain_stage(recipe, None, 0), 3 * 4 * 4 + 32),
        (views_stage(recipe, tuned, 0), 32 * 5 * 3),
        (probe_stage(recipe, encoder, 0), 16 * 2 + 32),  # 16 labels
        (encoder, 0),
    ):
        assert stage_macs(made) == passes * one, made.kind
    step = stage_macs(pretrain_stage(recipe.with_overrides({"pretrain.steps": 3}), 0)) / 3
    assert stage_macs(pretrain_stage(recipe.with_overrides({"pretrain.steps": 9}), 0)) == 9 * step


def test_time_and_disk_of_a_plan_by_hand(plan, tmp_path):
    """Two side by side take half as long, and keep a checkpoint of the largest weights and their two moments each."""
    two = plan_notebook("ablation_progressive_training", plan.recipe.with_overrides({"compute.jobs": 2}))
    cost, rate = plan_cost(two, RunStore(tmp_path), rate=1e9), 1e9
    assert cost.minutes == pytest.approx(sum(map(stage_macs, two.stages)) / rate / 60 / 2)
    sizes = [stage_bytes(made) for made in two.stages]
    assert cost.disk_bytes == sum(sizes) + 3 * 2 * max(sizes)


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
