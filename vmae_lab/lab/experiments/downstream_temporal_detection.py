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
from vmae_lab.lab.statistics import compare_pairs
from vmae_lab.paper import SEGMENT_MAP
from vmae_lab.training.tasks.localise import LocaliseSettings
from vmae_lab.utils.seeding import numpy_generator

MAP, BASELINE = "segment_map", "untrained"
ARMS: dict[str, Arm] = {
    "untrained": common.UNTRAINED,
    "pretrained": common.PRETRAINED,
    "supervised": Arm("pre-trained, then supervised", GREEN, "*", common.running_cells(0.5), post_pretrained=True),
}
PAIRS = (("pretrained", "untrained"), ("supervised", "untrained"), ("supervised", "pretrained"))


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Temporal detection on the features of an encoder: untrained, pre-trained, or also supervised."""
    if recipe.localise and not recipe.localise.videos.extracted:
        raise RecipeError(
            "localise.videos.lists.features come from one encoder, and the plan compares encoders: set lists.videos, or train "
            "on these features with `vmae-lab localise`"
        )
    before = post_pretrain_stage(recipe, encoder, seed) if arm.post_pretrained else encoder
    return {"localise": localise_stage(recipe, before, seed)}


EXPERIMENT = Experiment(
    "Temporal action detection", "Which action happens when, in a long video?", ARMS, stages, baseline=BASELINE, metric=MAP
)


def check_data(plan: Plan) -> None:
    """Check that videos and annotations are there and valid before anything runs. Raises ListError, StorageError."""
    check_untrimmed(_settings(plan).videos, plan.recipe.evaluate.split, plan.recipe.compute)


def segments_table(plan: Plan) -> pd.DataFrame:
    """How many segments of each class the videos of training and evaluation have. Index: class."""
    recipe = plan.recipe
    splits: tuple[Split, ...] = ("train", recipe.evaluate.split)
    annotations = {split: load_untrimmed(_settings(plan).videos, split, recipe.compute).annotations for split in splits}
    counts = {split: found.segments.label.value_counts() for split, found in annotations.items()}
    return pd.DataFrame(counts).reindex(class_names(plan)).rename_axis("action").fillna(0).astype(int)


# ---- mAP over overlaps, classes and durations ----


def localisation_table(results: Results) -> Table:
    """One line per encoder: mAP at each overlap, their mean, and what the encoder's training changes."""
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
        f"Scale `{recipe.scale}`: features of a {recipe.model.size} model, windows of {recipe.model.frames} frames every "
        f"{settings.features.stride} frames, their mean tokens; the encoder is frozen and one "
        f"detector trained on {result['training_videos']} videos ({result['training_segments']} segments) for {settings.steps} "
        f"steps of {settings.batch_size}; {len(recipe.seeds)} seeds; mean ± standard deviation over seeds; "
        f"{result['videos']} videos of the {recipe.evaluate.split} split ({result['segments']} segments). mAP over "
        f"{len(result['per_class'])} classes, protocol of {settings.protocol}. "
        f"{common.how_compared(results.margin, differences)}"
    )
    return Table(pd.DataFrame(lines), "localisation", caption)


def losses(results: Results) -> Plot:
    return common.loss_plot(results, "localise", legend="features of", loss="focal + DIoU loss")


def class_names(plan: Plan) -> tuple[str, ...]:
    """The classes, in the order of their numbers."""
    return _held_out(plan).annotations.classes


def classes_plot(results: Results) -> Plot:
    """Average precision by class of each arm, mean over overlaps."""
    plan = results.plan
    by_class = {arm: common.over_seeds(results, arm, "localise", "per_class", class_names(plan)) for arm in plan.possible}
    overlaps = ", ".join(f"{threshold:g}" for threshold in _settings(plan).thresholds)
    caption = (
        f"Average precision by class, mean over temporal IoU of {overlaps}; mean and standard deviation over "
        f"{len(results.recipe.seeds)} seeds."
    )
    return Plot(charts.bars_by_class(by_class, plan.arms, {}, "average precision, %"), "classes", caption)


def durations_table(results: Results) -> Table:
    """One line per encoder: mAP, mean over overlaps, by the length of segments."""
    limits = _settings(results.plan).durations or DURATIONS
    lengths = _held_out(results.plan).annotations.segments.eval("end - start")
    names = {
        name: f"{name}, {low:g} to {high:g} s ({int(((lengths > low) & (lengths <= high)).sum())} segments): mAP, %"
        for name, (low, high) in limits.items()
    }
    lines = []
    for arm in results.plan.possible:
        summary = common.over_seeds(results, arm, "localise", "by_duration", limits)
        cells = {names[name]: plus_minus(row["mean"], row["std"]) for name, row in summary.iterrows()}
        lines.append({"features of": results.label(arm), **cells})
    caption = (
        "mAP by length, means over overlaps and seeds. Wrong predictions of another length do not count, so these values are "
        "not parts of the whole."
    )
    return Table(pd.DataFrame(lines), "durations", caption)


