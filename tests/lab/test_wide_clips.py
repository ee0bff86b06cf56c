"""Everything at smoke scale with clips of 24 x 32 pixels: plans of all notebooks, and a run of every kind of stage."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_videos import write_video
from PIL import Image

from vmae_lab.cli import main
from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.lab.estimate import stage_table
from vmae_lab.lab.experiments import EXPERIMENTS, common, plan_notebook
from vmae_lab.lab.run_store import RunStore, in_order
from vmae_lab.lab.stages import (
    controls_stage,
    detect_stage,
    distill_stage,
    finetune_stage,
    initial_stage,
    localise_stage,
    opened_stage,
    post_pretrain_stage,
    pretrain_stage,
    probe_stage,
    views_stage,
)
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.checkpoints import open_checkpoint
from vmae_lab.models.videomae import VideoMAE

WIDE = {"model.side": [24, 32], "detect.side": [24, 32], "detect.augment.short_side": [32, 36]}


def wide_recipe(smoke: dict, arms=("none",), **override) -> Recipe:
    return build_recipe({**smoke, "arms": list(arms), "override": {**WIDE, **override}})


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_notebook_plans(smoke, name):
    plan = plan_notebook(name, wide_recipe(smoke, EXPERIMENTS[name].arms))
    assert not plan.impossible
    square = plan_notebook(name, build_recipe({**smoke, "arms": list(EXPERIMENTS[name].arms)}))
    assert all(stage.work.own_s + stage.work.reading_s >= 0 for stage in plan.stages), "costs are known"
    assert stage_table(plan).stages.tolist() == stage_table(square).stages.tolist()
    clips = {stage.model.clip.grid for stage in plan.stages if hasattr(stage, "model")}
    assert clips <= {(4, 6, 8), (8, 14, 14)}, "the latter to measure steps"
    if name != "cost_of_dual_masking":
        assert sum(stage.macs for stage in plan.stages) > sum(stage.macs for stage in square.stages)


def test_pictures_of_masks(smoke):
    plan = plan_notebook("ablation_decoder_mask", wide_recipe(smoke, EXPERIMENTS["ablation_decoder_mask"].arms))
    assert common.mask_pictures(plan).notna().all(axis=None)
    assert "8 x 24 x 32 pixels" in common.how_made(plan)


@pytest.mark.slow
def test_every_kind_of_stage_runs(smoke, home, tmp_path):
    recipe = wide_recipe(smoke)
    store = RunStore(tmp_path)
    pretrained = pretrain_stage(recipe, 0)
    teacher = post_pretrain_stage(recipe, pretrained, 0)
    tuned = finetune_stage(recipe, pretrained, 0)
    mixing = recipe.with_overrides({"evaluate.finetune.augment": {}, "evaluate.finetune.mix": {}})
    detector, localiser = detect_stage(recipe, pretrained, 0), localise_stage(recipe, pretrained, 0)
    stages = [
        pretrained, initial_stage(recipe, 0), probe_stage(recipe, pretrained, 0), tuned, finetune_stage(mixing, pretrained, 0),
        views_stage(recipe, tuned, 0), teacher, distill_stage(recipe, teacher, pretrained, 0), detector, localiser,
        controls_stage(recipe),
    ]  # fmt: skip
    for stage in in_order(stages):
        store.complete(stage, recipe.compute, progress=False)
        result = store.result(stage)
        assert all(np.isfinite(value) for value in result["metrics"].values()), stage.key
        assert not stage.parameters or stage.kind == "localise" or (store.folder(stage) / "model.safetensors").is_file()
    saved = VideoMAE.from_pretrained(store.folder(pretrained))
    assert (saved.clip.side, saved.clip.grid) == ((24, 32), (4, 6, 8))
    assert ActionDetector.from_pretrained(store.folder(detector)).clip.side == (24, 32)
    settings = json.loads((store.folder(localiser.inputs[0]) / "features" / "features.json").read_text())
    assert settings["clip"]["side"] == [24, 32]


@pytest.mark.slow
def test_a_square_checkpoint_is_continued_and_fine_tuned(smoke, home, tmp_path):
    """With interpolated positions, which every later stage keeps."""
    square = build_recipe({**smoke, "arms": ["none"]})
    store = RunStore(tmp_path)
    first = pretrain_stage(square, 0)
    store.complete(first, square.compute, progress=False)
    recipe = wide_recipe(smoke)
    opened = opened_stage(recipe, open_checkpoint(store.folder(first)))
    continued = pretrain_stage(recipe, 0, opened)
    tuned = finetune_stage(recipe, continued, 0)
    stages = [
        continued,
        probe_stage(recipe, continued, 0),
        tuned,
        views_stage(recipe, tuned, 0),
        detect_stage(recipe, opened, 0),
    ]
    for stage in in_order(stages):
        store.complete(stage, recipe.compute, progress=False)
        clip = open_checkpoint(store.folder(stage)).config.clip if stage.parameters else recipe.model.clip
        assert clip.positions_from == ((4, 6, 6) if stage.parameters else None)
    assert store.result(tuned)["metrics"]["finetune"] >= 0


@pytest.mark.slow
def test_commands_with_wide_clips(smoke, home, tmp_path, monkeypatch, capsys):
    """predict, features and reconstruct, with a model of wide clips and with a square one at another shape."""
    monkeypatch.chdir(tmp_path)
    recipe, store = wide_recipe(smoke), RunStore(tmp_path / "runs")
    pretrained = pretrain_stage(recipe, 0)
    tuned = finetune_stage(recipe.with_overrides({"evaluate.finetune.readout": "mean"}), pretrained, 0)
    for stage in in_order([tuned]):
        store.complete(stage, recipe.compute, progress=False)
    write_video(Path("video.mp4"), 40)
    model, decoder = str(store.folder(tuned)), str(store.folder(pretrained))
    assert main(["predict", model, "video.mp4", "--clips", "1"]) == 0
    assert main(["predict", model, "video.mp4", "--clips", "1", "--side", "32x24", "--positions", "recompute"]) == 0
    assert main(["predict", model, "video.mp4", "--along", "1", "--crops", "2"]) == 0
    assert main(["predict", model, "video.mp4", "--side", "24x"]) == 2
    assert "--side" in capsys.readouterr().err
    assert main(["predict", model, "video.mp4", "--side", "24x30"]) == 2
    assert "cannot be split" in capsys.readouterr().err
    Path("list.csv").write_text("path\nvideo.mp4\n")
    assert main(["features", "list.csv", "--model", decoder, "--side", "16x24"]) == 0
    assert np.load("list.csv.features/video.mp4.npy").shape[1] == recipe.model.dimensions.width
    assert main(["reconstruct", decoder, "video.mp4", "--stride", "1"]) == 0
    with Image.open("reconstruction.gif") as loop:
        assert loop.n_frames == 8
    assert main(["reconstruct", decoder, "video.mp4", "--side", "32x16", "--frames", "4"]) == 0
    assert "64 patches" in capsys.readouterr().out
    assert main(["reconstruct", decoder, "video.mp4", "--side", "32x18"]) == 2
    assert "cannot be split" in capsys.readouterr().err
