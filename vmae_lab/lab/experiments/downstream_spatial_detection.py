"""Spatial detection: frame mAP with and without pre-training, by class and size of box; scenes and what was said of them."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from vmae_lab.data.ava import Scenes
from vmae_lab.data.ava_files import CORNERS, KEY, read_detections
from vmae_lab.data.motionworld.dataset import Split
from vmae_lab.evaluation.frame_map import OVERLAP, SIZES, frame_map
from vmae_lab.lab.config import require
from vmae_lab.lab.experiments.common import (
    compared,
    comparison_cells,
    comparison_words,
    how_compared,
    mean_and_spread,
    over_seeds,
)
from vmae_lab.lab.loading import check_scenes, load_scenes
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.maps import Scene
from vmae_lab.lab.report.tables import plus_minus
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import DETECTIONS
from vmae_lab.lab.statistics import compare_pairs, summarise
from vmae_lab.paper import AVA_FRAME_MAP
from vmae_lab.training.tasks.detect import DetectSettings, people_of
from vmae_lab.utils.seeding import numpy_generator

TRUE_BOXES = "frame_map_true_boxes"
PAIRS = (("pretrained", "scratch"), ("pretrained_long", "scratch_long"), ("pretrained", "scratch_long"))
DRAWS = 5  # of random scores, over which guessing is a mean
SURE, MOST = 0.3, 3  # classes are written beside a picture from this score on, at most so many, or else the likeliest


def check_data(plan: Plan) -> None:
    """Open the lists that the plan trains and is judged on, each key frame against its video: before anything is trained.

    Raises ListError, StorageError.
    """
    check_scenes(_settings(plan).scenes, plan.recipe.evaluate.split, plan.recipe.compute)


def people_table(plan: Plan) -> pd.DataFrame:
    """How many people do each action in the key frames that are trained on and judged. Index: action."""
    recipe = plan.recipe
    parts: tuple[Split, ...] = ("train", recipe.evaluate.split)
    splits = {split: load_scenes(_settings(plan).scenes, split, recipe.compute) for split in parts}
    counts = pd.DataFrame({split: scenes.truth.action_id.value_counts() for split, scenes in splits.items()})
    actions = splits["train"].actions
    return counts.reindex(sorted(actions)).rename(actions).rename_axis("action").fillna(0).astype(int)


def main_metric(rows: pd.DataFrame) -> str:
    """Frame mAP by a person detector's boxes, or where there are none by true ones."""
    return "frame_map" if (rows.metric == "frame_map").any() else TRUE_BOXES


def detection_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """One line an arm: frame mAP by both kinds of boxes and by their size, and what pre-training changes."""
    scores, true = summarise(rows, main_metric(rows)), summarise(rows, TRUE_BOXES)
    differences = compared(plan, rows, main_metric(rows), "scratch")
    by_size = {arm: over_seeds(plan, store, arm, "detect", "by_size", SIZES) for arm in plan.possible}
    return pd.DataFrame([
        {
            "start": plan.arms[arm].label, "steps": _steps(plan, arm),
            "frame mAP, %": mean_and_spread(scores, arm), "by true boxes, %": mean_and_spread(true, arm),
            **{f"{size} boxes, %": plus_minus(row["mean"], row["std"]) for size, row in by_size[arm].iterrows()},
            **comparison_cells(differences, arm, "no pre-training"),
        }
        for arm in plan.possible
    ])  # fmt: skip


def detection_caption(plan: Plan, rows: pd.DataFrame, store: RunStore) -> str:
    """How the detectors were trained and judged."""
    recipe, settings = plan.recipe, _settings(plan)
    result = store.result(plan.first(plan.possible[0]).measures["detect"])
    sizes = ", ".join(f"{name} {_range(*limits)}" for name, limits in SIZES.items())
    return (
        f"Scale `{recipe.scale}`: {recipe.model.size} model, pre-trained on {recipe.model.side} x {recipe.model.side} pixels, "
        f"detecting in {recipe.model.frames} frames, {settings.stride} apart, of {settings.side} x {settings.side}; "
        f"{result['training_key_frames']} key frames to train on, batches of {settings.batch_size} clips, "
        f"{len(recipe.seeds)} seeds; mean ± standard deviation over seeds; {result['key_frames']} key frames of the "
        f"{recipe.evaluate.split} split. Frame mAP at IoU {OVERLAP:g} over {len(result['per_class'])} classes by AVA's own "
        f"protocol, of boxes of {_whose_boxes(plan)}. Sizes in parts of the frame's area: {sizes}. "
        f"{how_compared(plan, compared(plan, rows, main_metric(rows), 'scratch'))}"
    )


