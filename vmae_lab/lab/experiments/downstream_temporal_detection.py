"""Temporal detection: mAP over temporal IoU by encoder, by class and duration; kinds of errors; timelines."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vmae_lab.data.activitynet import Split, Untrimmed, read_predictions
from vmae_lab.evaluation.temporal_map import DURATIONS, by_score, error_kinds, matches
from vmae_lab.lab.config import Recipe, RecipeError, require
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots import charts, detection
from vmae_lab.lab.plots.style import GREEN
from vmae_lab.lab.report.tables import plus_minus
from vmae_lab.lab.stages import SEGMENTS, Stage, localise_stage, post_pretrain_stage
from vmae_lab.lab.stages.inputs import check_untrimmed, load_untrimmed
from vmae_lab.lab.stages.localise import score_segments
from vmae_lab.paper import SEGMENT_MAP
from vmae_lab.training.tasks.localise import LocaliseSettings
from vmae_lab.utils.counts import counted
from vmae_lab.utils.seeding import numpy_generator

MAP, BASELINE = "segment_map", "untrained"
ARMS: dict[str, Arm] = {
    "untrained": common.UNTRAINED,
    "pretrained": common.PRETRAINED,
    "supervised": Arm("pre-trained, then supervised", GREEN, "*", common.running_cells(0.5), post_pretrained=True),
}
PAIRS = (("pretrained", "untrained"), ("supervised", "untrained"), ("supervised", "pretrained"))


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Build temporal detection from the features of an encoder."""
    if recipe.localise and not recipe.localise.videos.extracted:
        raise RecipeError(
            "localise.videos.lists.features come from one encoder, and this plan compares encoders: set lists.videos, or use "
            "`vmae-lab localise` to train on these features"
        )
    before = post_pretrain_stage(recipe, encoder, seed) if arm.post_pretrained else encoder
    return {"localise": localise_stage(recipe, before, seed)}


EXPERIMENT = Experiment(
    "Temporal action detection", "Which action happens when, in a long video?", ARMS, stages, baseline=BASELINE, metric=MAP
)


def check_data(plan: Plan) -> None:
    """Check that videos and annotations exist and are valid, before anything runs. Raises ListError, StorageError."""
    check_untrimmed(_settings(plan).videos, plan.recipe.evaluate.split, plan.recipe.compute)


def segments_table(plan: Plan) -> pd.DataFrame:
    """Count the segments of each class in the videos of training and evaluation. Index: class."""
    return common.class_counts(plan, lambda split: _videos(plan, split).annotations.segments.label, class_names(plan))


# ---- mAP over overlaps, classes and durations ----


def localisation_table(results: Results) -> Table:
    """Return one row per encoder: mAP at each overlap, their mean, and the difference to the untrained encoder."""
    recipe, settings, differences = results.recipe, _settings(results.plan), results.compare(MAP, BASELINE)
    lines = [
        {
            "features of": results.label(arm),
            **{f"mAP at {at:g}, %": results.value(arm, f"{MAP}_{100 * at:.0f}") for at in settings.thresholds},
            "mean, %": results.value(arm, MAP), **common.comparison_cells(differences, arm, "untrained"),
        }
        for arm in results.plan.possible
    ]  # fmt: skip
    result = results.stage_result(results.plan.possible[0], "localise")
    caption = (
        f"Scale `{recipe.scale}`: mean tokens of a frozen {recipe.model.size} encoder, windows of {recipe.model.frames} "
        f"frames every {settings.features.stride}; one detector, trained on {counted(result['training_videos'], 'video')} "
        f"({counted(result['training_segments'], 'segment')}) for {counted(settings.steps, 'step')} of {settings.batch_size}; "
        f"{counted(result['videos'], 'video')} of the {recipe.evaluate.split} split "
        f"({counted(result['segments'], 'segment')}), {counted(len(result['per_class']), 'class')}, {settings.protocol} "
        f"protocol; mean ± standard deviation over {counted(len(recipe.seeds), 'seed')}. "
        f"{common.how_compared(results.margin, differences)}"
    )
    return Table(pd.DataFrame(lines), "localisation", caption)


def losses(results: Results) -> Plot:
    return common.loss_plot(results, "localise", legend="features of", loss="focal + DIoU loss")


def class_names(plan: Plan) -> tuple[str, ...]:
    """Return the classes, in the order of their numbers."""
    return _videos(plan).annotations.classes


def classes_plot(results: Results) -> Plot:
    """Average precision by class of each arm, mean over the overlaps."""
    plan = results.plan
    by_class = {arm: common.over_seeds(results, arm, "localise", "per_class", class_names(plan)) for arm in plan.possible}
    overlaps = ", ".join(f"{threshold:g}" for threshold in _settings(plan).thresholds)
    caption = f"Average precision by class: mean over temporal IoU of {overlaps}, mean and standard deviation over seeds."
    return Plot(charts.bars_by_class(by_class, plan.arms, {}, "average precision, %"), "classes", caption)