# ---- Kinds of errors, and timelines ----

ENOUGH = 0.5  # temporal IoU at which a single segment is right
KINDS_CAPTION = (
    "The best predictions of each class, as many as it has segments, all seeds together, in percent. *right*: of the class, "
    f"and overlapping by {ENOUGH:g} or more with a free segment; *double*: that segment was found before; *localisation*: "
    "the class is right, the overlap less; *confusion*: overlapping enough with another class; *both*: with another class, "
    "less; *background*: with nothing (below 0.1). *missed*: segments for which none of these predictions is right."
)


def error_table(results: Results) -> pd.DataFrame:
    """One line per encoder: what the best predictions are, as many as there are segments, in percent over all seeds."""
    truth, lines = _held_out(results.plan).annotations.segments, []
    for arm in results.plan.possible:
        counted = [error_kinds(truth, _predictions(results, arm, seed), ENOUGH) for seed in results.recipe.seeds]
        total = sum(one.total for one in counted)
        shares = {kind: 100 * sum(one.counts[kind] for one in counted) / max(total, 1) for kind in counted[0].counts}
        missed = 100 * sum(one.missed for one in counted) / max(len(counted) * len(truth), 1)
        lines.append({"features of": results.label(arm), **shares, "missed": missed})
    return pd.DataFrame(lines)


def errors_table(results: Results) -> Table:
    return Table(error_table(results).round(1), "errors", KINDS_CAPTION)


def errors_plot(results: Results) -> Plot:
    shares = error_table(results).drop(columns="missed").set_index("features of")
    figure = charts.stacked_shares(shares, "best predictions, as many as there are segments, %")
    return Plot(figure, "errors", KINDS_CAPTION)


def timelines_plot(results: Results, count: int = 4) -> Plot:
    """Random videos: the truth, and the best predictions of each arm's first seed, as many as there are segments."""
    held_out, seed, examples = _held_out(results.plan), results.recipe.seeds[0], []
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
        f"Random videos of the {results.recipe.evaluate.split} split; below the truth, by encoder, the predictions with the "
        f"highest scores, as many as there are segments (at least one), seed {seed}. Pale and hatched: wrong class, or overlap "
        f"below {ENOUGH:g}."
    )
    return Plot(detection.timelines(examples, class_names(results.plan)), "timelines", caption)


# ---- Reported values, checks and conclusions ----


def reported_table() -> Table:
    """What papers report, of larger models on real data."""
    lines = [
        {"data set": data, "features": features, **{f"reported: {what}, %": value for what, value in values.items()}}
        for (data, features), values in SEGMENT_MAP.items()
    ]
    caption = "As reported by others on real data (sources: vmae_lab/paper.py); not from runs of this package."
    return Table(pd.DataFrame(lines).fillna(""), "reported", caption)


def evaluated_again(results: Results) -> pd.Series:
    """Mean mAP of every run, computed from the file that it wrote, in percent. Index: arm and seed."""
    held_out, settings, values = _held_out(results.plan), _settings(results.plan), {}
    for cell in results.plan.cells:
        values[cell.arm, cell.seed] = 100 * score_segments(held_out, _predictions(results, cell.arm, cell.seed), settings).mean
    return pd.Series(values)


def conclusions(results: Results) -> list[str]:
    """What the training of the encoder changes, and which errors are left, in sentences."""
    words = [
        f"Features of '{results.label(arm)}': mean mAP {results.value(arm, MAP)}%, of '{results.label(other)}' "
        f"{results.value(other, MAP)}%: {common.comparison_words(row)}."
        for (arm, other), row in compare_pairs(results.rows, MAP, PAIRS, results.margin).iterrows()
    ]
    best = results.label(results.summary(MAP)["mean"].idxmax())
    kinds = error_table(results).set_index("features of").loc[best].drop(["right", "missed"])
    if kinds.sum() > 0:
        share = 100 * kinds.max() / kinds.sum()
        words.append(f"Of the wrong ones among the best predictions of '{best}', most are {kinds.idxmax()} ({share:.0f}%).")
    return words


def _settings(plan: Plan) -> LocaliseSettings:
    return require(plan.recipe.localise, "localise")


def _held_out(plan: Plan) -> Untrimmed:
    return load_untrimmed(_settings(plan).videos, plan.recipe.evaluate.split, plan.recipe.compute)


def _predictions(results: Results, arm: str, seed: int) -> pd.DataFrame:
    return read_predictions(results.store.folder(results.plan.cell(arm, seed).measures["localise"]) / SEGMENTS)
