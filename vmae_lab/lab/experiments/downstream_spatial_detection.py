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
from vmae_lab.lab.statistics import compare_pairs
from vmae_lab.paper import AVA_FRAME_MAP
from vmae_lab.training.tasks.detect import DetectSettings, people_of
from vmae_lab.utils.seeding import numpy_generator

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
    """How many people do each action in the key frames of training and evaluation. Index: action."""
    recipe = plan.recipe
    parts: tuple[Split, ...] = ("train", recipe.evaluate.split)
    splits = {split: load_scenes(_settings(plan).scenes, split, recipe.compute) for split in parts}
    counts = pd.DataFrame({split: scenes.truth.action_id.value_counts() for split, scenes in splits.items()})
    actions = splits["train"].actions
    return counts.reindex(sorted(actions)).rename(actions).rename_axis("action").fillna(0).astype(int)


# ---- Frame mAP ----


def main_metric(rows: pd.DataFrame) -> str:
    """Frame mAP on a person detector's boxes, or on true boxes if there is no detector."""
    return FRAME_MAP if (rows.metric == FRAME_MAP).any() else TRUE_BOXES


def detection_table(results: Results) -> Table:
    """One line per arm: frame mAP on both kinds of boxes and by their size, and what pre-training changes."""
    plan, metric, settings = results.plan, main_metric(results.rows), _settings(results.plan)
    differences, lines = results.compare(metric, BASELINE), []
    for arm in plan.possible:
        by_size = common.over_seeds(results, arm, "detect", "by_size", SIZES)
        lines.append({
            "start": results.label(arm), "steps": _steps(plan, arm), "frame mAP, %": results.value(arm, metric),
            "with true boxes, %": results.value(arm, TRUE_BOXES),
            **{f"{size} boxes, %": plus_minus(row["mean"], row["std"]) for size, row in by_size.iterrows()},
            **common.comparison_cells(differences, arm, "no pre-training"),
        })  # fmt: skip
    recipe, result = plan.recipe, results.stage_result(plan.possible[0], "detect")
    sizes = ", ".join(f"{name} {_range(*limits)}" for name, limits in SIZES.items())
    caption = (
        f"Scale `{recipe.scale}`: {recipe.model.size} model, pre-trained on {recipe.model.side} x {recipe.model.side} pixels, "
        f"detecting in {recipe.model.frames} frames, {settings.stride} apart, of {settings.side} x {settings.side}; "
        f"{result['training_key_frames']} key frames to train on, batches of {settings.batch_size} clips, "
        f"{len(recipe.seeds)} seeds; mean ± standard deviation over seeds; {result['key_frames']} key frames of the "
        f"{recipe.evaluate.split} split. Frame mAP at IoU {OVERLAP:g} over {len(result['per_class'])} classes by AVA's own "
        f"protocol, on boxes of {_box_source(plan)}. Sizes in parts of the frame's area: {sizes}. "
        f"{common.how_compared(results.margin, differences)}"
    )
    return Table(pd.DataFrame(lines), "detection", caption)


def losses(results: Results) -> Plot:
    return common.loss_plot(results, "detect", legend="start from", loss="binary cross-entropy")


def reported_table() -> Table:
    """Frame mAP on AVA as reported, of larger models on real data."""
    lines = [
        {
            "encoder": size, "reported: self-supervised only, mAP %": f"{alone:.1f}",
            "reported: then supervised on Kinetics, mAP %": f"{then:.1f}",
        }
        for size, (alone, then) in AVA_FRAME_MAP.items()
    ]  # fmt: skip
    caption = "Frame mAP on AVA 2.2 as reported for VideoMAE (arXiv 2203.12602); not from runs of this package."
    return Table(pd.DataFrame(lines), "reported", caption)


# ---- By class, next to guessing ----

DRAWS = 5  # of random scores; guessing is their mean


def guessing(plan: Plan) -> dict[str, float]:
    """Average precision by class of random scores times the box's own score, in percent, mean over draws.

    It is more than the share of people who do the action, since average precision uses the envelope of the precision.
    """
    return _guessed(_held_out(plan), _settings(plan).person_score, plan.recipe.seeds[0])


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
        f"Average precision by class, mean and standard deviation over {len(results.recipe.seeds)} seeds. Dotted: guessing, "
        f"which gives random scores to every action of the same boxes, mean over {DRAWS} draws."
    )


def classes_table(results: Results) -> Table:
    """One line per class: average precision of each arm, and of guessing."""
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