def class_summaries(plan: Plan, store: RunStore) -> dict[str, pd.DataFrame]:
    """Average precision of each class by arm: columns mean and std over seeds, in percent; index class."""
    return {arm: over_seeds(plan, store, arm, "detect", "per_class", guessing(plan)) for arm in plan.possible}


def classes_table(plan: Plan, store: RunStore) -> pd.DataFrame:
    """One line a class: average precision by arm, and what guessing would give."""
    summaries, guess = class_summaries(plan, store), guessing(plan)
    return pd.DataFrame([
        {
            "class": name,
            **{
                f"{plan.arms[arm].label}: AP, %": plus_minus(*summary.loc[name, ["mean", "std"]])
                for arm, summary in summaries.items()
            },
            "guessing, %": f"{value:.1f}",
        }
        for name, value in guess.items()
    ])  # fmt: skip


def guessing(plan: Plan) -> dict[str, float]:
    """By class, in percent: average precision of random scores, times the boxes' own, of the boxes that models are asked about.

    Mean over draws; more than the share of people who do it, since average precision is of the precision's envelope.
    """
    return _guessed(_held_out(plan), _settings(plan).person_score, plan.recipe.seeds[0])


@lru_cache(maxsize=4)
def _guessed(scenes: Scenes, least_score: float, seed: int) -> dict[str, float]:
    people = people_of(scenes, "true" if scenes.persons is None else "persons", least_score).reset_index(drop=True)
    actions = list(scenes.evaluated)
    said = people.loc[people.index.repeat(len(actions))].assign(action_id=actions * len(people))
    rng = numpy_generator(seed, "guessing")
    draws = [
        frame_map(scenes.truth, said.assign(score=said.score * rng.random(len(said))), scenes.evaluated).per_class
        for _ in range(DRAWS)
    ]
    means = pd.DataFrame(draws).mean().dropna()
    return {scenes.evaluated[action]: 100 * value for action, value in means.items()}


def paper_table() -> pd.DataFrame:
    """What is reported on AVA, beside which these scenes are a toy."""
    return pd.DataFrame([
        {
            "encoder": size, "reported: self-supervised only, mAP %": f"{alone:.1f}",
            "reported: then supervised on Kinetics, mAP %": f"{then:.1f}",
        }
        for size, (alone, then) in AVA_FRAME_MAP.items()
    ])  # fmt: skip


def example_scenes(plan: Plan, store: RunStore, arm: str, count: int) -> list[Scene]:
    """Some key frames at random, with who is there and what an arm's first detector says."""
    scenes, settings, model = _held_out(plan), _settings(plan), plan.recipe.model
    said = read_detections(store.folder(plan.first(arm).measures["detect"]) / DETECTIONS)
    chosen = numpy_generator(plan.recipe.seeds[0], "scenes to look at").permutation(len(scenes))[:count]
    return [_scene(scenes, settings, said, int(index), model.frames, model.tubelet) for index in chosen]


def scenes_caption(plan: Plan, arm: str) -> str:
    """Whose answers are shown."""
    return (
        f"Key frames at random, with what the detector of '{plan.arms[arm].label}', seed {plan.recipe.seeds[0]}, says: solid "
        f"boxes are true, dashed ones are those of {_whose_boxes(plan)}. Actions with a score of {SURE:g} or more, at most "
        f"{MOST}, or the likeliest; = stands where it is right, x where not. Scores are the action's times the box's."
    )


def classes_caption(plan: Plan) -> str:
    """What a bar is."""
    return (
        f"Average precision by class, mean and standard deviation over {len(plan.recipe.seeds)} seeds; dotted, what guessing "
        f"gives: random scores for every action of the same boxes, mean over {DRAWS} draws."
    )


