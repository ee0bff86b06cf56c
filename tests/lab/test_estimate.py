"""The estimated cost of a plan: number of stages, bytes on disk, and predicted and actual times."""

import json
import re
from pathlib import Path

import pytest
import yaml

from vmae_lab.lab import estimate
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.estimate import (
    H200,
    DataWork,
    Machine,
    data_work,
    plan_cost,
    plan_summary,
    predicted_and_actual,
    this_machine,
)
from vmae_lab.lab.experiments import plan_notebook
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.experiments.ablation_progressive_training import ARMS as PROGRESSIVE
from vmae_lab.lab.run_store import RunStore
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
from vmae_lab.lab.stages.cost import CLIP_S, RESIZE_PIXEL_S, Work, ridge_macs
from vmae_lab.models.flops import classify_cost
from vmae_lab.training.settings import Compute


@pytest.fixture
def plan(smoke):
    recipe = build_recipe({**smoke, "arms": list(PROGRESSIVE), "seeds": [0]}, PROGRESSIVE)
    return plan_notebook("ablation_progressive_training", recipe)


def stage(plan, kind: str) -> Stage:
    return next(stage for stage in plan.stages if stage.kind == kind)


def weights_in(path) -> int:
    """Return the bytes of the tensors in a safetensors file, without its header."""
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + header])
    return len(data) - 8 - header


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_estimated_disk_space_is_the_size_of_the_weights(plan, home, tmp_path, kind):
    store, run = RunStore(tmp_path), stage(plan, kind)
    if kind == "finetune":
        run = plan.first("scratch").measures["finetune@0.25"]
    store.complete(run, Compute(threads=1, tensorboard=False), progress=False)
    assert (store.folder(run) / WEIGHTS).is_file()
    assert sum(map(weights_in, store.folder(run).glob("*.safetensors"))) == run.disk_bytes, "with intermediate weights"


def test_the_work_of_a_stage_by_hand(plan):
    """Counted in forward passes of a clip: 32 held-out clips (2 sources x 8 classes x 2); backward costs two passes."""
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
        assert made.macs == passes * one, made.kind
    step = pretrain_stage(recipe.with_overrides({"pretrain.steps": 3}), 0).macs / 3
    assert pretrain_stage(recipe.with_overrides({"pretrain.steps": 9}), 0).macs == 9 * step


@pytest.fixture
def unwritten(tmp_path, monkeypatch):
    """The embedded data is not written; a pixel takes a microsecond."""
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(estimate, "pixel_seconds", lambda world: 1e-6)
    return tmp_path / "home"


def test_time_and_disk_of_a_plan_by_hand(plan, tmp_path, unwritten):
    """Two stages at a time take half as long. Each keeps a checkpoint with the largest weights and their two moments."""
    two = plan_notebook("ablation_progressive_training", plan.recipe.with_overrides({"compute.jobs": 2}))
    rate = 1e9
    cost = plan_cost(two, RunStore(tmp_path), this_machine(rate))
    world = plan.recipe.data.motionworld
    seconds = sum(this_machine(rate).seconds(made.work, workers=0) for made in two.stages)
    pixels = world.clips() * world.frames * world.side**2
    assert cost.part_minutes["data"] == pytest.approx(pixels * 1e-6 / 2 / 60)
    assert cost.minutes == pytest.approx((seconds + pixels * 1e-6) / 60 / 2)
    assert set(cost.part_minutes) == {"data", "pretrain", "post_pretrain", "finetune"}
    sizes = [made.disk_bytes for made in two.stages]
    assert cost.disk_bytes == sum(sizes) + 3 * 2 * max(sizes) + data_work(two.recipe, two.stages).disk_bytes


def test_data_that_is_written_costs_nothing(plan, unwritten):
    world, side = plan.recipe.data.motionworld, plan.recipe.data.resident_side
    assert data_work(plan.recipe, plan.stages).clips == world.clips()
    folder = unwritten / f"motionworld-{world.fingerprint}"
    folder.mkdir(parents=True)
    assert data_work(plan.recipe, plan.stages).clips == world.clips(), "not decoded yet"
    (folder / f"decoded-{side}.npy").touch()
    assert data_work(plan.recipe, plan.stages) == DataWork()


def test_scenes_and_untrimmed_videos_are_data_too(smoke, unwritten):
    recipe = build_recipe({**smoke, "arms": ["pretrained"], "seeds": [0]})
    scenes, videos = recipe.detect.scenes.motionworld, recipe.localise.videos.motionworld
    clips = recipe.data.motionworld.clips()
    for name, given in (("downstream_spatial_detection", scenes), ("downstream_temporal_detection", videos)):
        stages = plan_notebook(name, recipe).stages
        assert data_work(recipe, stages).clips == clips + given.train + given.validation + given.test


def test_a_training_takes_what_its_slowest_part_takes():
    machine = Machine("one", training=10.0, prediction=5.0, readout=2.0, layer_step_s=0.5)
    assert machine.seconds(Work(training=100, layer_steps=4, loading_s=6), workers=2) == 10
    assert machine.seconds(Work(training=100, layer_steps=30, loading_s=6), workers=2) == 15
    assert machine.seconds(Work(training=100, layer_steps=4, loading_s=60), workers=2) == 30
    assert machine.seconds(Work(prediction=100, readout=8, own_s=7, reading_s=6), workers=2) == 20 + 4 + 7 + 3


