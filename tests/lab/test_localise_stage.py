"""The temporal detection stages: settings, files, tables and texts."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from vmae_lab.data.activitynet import read_predictions
from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.experiments import downstream_temporal_detection as temporal_detection
from vmae_lab.lab.experiments import plan_notebook
from vmae_lab.lab.experiments.common import Results
from vmae_lab.lab.experiments.downstream_temporal_detection import ARMS as TEMPORAL_DETECTION
from vmae_lab.lab.run_store import RunStore, in_order
from vmae_lab.lab.stages import FEATURES, SEGMENTS, features_stage, initial_stage, localise_stage, pretrain_stage
from vmae_lab.lab.stages.inputs import load_untrimmed
from vmae_lab.lab.stages.localise import actionformer_macs, score_segments
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape
from vmae_lab.models.flops import classify_cost


@pytest.fixture
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": list(TEMPORAL_DETECTION)}, TEMPORAL_DETECTION)


@pytest.mark.slow
def test_features_are_extracted_and_a_detector_trained_evaluated_and_saved(recipe, home, tmp_path):
    store = RunStore(tmp_path)
    stage = localise_stage(recipe, initial_stage(recipe, 0), 0)
    assert [one.kind for one in in_order([stage])] == ["initial", "features", "features", "localise"]
    for one in in_order([stage]):
        store.complete(one, recipe.compute, progress=False)
    result, folder = store.result(stage), store.folder(stage)
    overlaps = {f"segment_map_{at}" for at in (30, 40, 50, 60, 70)}
    assert set(result["metrics"]) == {"segment_map", *overlaps}
    assert (result["videos"], result["training_videos"]) == (2, 4)
    videos = load_untrimmed(recipe.localise.videos, "test", recipe.compute)
    again = score_segments(videos, read_predictions(folder / SEGMENTS), recipe.localise)
    assert 100 * again.mean == pytest.approx(result["metrics"]["segment_map"])
    assert ActionFormer.from_pretrained(folder).features == 96
    assert store.progress(stage) == 1.0
    test_features = store.folder(stage.inputs[1])
    files = list((test_features / FEATURES).glob("*.npy"))
    assert len(files) == store.result(stage.inputs[1])["videos"] == 2
    windows = sum(len(np.load(file)) for file in files)
    counted = stage.inputs[1].macs / classify_cost(recipe.model.dimensions, recipe.model.clip, 1).macs
    assert counted == pytest.approx(windows, rel=0.25), "the cost is foreseen"
    assert stage.inputs[1].disk_bytes == pytest.approx(4 * windows * 96, rel=0.25)


def test_what_decides_the_result_names_the_stage(recipe):
    encoder = initial_stage(recipe, 0)
    stage = localise_stage(recipe, encoder, 0)
    for override in (
        {"localise.steps": 5}, {"localise.videos.motionworld.seed": 1}, {"localise.features.stride": 2},
        {"localise.suppress.sigma": 0.4}, {"evaluate.split": "validation"},
    ):  # fmt: skip
        assert localise_stage(recipe.with_overrides(override), encoder, 0).key != stage.key
    assert localise_stage(recipe, pretrain_stage(recipe, 0), 0).key != stage.key
    assert localise_stage(recipe, encoder, 1).key != stage.key
    same = recipe.with_overrides({"localise.steps": 5, "compute.workers": 2})
    assert features_stage(same, encoder, "test").key == stage.inputs[1].key, "detectors share the features of an encoder"


def test_the_moving_average_is_part_of_the_key(recipe):
    """`ema: null` differs from the default, so it must be part of the key."""
    for ema in (None, 0.9, 0.999):
        stage = localise_stage(recipe.with_overrides({"localise.ema": ema}), initial_stage(recipe, 0), 0)
        assert stage.localise.ema == ema
        assert stage.settings["localise"]["ema"] == ema


def test_pre_extracted_features_need_no_encoder(recipe, home, tmp_path):
    (tmp_path / "i3d").mkdir()
    database = {}
    for number in range(4):
        np.save(tmp_path / "i3d" / f"v{number}.npy", np.random.default_rng(number).normal(size=(20, 6)).astype(np.float32))
        database[f"v{number}"] = {
            "subset": "Test" if number == 3 else "Validation", "duration": 92 / 30, "fps": 30.0,
            "annotations": [{"segment": [0.5, 1.5], "label": "run"}],
        }  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps({"database": database}))
    lists = {"root": str(tmp_path), "annotations": "labels.json", "features": {"folder": "i3d"}, "train": ["validation"]}
    own = recipe.with_overrides({"localise.videos": {"lists": {**lists, "test": ["test"]}}})
    stage = localise_stage(own, initial_stage(own, 0), 0)
    assert stage.inputs == ()
    assert stage.macs > 0
    store = RunStore(tmp_path / "runs")
    result = store.complete(stage, own.compute, progress=False)
    assert (result["training_videos"], result["videos"]) == (3, 1)
    assert ActionFormer.from_pretrained(store.folder(stage)).features == 6
    np.save(tmp_path / "i3d" / "v0.npy", np.zeros((20, 6), np.float32))
    assert localise_stage(own, initial_stage(own, 0), 0).key != stage.key, "other features, another result"
    unread = own.with_overrides({"localise.features.stride": 8})
    assert localise_stage(unread, initial_stage(own, 0), 0).key == localise_stage(own, initial_stage(own, 0), 0).key
    with pytest.raises(RecipeError, match=r"localise\.videos\.lists\.features"):
        plan_notebook("downstream_temporal_detection", own)


def test_multiply_accumulates_are_those_of_the_model():
    """Compared with PyTorch's count of a forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    shape, length = ActionFormerShape(width=64, heads=2, window=9, levels=4), 512
    model = ActionFormer(shape, 128, [""] * 10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, 128), torch.zeros(1, length, dtype=torch.bool))
    assert length * actionformer_macs(shape, 128, 10) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"localise": None}, "localise: this section is missing; the plan detects actions in time"),
        ({"localise.shape.window": 8}, "window 8 is even"),
        ({"localise.videos.motionworld": None}, r"give one of videos\.motionworld"),
        ({"localise.videos.motionworld.pace": 100}, "localise.videos.motionworld.pace"),
        ({"localise.longestt": 3}, "did you mean 'longest'"),
    ],
)
def test_impossible_settings_are_one_message(recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        plan_notebook("downstream_temporal_detection", recipe.with_overrides(override))


def test_the_reading_follows_the_numbers(recipe, home):
    plan = plan_notebook("downstream_temporal_detection", recipe)
    values = {"untrained": (30.0, 31.0), "pretrained": (50.0, 51.2), "supervised": (50.0, 51.0)}
    rows = [(arm, seed, value) for arm, pair in values.items() for seed, value in enumerate(pair)]
    found = pd.DataFrame(rows, columns=["arm", "seed", "value"]).assign(metric="segment_map")
    words = temporal_detection.conclusions(Results(plan, found, RunStore(home)))
    gained, _, none = words
    assert "'pre-trained' compared with 'untrained encoder' (50.6 ± 0.8 and 30.5 ± 0.7%): +20.1 [" in gained
    assert gained.endswith("points, higher.")
    assert "-0.1 [" in none
    assert re.search(r"points, undecided \(about \d+ more seeds? needed\)\.$", none)