SURE, MOST = 0.3, 3  # a box shows at most MOST actions with at least the score SURE, or else the most likely one


def scenes_plot(results: Results, count: int = 5) -> Plot:
    """Random key frames with the truth and the predictions of the first pre-trained arm's first seed."""
    plan, scenes, seed = results.plan, _held_out(results.plan), results.recipe.seeds[0]
    arm, model = plan.pretrained[0], plan.recipe.model
    predicted = read_detections(results.store.folder(plan.first(arm).measures["detect"]) / DETECTIONS)
    chosen = numpy_generator(seed, "scenes to look at").permutation(len(scenes))[:count]
    examples = [_scene(scenes, _settings(plan), predicted, int(i), model.frames, model.tubelet) for i in chosen]
    caption = (
        f"Random key frames, with the predictions of the detector of '{results.label(arm)}', seed {seed}: solid boxes are "
        f"true, dashed ones are those of {_box_source(plan)}. Actions with a score of {SURE:g} or more, at most {MOST}, or "
        "else the most likely one; = is right, x is wrong. A score is the action's times the box's."
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
    """The predicted actions of one box, the most likely first."""
    best = predicted.sort_values("score", ascending=False)
    shown = best[best.score >= SURE].head(MOST) if (best.score >= SURE).any() else best.head(1)
    names = [scenes.actions[action] for action in shown.action_id]
    return ", ".join(f"{'=' if n in right else 'x'} {n} {s:.2f}" for n, s in zip(names, shown.score, strict=True))


# ---- Checks and conclusions ----


def recall_of_persons(plan: Plan) -> float | None:
    """Percent of the people that the person detector's boxes cover (IoU 0.5): the most that can be found."""
    scenes, settings = _held_out(plan), _settings(plan)
    if scenes.persons is None:
        return None
    people = scenes.truth.drop_duplicates([*KEY, *CORNERS, "person_id"]).assign(action_id=1)
    seen = scenes.persons[scenes.persons.score >= settings.person_score].assign(action_id=1)
    joined = people.reset_index().merge(seen, on=KEY, suffixes=("", "_seen"))
    true, found = (joined[[corner + end for corner in CORNERS]].to_numpy(float) for end in ("", "_seen"))
    covered = joined[_overlaps(true, found) >= OVERLAP]
    return 100 * covered["index"].nunique() / len(people)


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU of pairs of boxes `(n, 4)`, row by row: `(n,)`."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = sides.clip(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def evaluated_again(results: Results) -> pd.Series:
    """Frame mAP of every run, computed from the rows that it wrote, in percent. Index: arm and seed."""
    scenes, values = _held_out(results.plan), {}
    for cell in results.plan.cells:
        predicted = read_detections(results.store.folder(cell.measures["detect"]) / DETECTIONS)
        values[cell.arm, cell.seed] = 100 * frame_map(scenes.truth, predicted, scenes.evaluated).mean
    return pd.Series(values)


def conclusions(results: Results) -> list[str]:
    """Whether pre-training helps, and whether more steps do instead, in sentences."""
    plan, metric = results.plan, main_metric(results.rows)
    guess = np.mean(list(guessing(plan).values()))
    words = [
        f"Frame mAP is {results.value(arm, metric)}% with '{results.label(arm)}' ({_steps(plan, arm)} steps); guessing gives "
        f"{guess:.1f}%."
        for arm in plan.pretrained
    ]
    for (arm, other), row in compare_pairs(results.rows, metric, PAIRS, results.margin).iterrows():
        words.append(
            f"'{results.label(arm)}' compared with '{results.label(other)}' ({results.value(other, metric)}%): "
            f"{common.comparison_words(row)}."
        )
    recall = recall_of_persons(plan)
    return words if recall is None else [*words, f"The boxes cover {recall:.0f}% of the people: no detector finds more."]


def _settings(plan: Plan) -> DetectSettings:
    return require(plan.recipe.detect, "detect")


def _steps(plan: Plan, arm: str) -> int:
    return require(plan.first(arm).recipe.detect, "detect").steps


def _held_out(plan: Plan) -> Scenes:
    return load_scenes(_settings(plan).scenes, plan.recipe.evaluate.split, plan.recipe.compute)


def _box_source(plan: Plan) -> str:
    if _settings(plan).scenes.motionworld:
        return "a stand-in for a person detector"
    return "the ground truth" if _held_out(plan).persons is None else "the person detector"


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g}"
    return f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"
