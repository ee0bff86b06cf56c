"""Temporal detection: mAP over temporal IoU by encoder, by class and duration; kinds of errors; timelines."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from vmae_lab.data.activitynet import Split, Untrimmed
from vmae_lab.data.activitynet_files import read_predictions
from vmae_lab.evaluation.segment_errors import ErrorKinds, error_kinds
from vmae_lab.evaluation.temporal_map import DURATIONS, by_score, matches
from vmae_lab.lab.config import require
from vmae_lab.lab.detecting import judge
from vmae_lab.lab.experiments.common import (
    compared,
    comparison_cells,
    comparison_words,
    how_compared,
    mean_and_spread,
    over_seeds,
)
from vmae_lab.lab.loading import check_untrimmed, load_untrimmed
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.timelines import Timeline
from vmae_lab.lab.report.tables import plus_minus
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import SEGMENTS
from vmae_lab.lab.statistics import compare_pairs, summarise
from vmae_lab.paper import SEGMENT_MAP
from vmae_lab.training.tasks.localise import LocaliseSettings
from vmae_lab.utils.seeding import numpy_generator

MAP, FLOOR = "segment_map", "untrained"
ENOUGH = 0.5  # temporal IoU from which a single segment is called right
PAIRS = (("pretrained", "untrained"), ("supervised", "untrained"), ("supervised", "pretrained"))


def check_data(plan: Plan) -> None:
    """See that the videos are there, and their annotations sound, before anything runs. Raises ListError, StorageError."""
    check_untrimmed(_settings(plan).videos, plan.recipe.evaluate.split, plan.recipe.compute)


def segments_table(plan: Plan) -> pd.DataFrame:
    """How many segments of each class there are in the videos that are trained on and judged. Index: class."""
    recipe = plan.recipe
    splits: tuple[Split, ...] = ("train", recipe.evaluate.split)
    annotations = {one: load_untrimmed(_settings(plan).videos, one, recipe.compute).annotations for one in splits}
    counts = {one: told.segments.label.value_counts() for one, told in annotations.items()}
    return pd.DataFrame(counts).reindex(class_names(plan)).rename_axis("action").fillna(0).astype(int)


def localisation_table(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """One line an encoder: mAP at each overlap, their mean, and what the encoder's training changes of it."""
    differences = compared(plan, rows, MAP, FLOOR)
    means = {threshold: summarise(rows, f"{MAP}_{100 * threshold:.0f}") for threshold in _settings(plan).thresholds}
    return pd.DataFrame([
        {
            "features of": plan.arms[arm].label,
            **{f"mAP at {threshold:g}, %": mean_and_spread(summary, arm) for threshold, summary in means.items()},
            "mean, %": mean_and_spread(summarise(rows, MAP), arm),
            **comparison_cells(differences, arm, "untrained"),
        }
        for arm in plan.possible
    ])  # fmt: skip


def localisation_caption(plan: Plan, rows: pd.DataFrame, store: RunStore) -> str:
    """What the detectors were trained and judged on."""
    recipe, settings = plan.recipe, _settings(plan)
    result = store.result(plan.first(plan.possible[0]).measures["localise"])
    return (
        f"Scale `{recipe.scale}`: features of a {recipe.model.size} model, windows of {recipe.model.frames} frames every "
        f"{settings.features.stride} frames, their mean tokens; the encoder is frozen and one "
        f"detector trained on {result['training_videos']} videos ({result['training_segments']} segments) for {settings.steps} "
        f"steps of {settings.batch_size}; {len(recipe.seeds)} seeds; mean ± standard deviation over seeds; "
        f"{result['videos']} videos of the {recipe.evaluate.split} split ({result['segments']} segments). mAP over "
        f"{len(result['per_class'])} classes, protocol of {settings.protocol}. "
        f"{how_compared(plan, compared(plan, rows, MAP, FLOOR))}"
    )


def class_summaries(plan: Plan, store: RunStore) -> dict[str, pd.DataFrame]:
    """Average precision of each class by arm, mean over overlaps: columns mean and std over seeds, percent; index class."""
    return {arm: over_seeds(plan, store, arm, "localise", "per_class", class_names(plan)) for arm in plan.possible}


def class_names(plan: Plan) -> tuple[str, ...]:
    """The classes, in the order of their numbers."""
    return _held_out(plan).annotations.classes


def classes_caption(plan: Plan) -> str:
    """What a bar is."""
    overlaps = ", ".join(f"{one:g}" for one in _settings(plan).thresholds)
    return (
        f"Average precision by class, mean over temporal IoU of {overlaps}; mean and standard deviation over "
        f"{len(plan.recipe.seeds)} seeds."
    )


def durations_table(plan: Plan, store: RunStore) -> pd.DataFrame:
    """One line an encoder: mAP, mean over overlaps, by the length of segments."""
    limits = _settings(plan).durations or DURATIONS
    lengths = _held_out(plan).annotations.segments.eval("end - start")
    names = {
        name: f"{name}, {low:g} to {high:g} s ({int(((lengths > low) & (lengths <= high)).sum())} segments): mAP, %"
        for name, (low, high) in limits.items()
    }
    lines = []
    for arm in plan.possible:
        summary = over_seeds(plan, store, arm, "localise", "by_duration", limits)
        cells = {names[name]: plus_minus(row["mean"], row["std"]) for name, row in summary.iterrows()}
        lines.append({"features of": plan.arms[arm].label, **cells})
    return pd.DataFrame(lines)