def test_stages_that_share_a_device_wait_for_it(plan):
    compute = Compute(jobs=4, workers=1)
    works = [Work(training=10, own_s=2)] * 8
    apart, shared = (Machine("one", 1.0, 1.0, 1.0, one_device=one_device) for one_device in (False, True))
    assert apart.wall_seconds(works, compute) == 8 * 12 / 4
    assert shared.wall_seconds(works, compute) == 8 * 10
    assert shared.wall_seconds([Work(training=1, own_s=9)] * 8, compute) == 8 * 10 / 4
    assert shared.bound_by_loading([Work(training=10, loading_s=41)] * 8, compute)
    assert not shared.bound_by_loading([Work(training=10, loading_s=39)] * 8, compute)


def test_the_work_of_a_probe_by_hand(plan):
    """The work includes readouts and reading clips. `macs` counts only the passes through the encoder."""
    recipe = plan.recipe.with_overrides({"evaluate.probe.probes": ["ridge", "linear_mean", "knn"], "evaluate.probe.draws": 2})
    done, model = probe_stage(recipe, initial_stage(recipe, 0), 0).work, recipe.model
    columns = model.clip.tokens * model.dimensions.width
    assert done.readout == 2 * (ridge_macs(16, columns, 32, 8) + ridge_macs(16, model.dimensions.width, 32, 8))
    reading_s = CLIP_S + model.frames * model.side**2 * RESIZE_PIXEL_S
    assert done.reading_s == pytest.approx((16 * 2 + 32) * reading_s)
    assert (done.training, done.layer_steps) == (0, 0)
    pretrained = probe_stage(recipe, pretrain_stage(recipe, 0), 0).work
    assert pretrained.prediction > done.prediction, "reconstruction"
    assert pretrained.reading_s == pytest.approx((16 * 2 + 2 * 32) * reading_s)
    attentive = recipe.with_overrides({"evaluate.probe.probes": ["attentive"]})
    assert probe_stage(attentive, initial_stage(recipe, 0), 0).work.layer_steps > 0


def test_ridge_is_counted_by_the_smaller_of_rows_and_columns():
    """A Gram matrix of 160 clips, not a covariance matrix of 602,112 columns."""
    assert ridge_macs(160, 602_112, 1440, 8) < 3e10
    assert ridge_macs(6000, 432, 0, 8) == 6000 * 432 * 432 + 10 * 432**3 + 6000 * 432 * 8


def test_the_rendering_of_every_source_is_timed(plan, monkeypatch):
    world, timed = plan.recipe.data.motionworld, []
    render = estimate.render_clip
    monkeypatch.setattr(estimate, "render_clip", lambda source, *rest: timed.append(source) or render(source, *rest))
    estimate.pixel_seconds.cache_clear()
    assert 1e-9 < estimate.pixel_seconds(world) < 1e-3
    assert set(timed) == set(world.sources)


def test_the_scale_for_a_gpu_is_planned_for_less_than_an_hour(tmp_path, monkeypatch):
    """Each part has its own line. A pixel takes as long as on the machine in the header of the file."""
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(estimate, "pixel_seconds", lambda world: 3.5e-7)
    parameters = yaml.safe_load((Path(__file__).parents[2] / "params" / "gpu.yaml").read_text(encoding="utf-8"))
    recipe = build_recipe({"arms": list(DECODER_MASKS), **parameters}, DECODER_MASKS)
    words = plan_summary(plan_notebook("ablation_decoder_mask", recipe), RunStore(tmp_path / "runs"))
    total = re.search(rf"left to run: .* about (\d+) minutes on {re.escape(H200.name)}", words)
    assert 10 < int(total[1]) < 60
    parts = dict(re.findall(r"^ *(\w+): .*, (\d+) (?:minutes|seconds)", words, re.MULTILINE))
    assert {"data", "pretrain", "probe", "finetune", "controls"} <= set(parts)
    assert recipe.compute.processes == 16


def test_a_plan_reports_finished_and_remaining_stages(plan, tmp_path):
    store, kinds = RunStore(tmp_path), {"pretrain": 1, "post_pretrain": 2, "finetune": 8}
    fresh = plan_cost(plan, store, this_machine(1e9))
    assert (fresh.stages, fresh.reused) == (kinds, {})
    assert "finished before and reused: none; to run: " in fresh.sentence()
    done = stage(plan, "pretrain")
    store.folder(done).mkdir()
    (store.folder(done) / "result.json").write_text("{}")
    later = plan_cost(plan, store, this_machine(1e9))
    assert later.reused == {"pretrain": 1}
    assert later.macs == fresh.macs - done.macs
    assert "finished before and reused: 1 pretrain; to run: " in later.sentence()


def test_predicted_and_actual_times(plan, tmp_path):
    """At half of the assumed rate, everything takes twice as long."""
    store, rate = RunStore(tmp_path), 1e9
    for one in plan.stages:
        store.folder(one).mkdir()
        seconds = this_machine(rate).seconds(one.work, workers=0)
        (store.folder(one) / "result.json").write_text(json.dumps({"seconds": 2 * seconds}))
    table = predicted_and_actual(plan, store, rate).set_index("kind")
    assert table.stages.to_dict() == {"pretrain": 1, "post_pretrain": 2, "finetune": 8, "all": 11}
    assert set(table["taken / predicted"]) == {"2.00"}
