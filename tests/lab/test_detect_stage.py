"""The stage of spatial detection, from its settings to what it leaves, and the words and tables that are made of it."""

import pandas as pd
import pytest

from vmae_lab.data.boxes import read_detections
from vmae_lab.evaluation.ava import frame_map
from vmae_lab.lab.arms import SPATIAL_DETECTION
from vmae_lab.lab.cost import BACKWARD, stage_macs
from vmae_lab.lab.loading import load_scenes
from vmae_lab.lab.presentation import spatial_detection
from vmae_lab.lab.recipe import Recipe, RecipeError, build_recipe
from vmae_lab.lab.runs import RunStore, in_order
from vmae_lab.lab.stages import DETECTIONS, detect_stage, pretrain_stage
from vmae_lab.lab.workbook import plan_notebook
from vmae_lab.models.detector import ActionDetector
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.sizes import ClipShape


@pytest.fixture
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": list(SPATIAL_DETECTION)}, SPATIAL_DETECTION)


@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_detector_is_trained_judged_and_kept(recipe, home, tmp_path, from_scratch):
    store = RunStore(tmp_path)
    stage = detect_stage(recipe, None if from_scratch else pretrain_stage(recipe, 0), 0)
    for one in in_order([stage]):
        store.complete(one, recipe.compute, progress=False)
    result, folder = store.result(stage), store.folder(stage)
    assert set(result["metrics"]) == {"frame_map", "frame_map_true_boxes"}
    assert (result["key_frames"], result["training_key_frames"]) == (4, 6)
    scenes = load_scenes(recipe.detect.scenes, "test", recipe.compute)
    assert set(result["per_class"]) == {scenes.actions[action] for action in scenes.truth.action_id}
    again = frame_map(scenes.truth, read_detections(folder / DETECTIONS), scenes.evaluated).mean
    assert 100 * again == pytest.approx(result["metrics"]["frame_map"], abs=0.1), "rounding alone lies between them"
    assert ActionDetector.from_pretrained(folder).classes == 8
    assert store.progress(stage) == 1.0
    # Forward and backward of 4 x 2 crops; each held-out key frame by two kinds of boxes.
    clip = ClipShape(8, 24, 2, 4)
    assert stage_macs(stage) == classify_cost(recipe.model.dimensions, clip, 1).macs * (BACKWARD * 4 * 2 + 2 * 4)


def test_what_decides_the_result_names_the_stage(recipe):
    stage = detect_stage(recipe, None, 0)
    for other in (
        detect_stage(recipe, None, 1),
        detect_stage(recipe, pretrain_stage(recipe, 0), 0),
        detect_stage(recipe.with_overrides({"detect.scenes.motionworld.seed": 1}), None, 0),
        detect_stage(recipe.with_overrides({"detect.augment.flip": 0.5}), None, 0),
        detect_stage(recipe.with_overrides({"evaluate.split": "validation"}), None, 0),
    ):
        assert other.key != stage.key
    assert detect_stage(recipe.with_overrides({"compute.workers": 2, "data.stride": 1}), None, 0).key == stage.key


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"detect": None}, "detect: this parameter is missing, and the plan detects actions"),
        ({"detect.side": 22}, r"side 22 is not a multiple of the model's patch of 4 pixels"),
        ({"detect.augment.short_side": [20, 28]}, r"augment.short_side \[20, 28\]: a rising pair from side 24 on"),
        ({"detect.scenes.motionworld.sources": ["camera"]}, "actors are of sprites, digits, sticks"),
        ({"detect.scenes.motionworld": None}, "give one of scenes.motionworld"),
        ({"detect.scenes.motionworld.seconds": 3}, "seconds 3 is odd"),
        ({"detect.sidee": 3}, "did you mean 'side'"),
    ],
)
def test_impossible_settings_are_one_message(recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        plan_notebook("downstream_spatial_detection", recipe.with_overrides(override))


def test_the_reading_follows_the_numbers(recipe, home):
    plan = plan_notebook("downstream_spatial_detection", recipe)
    words = {}
    for gain in (20.0, 0.0):
        values = {"scratch": (30.0, 31.0), "scratch_long": (50.0, 50.5)}
        values |= {
            f"pretrained{end}": (a + gain, b + 0.1 + gain) for end in ("", "_long") for a, b in [values[f"scratch{end}"]]
        }
        table = [(arm, seed, value) for arm, pair in values.items() for seed, value in enumerate(pair)]
        rows = pd.DataFrame(table, columns=["arm", "seed", "value"]).assign(metric="frame_map")
        words[gain] = spatial_detection.conclusions(plan, rows)
    gained, none = (next(one for one in said if "against 'no pre-training'," in one) for said in words.values())
    assert "30.5 ± 0.7 %: +20.1 [" in gained
    assert "not told apart" not in gained
    assert "+0.1 [" in none
    assert "(not told apart from none)" in none
    assert sum("against" in one for one in words[0.0]) == 3, "each start at both lengths, and a short one against a long one"
    assert "of the people" in words[0.0][-1]