def kinds_table(plan: Plan, store: RunStore) -> pd.DataFrame:
    """One line an encoder: what the best answers are, as many as there are segments, in percent of them, over all seeds."""
    lines = []
    for arm in plan.possible:
        counted = list(_errors(plan, store, arm))
        total = sum(one.total for one in counted)
        shares = {kind: 100 * sum(one.counts[kind] for one in counted) / max(total, 1) for kind in counted[0].counts}
        segments = len(counted) * len(_held_out(plan).annotations.segments)
        missed = 100 * sum(one.missed for one in counted) / max(segments, 1)
        lines.append({"features of": plan.arms[arm].label, **shares, "missed": missed})
    return pd.DataFrame(lines)


def kinds_caption() -> str:
    """What the kinds are."""
    return (
        "Of each class the best answers, as many as it has segments, all seeds together, in percent. *right*: of the class, "
        f"and overlapping by {ENOUGH:g} or more with a free segment; *double*: that segment was found before; *localisation*: "
        "the class is right, the overlap less; *confusion*: overlapping enough with another class; *both*: with another, less; "
        "*background*: with nothing (below .1). *missed*: segments that none of these answers is right about."
    )


def example_timelines(plan: Plan, store: RunStore, count: int) -> list[Timeline]:
    """Some videos at random: the truth, and what each arm's first detector is surest of, as much as there is to be found."""
    held_out = _held_out(plan)
    said = {plan.arms[arm].label: _said(plan, store, arm, plan.recipe.seeds[0]) for arm in plan.possible}
    chosen = numpy_generator(plan.recipe.seeds[0], "videos to look at").permutation(len(held_out.names))[:count]
    lines = []
    for index in sorted(chosen.tolist()):
        video = held_out.annotations.videos.iloc[index]
        truth = held_out.annotations.segments.query("video == @video.video").reset_index(drop=True)
        lanes = {"truth": truth.assign(right=True)}
        for name, table in said.items():
            best = by_score(table[table.video == video.video]).head(max(1, len(truth)))
            lanes[name] = best.assign(right=matches(truth, best, np.array([ENOUGH]))[0] >= 0)
        lines.append(Timeline(video.video, video.duration, lanes))
    return lines


def timelines_caption(plan: Plan) -> str:
    """What is shown of which videos."""
    return (
        f"Videos of the {plan.recipe.evaluate.split} split at random; below the truth, by encoder, the best scored answers, as "
        f"many as there are segments (one at least), seed {plan.recipe.seeds[0]}. Pale and hatched: wrong, by class or with an "
        f"overlap below {ENOUGH:g}."
    )


def paper_table() -> pd.DataFrame:
    """What is reported, beside which these videos are a toy."""
    return pd.DataFrame([
        {"data set": data, "features": features, **{f"reported: {what}, %": value for what, value in values.items()}}
        for (data, features), values in SEGMENT_MAP.items()
    ]).fillna("")  # fmt: skip


def conclusions(plan: Plan, rows: pd.DataFrame, store: RunStore) -> list[str]:
    """What the training of the encoder changes, and what is left wrong, in words computed from the numbers."""
    scores, words = summarise(rows, MAP), []
    for (arm, other), row in compare_pairs(rows, MAP, PAIRS, plan.recipe.evaluate.margin).iterrows():
        words.append(
            f"Features of '{plan.arms[arm].label}': mean mAP {mean_and_spread(scores, arm)}%, of "
            f"'{plan.arms[other].label}' {mean_and_spread(scores, other)}%: {comparison_words(row)}."
        )
    best = scores["mean"].idxmax()
    kinds = kinds_table(plan, store).set_index("features of").loc[plan.arms[best].label].drop(["right", "missed"])
    if kinds.sum() > 0:
        words.append(
            f"Of the wrong among the best answers of '{plan.arms[best].label}', most are {kinds.idxmax()} "
            f"({100 * kinds.max() / kinds.sum():.0f} %)."
        )
    return words


def judged_again(plan: Plan, store: RunStore) -> pd.DataFrame:
    """Mean mAP of every run from the file that it wrote: columns arm, seed, value in percent."""
    held_out = _held_out(plan)
    return pd.DataFrame([
        {
            "arm": cell.arm, "seed": cell.seed,
            "value": 100 * judge(held_out, _said(plan, store, cell.arm, cell.seed), _settings(plan)).mean,
        }
        for cell in plan.cells
    ])  # fmt: skip


def _settings(plan: Plan) -> LocaliseSettings:
    return require(plan.recipe.localise, "localise")


def _held_out(plan: Plan) -> Untrimmed:
    recipe = plan.recipe
    return load_untrimmed(_settings(plan).videos, recipe.evaluate.split, recipe.compute)


def _said(plan: Plan, store: RunStore, arm: str, seed: int) -> pd.DataFrame:
    return read_predictions(store.folder(plan.cell(arm, seed).measures["localise"]) / SEGMENTS)


def _errors(plan: Plan, store: RunStore, arm: str) -> Iterable[ErrorKinds]:
    truth = _held_out(plan).annotations.segments
    return (error_kinds(truth, _said(plan, store, arm, seed), ENOUGH) for seed in plan.recipe.seeds)
