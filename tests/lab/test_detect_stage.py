"""The spatial detection stage: settings, files, tables and texts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.ops import box_iou

from vmae_lab.data.ava import CORNERS, KEY, read_detections
from vmae_lab.data.motionworld.scenes import open_scene_world
from vmae_lab.data.video_lists import ListError
from vmae_lab.evaluation.frame_map import frame_map
from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.experiments import downstream_spatial_detection as spatial_detection
from vmae_lab.lab.experiments import plan_notebook
from vmae_lab.lab.experiments.common import Results
from vmae_lab.lab.experiments.downstream_spatial_detection import ARMS as SPATIAL_DETECTION
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.detection import letter_of, number_of
from vmae_lab.lab.run_store import RunStore, in_order
from vmae_lab.lab.stages import DETECTIONS, detect_stage, pretrain_stage
from vmae_lab.lab.stages.cost import BACKWARD
from vmae_lab.lab.stages.inputs import load_scenes
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.sizes import ClipShape


@pytest.fixture
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": list(SPATIAL_DETECTION)}, SPATIAL_DETECTION)


@pytest.mark.slow
@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_detector_is_trained_evaluated_and_saved(recipe, home, tmp_path, from_scratch):
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
    # Forward and backward of 4 x 2 crops; one pass over each held-out key frame.
    clip = ClipShape(8, 24, 2, 4)
    assert stage.macs == classify_cost(recipe.model.dimensions, clip, 1).macs * (BACKWARD * 4 * 2 + 4)


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
        ({"detect": None}, "detect: this section is missing; the plan detects actions"),
        ({"detect.side": 22}, r"side 22 is not a multiple of the model's patch of 4 pixels"),
        ({"detect.augment.short_side": [20, 28]}, r"augment.short_side \[20, 28\]"),
        ({"detect.scenes.motionworld.sources": ["camera"]}, "sprites, digits, sticks"),
        ({"detect.scenes.motionworld": None}, "give one of scenes.motionworld"),
        ({"detect.scenes.motionworld.seconds": 3}, "detect.scenes.motionworld.seconds"),
        ({"detect.sidee": 3}, "did you mean 'side'"),
    ],
)
def test_impossible_settings_are_one_message(recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        plan_notebook("downstream_spatial_detection", recipe.with_overrides(override))


@pytest.mark.slow
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
        words[gain] = spatial_detection.conclusions(Results(plan, rows, RunStore(home)))
    gained, none = (next(one for one in said if "compared with 'no pre-training' (" in one) for said in words.values())
    assert "(50.5 ± 0.8 and 30.5 ± 0.7%): +20.1 [" in gained
    assert gained.endswith("points, higher.")
    assert "+0.1 [" in none
    assert none.endswith("equivalent within 2 points.")
    assert sum("compared with" in one for one in words[0.0]) == 3, (
        "each start at both lengths, and a short one against a long one"
    )
    assert "of the people" in words[0.0][-1]


@pytest.mark.slow
def test_guessing_is_what_random_scores_give(recipe, home):
    """The mAP of random scores is higher than the share of people who do the action, and equals the mean over many draws."""
    plan = plan_notebook("downstream_spatial_detection", recipe.with_overrides({"detect.scenes.motionworld.test": 60}))
    scenes, guess = load_scenes(plan.recipe.detect.scenes, "test", recipe.compute), spatial_detection.guessing(plan)
    assert spatial_detection.guessing(plan) == guess
    people = scenes.persons[scenes.persons.score >= 0.8].reset_index(drop=True)
    said = people.loc[people.index.repeat(8)].assign(action_id=[*range(1, 9)] * len(people))
    rng = np.random.default_rng(0)
    many = [100 * frame_map(scenes.truth, said.assign(score=rng.random(len(said))), scenes.evaluated).mean for _ in range(30)]
    assert np.mean(list(guess.values())) == pytest.approx(
        np.mean(many), abs=3 * np.std(many) / spatial_detection.DRAWS**0.5 + 0.5
    )
    alone = replace(scenes, persons=None)
    by_true = spatial_detection._guessed(alone, 0.8, 0)
    share = 100 * scenes.truth.action_id.value_counts() / len(scenes.truth.drop_duplicates([*KEY, *CORNERS]))
    assert np.mean(list(by_true.values())) > share.mean()


@pytest.mark.slow
def test_the_recall_of_persons_is_the_share_of_covered_people(recipe, home):
    """Computed person by person, with a detector that misses some people."""
    plan = plan_notebook("downstream_spatial_detection", recipe.with_overrides({"detect.scenes.motionworld.test": 40}))
    scenes = load_scenes(plan.recipe.detect.scenes, "test", recipe.compute)
    people, covered = scenes.truth.drop_duplicates([*KEY, *CORNERS, "person_id"]), 0
    seen = scenes.persons[scenes.persons.score >= plan.recipe.detect.person_score]
    for _, person in people.iterrows():
        boxes = seen[(seen[KEY] == person[KEY]).all(axis=1)][CORNERS].to_numpy(float)
        overlaps = box_iou(torch.tensor([person[CORNERS].tolist()]), torch.tensor(boxes).reshape(-1, 4).float())
        covered += bool((overlaps >= 0.5).any())
    assert 0 < covered < len(people)
    assert spatial_detection.recall_of_persons(plan) == pytest.approx(100 * covered / len(people))


def test_wrong_lists_are_reported_before_anything_runs(recipe, home, tmp_path):
    """Lists of the training split and of the evaluated split."""
    root = open_scene_world(recipe.detect.scenes.motionworld)
    splits = {name: {"boxes": f"{name}.csv"} for name in ("train", "validation", "test")}
    for wrong in ("train", "test"):
        lists = {"root": str(root), "actions": "actions.pbtxt", **splits, wrong: {"boxes": str(tmp_path / "none.csv")}}
        own = recipe.with_overrides({"detect.scenes": {"lists": lists}})
        with pytest.raises(ListError, match=r"cannot read .*none.csv"):
            spatial_detection.check_data(plan_notebook("downstream_spatial_detection", own))
    spatial_detection.check_data(plan_notebook("downstream_spatial_detection", recipe))


def test_a_list_that_is_changed_meanwhile_is_read_again(recipe, home, tmp_path):
    root = open_scene_world(recipe.detect.scenes.motionworld)
    own = tmp_path / "own.csv"
    own.write_text((root / "train.csv").read_text())
    lists = {"root": str(root), "actions": "actions.pbtxt", "train": {"boxes": str(own)}, "validation": {"boxes": str(own)}}
    scenes = recipe.with_overrides({"detect.scenes": {"lists": lists}}).detect.scenes
    before = load_scenes(scenes, "train", recipe.compute)
    assert load_scenes(scenes, "train", recipe.compute) is before
    own.write_text("".join((root / "train.csv").read_text().splitlines(keepends=True)[:1]))
    assert (len(before), len(load_scenes(scenes, "train", recipe.compute))) == (6, 1)


@pytest.mark.parametrize("frames", [8, 6])
def test_the_picture_that_is_called_the_key_frame_is_it(recipe, home, frames):
    """The key frame is number 4 of 8, and number 3 of 6, which is not the first frame of a tubelet."""
    scenes, settings = load_scenes(recipe.detect.scenes, "test", recipe.compute), recipe.detect
    scene = spatial_detection._scene(scenes, settings, pd.DataFrame(columns=[*KEY, *CORNERS]), 0, frames, 2)
    clip = scenes.clip(0, frames, settings.stride, settings.test_short_side).permute(1, 2, 3, 0).numpy()
    assert len(scene.frames) == frames // 2
    assert np.array_equal(scene.frames[scene.key], clip[frames // 2])
    assert not np.array_equal(clip[frames // 2], clip[frames // 2 - 1])


def test_figures_hold_many_classes_and_many_people():
    summary = pd.DataFrame({"mean": 20.0, "std": 1.0}, index=[f"class {number}" for number in range(60)])
    arms = dict(list(SPATIAL_DETECTION.items())[:4])
    for guess in ({}, dict.fromkeys(summary.index, 5.0)):
        figure = charts.bars_by_class(dict.fromkeys(arms, summary), arms, guess, "average precision, %")
        assert figure.get_size_inches()[0] <= 16
        assert len(figure.axes[0].get_xticklabels()) == 60
    assert [number_of(place) for place in (0, 8, 9)] == ["1", "9", "10"]
    assert [letter_of(place) for place in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]