def recall_of_persons(plan: Plan) -> float | None:
    """Percent of the people there whom the person detector's boxes cover (IoU .5): the most that can be found."""
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
    """IoU of pairs of boxes `(n, 4)`, each with the one at its place: `(n,)`. Not of all with all, which are n^2."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = sides.clip(0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def conclusions(plan: Plan, rows: pd.DataFrame) -> list[str]:
    """Whether pre-training helps, and more steps instead of it, in words computed from the numbers."""
    metric = main_metric(rows)
    scores = summarise(rows, metric)
    words = [
        f"Frame mAP is {mean_and_spread(scores, arm)} % with '{plan.arms[arm].label}' "
        f"({_steps(plan, arm)} steps); guessing would give {np.mean(list(guessing(plan).values())):.1f} %."
        for arm in plan.pretrained
    ]
    for (arm, other), row in compare_pairs(rows, metric, PAIRS, plan.recipe.evaluate.margin).iterrows():
        words.append(
            f"'{plan.arms[arm].label}' compared with '{plan.arms[other].label}' ({mean_and_spread(scores, other)}%): "
            f"{comparison_words(row)}."
        )
    recall = recall_of_persons(plan)
    return words if recall is None else [*words, f"The boxes cover {recall:.0f} % of the people: no detector finds more."]


def judged_again(plan: Plan, store: RunStore) -> pd.DataFrame:
    """Frame mAP of every run from the rows that it wrote, by AVA's protocol: columns arm, seed, value in percent."""
    scenes = _held_out(plan)
    return pd.DataFrame([
        {
            "arm": cell.arm, "seed": cell.seed,
            "value": 100 * frame_map(
                scenes.truth, read_detections(store.folder(cell.measures["detect"]) / DETECTIONS), scenes.evaluated
            ).mean,
        }
        for cell in plan.cells
    ])  # fmt: skip


def _settings(plan: Plan) -> DetectSettings:
    return require(plan.recipe.detect, "detect")


def _steps(plan: Plan, arm: str) -> int:
    return require(plan.first(arm).recipe.detect, "detect").steps


def _held_out(plan: Plan) -> Scenes:
    recipe = plan.recipe
    return load_scenes(_settings(plan).scenes, recipe.evaluate.split, recipe.compute)


def _whose_boxes(plan: Plan) -> str:
    if _settings(plan).scenes.motionworld:
        return "a stand-in for a person detector"
    return "the ground truth" if _held_out(plan).persons is None else "the person detector"


def _scene(
    scenes: Scenes, settings: DetectSettings, said: pd.DataFrame, index: int, frames: int, tubelet: int
) -> Scene:  # fmt: skip
    key = frames // 2
    video = scenes.clip(index, frames, settings.stride, settings.test_short_side).permute(1, 2, 3, 0).numpy()
    video = video[key % tubelet :: tubelet]  # one frame a time step; of these the key frame is one
    classes = [scenes.actions[action] for action in sorted(scenes.actions)]
    boxes, labels = scenes.labelled_boxes(index)
    done = [[name for name, does in zip(classes, row, strict=True) if does] for row in labels.tolist()]
    name, timestamp = scenes.keys.iloc[index][KEY]
    here = said[(said.video == name) & np.isclose(said.timestamp, timestamp)]
    seen, words = [], []
    for corners, answers in here.groupby(CORNERS, sort=False):
        overlap = box_iou(torch.tensor([corners]), boxes.double())[0] if len(boxes) else torch.zeros(1)
        does = done[int(overlap.argmax())] if overlap.max() >= OVERLAP else []
        seen.append(corners)
        words.append(_answer(answers, scenes, does) + ("" if overlap.max() >= OVERLAP else " (nobody there)"))
    true = [", ".join(names) for names in done]
    return Scene(video, key // tubelet, boxes.numpy(), np.array(seen).reshape(-1, 4), true, words)


def _answer(answers: pd.DataFrame, scenes: Scenes, does: Sequence[str]) -> str:
    """What was said of one box, the surest first."""
    best = answers.sort_values("score", ascending=False)
    told = best[best.score >= SURE].head(MOST) if (best.score >= SURE).any() else best.head(1)
    names = [scenes.actions[action] for action in told.action_id]
    return ", ".join(f"{'=' if n in does else 'x'} {n} {s:.2f}" for n, s in zip(names, told.score, strict=True))


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g}"
    return f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"
