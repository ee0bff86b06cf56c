"""Spatial detection (AVA): frame mAP with and without pre-training, by class and size of boxes; example scenes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from vmae_lab.data.ava import CORNERS, KEY, Scenes, read_detections
from vmae_lab.data.motionworld.dataset import Split
from vmae_lab.evaluation.frame_map import OVERLAP, SIZES, frame_map
from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Overrides, Plan
from vmae_lab.lab.plots import charts, detection
from vmae_lab.lab.plots.style import ORANGE, RED
from vmae_lab.lab.report.tables import plus_minus
from vmae_lab.lab.stages import DETECTIONS, Stage, detect_stage
from vmae_lab.lab.stages.inputs import check_scenes, load_scenes
from vmae_lab.paper import AVA_FRAME_MAP
from vmae_lab.training.tasks.detect import DetectSettings, people_of
from vmae_lab.utils.counts import counted
from vmae_lab.utils.seeding import numpy_generator
from vmae_lab.utils.shapes import height_width

LONGER = 4  # times the steps, as in downstream_action_classification


def longer(recipe: Recipe) -> Overrides:
    steps = {} if recipe.detect is None else {"detect.steps": LONGER * recipe.detect.steps}
    return {**common.running_cells(0.5), **steps}


ARMS: dict[str, Arm] = {
    "scratch": common.SCRATCH,
    "pretrained": common.PRETRAINED,
    "scratch_long": Arm(f"no pre-training, {LONGER} x the steps", ORANGE, "s", longer, pretrained=False),
    "pretrained_long": Arm(f"pre-trained, {LONGER} x the steps", RED, "^", longer),
}
BASELINE, FRAME_MAP, TRUE_BOXES = "scratch", "frame_map", "frame_map_true_boxes"
PAIRS = (("pretrained", "scratch"), ("pretrained_long", "scratch_long"), ("pretrained", "scratch_long"))


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    return {"detect": detect_stage(recipe, encoder if arm.pretrained else None, seed)}


EXPERIMENT = Experiment(
    "Spatial action detection", "Who does what, where, in a key frame?", ARMS, stages, baseline=BASELINE, metric=FRAME_MAP
)


def check_data(plan: Plan) -> None:
    """Open the lists of training and evaluation before anything is trained. Raises ListError, StorageError."""
    check_scenes(_settings(plan).scenes, plan.recipe.evaluate.split, plan.recipe.compute)


def people_table(plan: Plan) -> pd.DataFrame:
    """Count how many people do each action in the key frames of training and evaluation. Index: action."""
    actions = _scenes(plan, "train").actions
    names = [actions[action] for action in sorted(actions)]
    return common.class_counts(plan, lambda split: _scenes(plan, split).truth.action_id.map(actions), names)


# ---- Frame mAP ----


def main_metric(rows: pd.DataFrame) -> str:
    """Return the name of the main metric: frame mAP on a person detector's boxes, or on true boxes if there is no detector."""
    return FRAME_MAP if (rows.metric == FRAME_MAP).any() else TRUE_BOXES


def detection_table(results: Results) -> Table:
    """Return one row per arm: frame mAP with detected and true boxes, by box size, and the difference to the baseline."""
    plan, metric, settings = results.plan, main_metric(results.rows), _settings(results.plan)
    differences, lines = results.compare(metric, BASELINE), []
    for arm in plan.possible:
        by_size = common.over_seeds(results, arm, "detect", "by_size", SIZES)
        lines.append({
            "start": results.label(arm), "steps": require(plan.first(arm).recipe.detect, "detect").steps,
            "frame mAP, %": results.value(arm, metric), "with true boxes, %": results.value(arm, TRUE_BOXES),
            **{f"{size} boxes, %": plus_minus(row["mean"], row["std"]) for size, row in by_size.iterrows()},
            **common.comparison_cells(differences, arm, "no pre-training"),
        })  # fmt: skip
    recipe, result = plan.recipe, results.stage_result(plan.possible[0], "detect")
    (height, width), clip = height_width(settings.side), recipe.model.clip
    sizes = ", ".join(f"{name} {_size(*limits)}" for name, limits in SIZES.items())
    caption = (
        f"Scale `{recipe.scale}`: {recipe.model.size} model, pre-trained on {clip.height} x {clip.width} pixels; clips of "
        f"{recipe.model.frames} frames, stride {settings.stride}, {height} x {width} pixels; trained on "
        f"{counted(result['training_key_frames'], 'key frame')} in batches of {settings.batch_size}, "
        f"{counted(result['key_frames'], 'key frame')} of the {recipe.evaluate.split} split; mean ± standard deviation over "
        f"{counted(len(recipe.seeds), 'seed')}. Frame mAP at IoU {OVERLAP:g} over "
        f"{counted(len(result['per_class']), 'class')}, AVA protocol, boxes of {_box_source(plan)}; guessing gives "
        f"{np.mean(list(guessing(plan).values())):.1f}%. Sizes are parts of the frame's area: {sizes}. "
        f"{common.how_compared(results.margin, differences)}"
    )
    return Table(pd.DataFrame(lines), "detection", caption)