def durations_table(results: Results) -> Table:
    """Return one row per encoder: mAP by the length of segments, mean over the overlaps."""
    limits = _settings(results.plan).durations or DURATIONS
    lengths = _videos(results.plan).annotations.segments.eval("end - start")
    names = {
        name: f"{name}, {low:g} to {high:g} s ({counted(int(((lengths > low) & (lengths <= high)).sum()), 'segment')}): mAP, %"
        for name, (low, high) in limits.items()
    }
    lines = []
    for arm in results.plan.possible:
        summary = common.over_seeds(results, arm, "localise", "by_duration", limits)
        cells = {names[name]: plus_minus(row["mean"], row["std"]) for name, row in summary.iterrows()}
        lines.append({"features of": results.label(arm), **cells})
    return Table(pd.DataFrame(lines), "durations", "mAP by length of the segment, means over overlaps and seeds.")


# ---- Kinds of errors, and timelines ----

ENOUGH = 0.5  # temporal IoU at which a segment is found
KINDS_CAPTION = (
    "The highest-scoring predictions of each class, as many as it has segments, in percent over all seeds. right: IoU of "
    f"{ENOUGH:g} or more with a free segment of the class; double: that segment was found before; localisation: lower IoU with "
    "the class; confusion: high IoU with another class; both: lower IoU with another class; background: IoU below 0.1. missed: "
    "segments for which none of these predictions is right."
)


def error_table(results: Results) -> pd.DataFrame:
    """Return one row per encoder: the kinds of the highest-scoring predictions, in percent over all seeds."""
    truth, lines = _videos(results.plan).annotations.segments, []
    for arm in results.plan.possible:
        counted = [error_kinds(truth, _predictions(results, arm, seed), ENOUGH) for seed in results.recipe.seeds]
        total = sum(seed.total for seed in counted)
        shares = {kind: 100 * sum(seed.counts[kind] for seed in counted) / max(total, 1) for kind in counted[0].counts}
        missed = 100 * sum(seed.missed for seed in counted) / max(len(counted) * len(truth), 1)
        lines.append({"features of": results.label(arm), **shares, "missed": missed})
    return pd.DataFrame(lines)


def errors_table(results: Results) -> Table:
    return Table(error_table(results).round(1), "errors", KINDS_CAPTION)


def errors_plot(results: Results) -> Plot:
    shares = error_table(results).drop(columns="missed").set_index("features of")
    return Plot(charts.stacked_shares(shares, "highest-scoring predictions, %"), "errors", KINDS_CAPTION)


def timelines_plot(results: Results, count: int = 4) -> Plot:
    """Show random videos: the true segments, and as many of each arm's highest-scoring predictions at the first seed."""
    held_out, seed, examples = _videos(results.plan), results.recipe.seeds[0], []
    predicted = {results.label(arm): _predictions(results, arm, seed) for arm in results.plan.possible}
    chosen = numpy_generator(seed, "videos to look at").permutation(len(held_out.names))[:count]
    for index in sorted(chosen.tolist()):
        video = held_out.annotations.videos.iloc[index]
        truth = held_out.annotations.segments.query("video == @video.video").reset_index(drop=True)
        lanes = {"truth": truth.assign(right=True)}
        for name, table in predicted.items():
            best = by_score(table[table.video == video.video]).head(max(1, len(truth)))
            lanes[name] = best.assign(right=matches(truth, best, np.array([ENOUGH]))[0] >= 0)
        examples.append(detection.Timeline(video.video, video.duration, lanes))
    caption = (
        f"Random videos of the {results.recipe.evaluate.split} split: the truth, and the highest-scoring predictions of each "
        f"encoder at seed {seed}, as many as there are segments (at least one). Pale and hatched: wrong class, or IoU below "
        f"{ENOUGH:g}."
    )
    return Plot(detection.timelines(examples, class_names(results.plan)), "timelines", caption)


# ---- Reported values, checks and conclusions ----


def reported_table() -> Table:
    """Return what papers report, of larger models on real data."""
    lines = [
        {"data set": data, "features": features, **{f"reported: {what}, %": value for what, value in values.items()}}
        for (data, features), values in SEGMENT_MAP.items()
    ]
    caption = "Reported on real data (sources: vmae_lab/paper.py), not from runs of this package."
    return Table(pd.DataFrame(lines).fillna(""), "reported", caption)


def evaluated_again(results: Results) -> pd.Series:
    """Return the mean mAP of every run, computed from the segments that it wrote, in percent. Index: arm and seed."""
    videos, settings = _videos(results.plan), _settings(results.plan)
    return common.evaluated_again(
        results, "localise", lambda folder: score_segments(videos, read_predictions(folder / SEGMENTS), settings).mean
    )


def conclusions(results: Results) -> list[str]:
    """State what each training of the encoder changes."""
    return common.pair_words(results, MAP, PAIRS)


def _settings(plan: Plan) -> LocaliseSettings:
    return require(plan.recipe.localise, "localise")


def _videos(plan: Plan, split: Split | None = None) -> Untrimmed:
    """Return the untrimmed videos of a split, by default of the evaluated one."""
    return load_untrimmed(_settings(plan).videos, split or plan.recipe.evaluate.split, plan.recipe.compute)


def _predictions(results: Results, arm: str, seed: int) -> pd.DataFrame:
    return read_predictions(results.store.folder(results.plan.cell(arm, seed).measures["localise"]) / SEGMENTS)