def losses(results: Results) -> Plot:
    return common.loss_plot(results, "detect", legend="start from", loss="binary cross-entropy")


def reported_table() -> Table:
    """Return frame mAP on AVA as reported, of larger models on real data."""
    columns = ["reported: self-supervised only, mAP %", "reported: then supervised on Kinetics, mAP %"]
    frame = pd.DataFrame.from_dict(AVA_FRAME_MAP, orient="index", columns=columns).reset_index(names="encoder")
    caption = "Frame mAP on AVA 2.2 as reported for VideoMAE (arXiv 2203.12602), not from runs of this package."
    return Table(frame, "reported", caption)


# ---- By class, next to guessing ----

DRAWS = 5  # of random scores; guessing is their mean


def guessing(plan: Plan) -> dict[str, float]:
    """Average precision by class of random scores times the box's own score, in percent, mean over draws.

    It exceeds the share of people who do the action, since average precision uses the envelope of the precision.
    """
    return _guessed(_scenes(plan), _settings(plan).person_score, plan.recipe.seeds[0])


@lru_cache(maxsize=4)
def _guessed(scenes: Scenes, least_score: float, seed: int) -> dict[str, float]:
    people = people_of(scenes, "true" if scenes.persons is None else "persons", least_score).reset_index(drop=True)
    actions = list(scenes.evaluated)
    guesses = people.loc[people.index.repeat(len(actions))].assign(action_id=actions * len(people))
    rng = numpy_generator(seed, "guessing")
    draws = [
        frame_map(scenes.truth, guesses.assign(score=guesses.score * rng.random(len(guesses))), scenes.evaluated).per_class
        for _ in range(DRAWS)
    ]
    means = pd.DataFrame(draws).mean().dropna()
    return {scenes.evaluated[action]: 100 * value for action, value in means.items()}


def _by_class(results: Results) -> dict[str, pd.DataFrame]:
    """Average precision by class of each arm: columns mean and std over seeds, in percent; index class."""
    classes = guessing(results.plan)
    return {arm: common.over_seeds(results, arm, "detect", "per_class", classes) for arm in results.plan.possible}


def _classes_caption(results: Results) -> str:
    return (
        f"Average precision by class, mean and standard deviation over {counted(len(results.recipe.seeds), 'seed')}. Dotted: "
        f"guessing (random scores for every action of the same boxes, mean over {DRAWS} draws)."
    )


def classes_table(results: Results) -> Table:
    """Return one row per class: average precision of each arm, and of guessing."""
    summaries = {f"{results.label(arm)}: AP, %": summary for arm, summary in _by_class(results).items()}
    lines = [
        {
            "class": name,
            **{column: plus_minus(*summary.loc[name, ["mean", "std"]]) for column, summary in summaries.items()},
            "guessing, %": f"{value:.1f}",
        }
        for name, value in guessing(results.plan).items()
    ]
    return Table(pd.DataFrame(lines), "classes", _classes_caption(results))


def classes_plot(results: Results) -> Plot:
    guess = guessing(results.plan)
    figure = charts.bars_by_class(_by_class(results), results.plan.arms, guess, "average precision, %")
    return Plot(figure, "classes", _classes_caption(results))


# ---- Example scenes ----

SURE, MOST = 0.3, 3  # a box shows up to MOST actions with a score of SURE or more, or else the most likely action


def scenes_plot(results: Results, count: int = 5) -> Plot:
    """Show random key frames: the truth, and the predictions of the first pre-trained arm at the first seed."""
    plan, scenes, seed = results.plan, _scenes(results.plan), results.recipe.seeds[0]
    arm, model = plan.pretrained[0], plan.recipe.model
    predicted = read_detections(results.store.folder(plan.first(arm).measures["detect"]) / DETECTIONS)
    chosen = numpy_generator(seed, "scenes to look at").permutation(len(scenes))[:count]
    examples = [_scene(scenes, _settings(plan), predicted, int(i), model.frames, model.tubelet) for i in chosen]
    caption = (
        f"Random key frames and predictions of '{results.label(arm)}', seed {seed}. Solid boxes: truth; dashed: boxes of "
        f"{_box_source(plan)}, with up to {MOST} actions that score {SURE:g} or more, or else the most likely one (= right, "
        "x wrong). A score is that of the action times that of the box."
    )
    return Plot(detection.scene_strips(examples), "scenes", caption)


def _scene(
    scenes: Scenes, settings: DetectSettings, predicted: pd.DataFrame, index: int, frames: int, tubelet: int
) -> detection.Scene:  # fmt: skip
    key = frames // 2
    video = scenes.clip(index, frames, settings.stride, settings.test_short_side).permute(1, 2, 3, 0).numpy()
    video = video[key % tubelet :: tubelet]  # one frame per time step, the key frame among them
    classes = [scenes.actions[action] for action in sorted(scenes.actions)]
    boxes, labels = scenes.labelled_boxes(index)
    actions = [[name for name, does in zip(classes, row, strict=True) if does] for row in labels.tolist()]
    name, timestamp = scenes.keys.iloc[index][KEY]
    here = predicted[(predicted.video == name) & np.isclose(predicted.timestamp, timestamp)]
    seen, words = [], []
    for corners, scores in here.groupby(CORNERS, sort=False):
        overlap = box_iou(torch.tensor([corners]), boxes.double())[0] if len(boxes) else torch.zeros(1)
        matched = overlap.max() >= OVERLAP
        seen.append(corners)
        right = actions[int(overlap.argmax())] if matched else []
        words.append(_scored_actions(scores, scenes, right) + ("" if matched else " (nobody there)"))
    true = [", ".join(names) for names in actions]
    return detection.Scene(video, key // tubelet, boxes.numpy(), np.array(seen).reshape(-1, 4), true, words)


def _scored_actions(predicted: pd.DataFrame, scenes: Scenes, right: Sequence[str]) -> str:
    """Return the predicted actions of one box, the most likely first."""
    best = predicted.sort_values("score", ascending=False)
    shown = best[best.score >= SURE].head(MOST) if (best.score >= SURE).any() else best.head(1)
    names = [scenes.actions[action] for action in shown.action_id]
    return ", ".join(f"{'=' if n in right else 'x'} {n} {s:.2f}" for n, s in zip(names, shown.score, strict=True))


# ---- Checks and conclusions ----


def recall_of_persons(plan: Plan) -> float | None:
    """Return the percentage of people that the person detector's boxes cover (IoU 0.5): the highest possible recall."""
    scenes = _scenes(plan)
    if scenes.persons is None:
        return None
    seen = dict(list(scenes.persons[scenes.persons.score >= _settings(plan).person_score].groupby(KEY)[CORNERS]))
    people, covered = scenes.truth.drop_duplicates([*KEY, *CORNERS, "person_id"]), 0
    for key, true in people.groupby(KEY)[CORNERS]:
        if key in seen:
            overlaps = box_iou(*(torch.tensor(boxes[CORNERS].to_numpy(float)) for boxes in (true, seen[key])))
            covered += int((overlaps >= OVERLAP).any(1).sum())
    return 100 * covered / len(people)


def evaluated_again(results: Results) -> pd.Series:
    """Return the frame mAP of every run, computed from the detections that it wrote, in percent. Index: arm and seed."""
    scenes = _scenes(results.plan)
    return common.evaluated_again(
        results, "detect", lambda folder: frame_map(scenes.truth, read_detections(folder / DETECTIONS), scenes.evaluated).mean
    )


def conclusions(results: Results) -> list[str]:
    """Whether pre-training helps, whether more steps replace it, and the highest possible recall."""
    recall = recall_of_persons(results.plan)
    words = common.pair_words(results, main_metric(results.rows), PAIRS)
    return words if recall is None else [*words, f"The boxes cover {recall:.0f}% of the people: no detector finds more."]


def _settings(plan: Plan) -> DetectSettings:
    return require(plan.recipe.detect, "detect")


def _scenes(plan: Plan, split: Split | None = None) -> Scenes:
    """Return the scenes of a split, by default of the evaluated one."""
    return load_scenes(_settings(plan).scenes, split or plan.recipe.evaluate.split, plan.recipe.compute)


def _box_source(plan: Plan) -> str:
    if _settings(plan).scenes.motionworld:
        return "a simulated person detector"
    return "the ground truth" if _scenes(plan).persons is None else "the person detector"


def _size(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g}"
    return f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"
