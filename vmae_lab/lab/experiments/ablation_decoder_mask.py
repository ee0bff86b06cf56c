"""Decoder masks: which tokens should the decoder rebuild? Accuracy against cost (VideoMAE V2, table 1)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import binom

from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.estimate import token_table
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots import charts, clip_pictures, curves, examples
from vmae_lab.lab.plots.style import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY
from vmae_lab.lab.stages import Stage, kept_probe_stage
from vmae_lab.lab.stages.cost import step_macs
from vmae_lab.lab.statistics import COLUMNS, compare, summarise
from vmae_lab.paper import CITATION, TABLE_1

BASELINE, FLOOR = "none", "scratch"
ARMS: dict[str, Arm] = {
    "scratch": common.SCRATCH,
    "none": Arm("none (V1)", BLACK, "o", common.decoder_mask("none", 0.0)),
    "frame_50": Arm("frame 50%", ORANGE, "s", common.decoder_mask("frame", 0.5)),
    "random_50": Arm("random 50%", RED, "^", common.decoder_mask("random", 0.5)),
    "running_cell_50_all": Arm("cell 50%, loss on all", PINK, "v", common.decoder_mask("running_cell", 0.5, "all_decoded")),
    "running_cell_25": Arm("cell 25%", SKY, "P", common.decoder_mask("running_cell", 0.25)),
    "running_cell_50": Arm("cell 50%", BLUE, "D", common.decoder_mask("running_cell", 0.5)),
    "running_cell_75": Arm("cell 75%", GREEN, "*", common.decoder_mask("running_cell", 0.75)),
}


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Frozen readouts at the end and at the steps where pre-training keeps its weights, and fine-tuning."""
    kept = recipe.pretrain.kept_steps if arm.pretrained else ()
    along = {f"probe@step{step}": kept_probe_stage(recipe, encoder, seed, step) for step in kept}
    return {**common.readouts_and_finetuning(recipe, arm, encoder, seed), **along}


EXPERIMENT = Experiment(
    "Decoder masks: accuracy against cost", "Which tokens should the decoder rebuild?",
    ARMS, stages, baseline=BASELINE, floor=FLOOR, controls=True,
)  # fmt: skip

# ---- Masks on a clip ----


def mask_gallery(plan: Plan, clip: int = 0) -> Plot:
    """A clip, what the encoder sees of it, and what each arm's decoder rebuilds."""
    masks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for arm in plan.pretrained:
        encoder_mask, decoded = (
            mask[0].reshape(plan.recipe.model.clip.grid).numpy() for mask in examples.masks_of_pictures(plan.first(arm).recipe)
        )
        label = plan.arms[arm].label
        for other, (_, shown) in list(masks.items()):  # arms that differ in the loss alone share a row, under the shorter name
            if np.array_equal(shown, decoded):
                label = min(label, other, key=len)
                del masks[other]
        masks[label] = encoder_mask, decoded
    video = examples.picture_clip(plan, clip)[0].permute(1, 2, 3, 0).numpy()
    figure = clip_pictures.mask_gallery(video, masks, plan.recipe.model.tubelet, plan.recipe.model.clip.patch)
    return Plot(figure, "masks", "What the encoder sees, and what each decoder rebuilds; grey cubes are left out.")


# ---- Accuracy and cost ----


def results_table(results: Results) -> Table:
    """One line per arm: accuracies, paired difference to the baseline, cost, and what the paper reports."""
    probe, evaluate = results.probe, results.recipe.evaluate
    differences = results.compare(probe, BASELINE, results.plan.pretrained)
    cost = token_table(results.plan)
    lines = []
    for arm in results.recipe.arms:
        reported = TABLE_1.get(arm)
        lines.append({
            "decoder mask": results.label(arm),
            f"frozen, {PROBE_NAMES[probe]}, {evaluate.probe.labels or 'all'} labels: top-1 %": results.value(arm, probe),
            **common.comparison_cells(differences, arm, ARMS[BASELINE].label),
            f"fine-tuned, {evaluate.finetune_labels or 'all'} labels: top-1 %": results.value(arm, "finetune"),
            "M MAC per clip": f"{cost.MMAC[arm]:.2f}" if arm in cost.index else "",
            "paper, reported: SSv2 top-1 %": f"{reported.top1_percent:.2f}" if reported else "",
            "paper, reported: G MAC": f"{reported.giga:.2f}" if reported else "",
        })  # fmt: skip
    paper = f"Paper: {CITATION}, table 1, ViT-B, 800 epochs; not a result of this run."
    return Table(pd.DataFrame(lines), "decoder_mask", f"{common.caption(results, differences)} {paper}")


def accuracy_against_cost(results: Results) -> Plot:
    figure = charts.accuracy_against_cost(
        results.summary(results.probe), token_table(results.plan).MMAC, results.plan.arms, FLOOR, results.chance,
        "frozen few-label readout, top-1 (%)",
    )  # fmt: skip
    caption = "Accuracy against pre-training cost; bars: 95% t interval over seeds."
    return Plot(figure, "accuracy_against_cost", caption)


def details_table(results: Results) -> Table:
    """One line per arm: the test set's interval, other readouts, reconstruction errors, time and memory of a step."""
    others: dict[str, tuple[str, int]] = {
        **{probe: (f"{PROBE_NAMES[probe]}: top-1 %", 1) for probe in results.recipe.evaluate.probe.probes[1:]},
        "reconstruction": ("reconstruction error", 4),
        "cube_mean": ("error of the cube mean", 4),
        "pretrain_seconds_per_step": ("seconds per step", 3),
        "pretrain_peak_memory_mib": ("peak GPU memory, MiB", 0),
    }
    measured = {metric: named for metric, named in others.items() if metric in set(results.rows.metric)}
    lines = [
        {
            "decoder mask": results.label(arm),
            f"{PROBE_NAMES[results.probe]}: 95% interval of the test set": common.test_set_interval(results, arm),
            **{name: results.value(arm, metric, digits) for metric, (name, digits) in measured.items()},
        }
        for arm in results.recipe.arms
    ]
    caption = (
        "The test set's own uncertainty, other readouts, held-out reconstruction error, and cost. An error does not measure "
        "the quality of features, and is measured under each arm's own masks."
    )
    return Table(pd.DataFrame(lines), "details", caption)


def losses(results: Results) -> Plot:
    return common.loss_plot(results, legend="decoder mask", note="; not comparable between arms")


def reconstruction(results: Results, clip: int = 0) -> Plot:
    """A held-out clip as the arm with running cells of 50% rebuilds it, or else the first pre-trained arm."""
    plan = results.plan
    arm = "running_cell_50" if "running_cell_50" in plan.pretrained else plan.pretrained[0]
    figure = clip_pictures.strips(examples.reconstructions(plan, results.store, arm, clip))
    caption = f"A held-out clip rebuilt by '{results.label(arm)}'; the mean and contrast of each cube are taken from the truth."
    return Plot(figure, "reconstruction", caption)


# ---- Accuracy against compute ----

NO_CURVE = (
    "No weights were kept during pre-training, so there is no accuracy against compute. Set pretrain.keep_at, for example to "
    "[0.25, 0.5, 0.75]."
)
SCHEDULE = (
    "All points of an arm come from one training, whose learning rate falls until its last step. A training planned for fewer "
    "steps may score higher than such a point."
)


def curve_rows(results: Results) -> pd.DataFrame:
    """The main readout of each pre-trained arm at its kept steps and its last: columns arm, seed, step, macs, value.

    `macs`: multiply-accumulates of the pre-training up to that step, forward and backward. Empty if no weights were kept.
    """
    rows, probe, parts = results.rows, results.probe, []
    for arm in results.plan.pretrained:
        recipe = results.plan.first(arm).recipe
        steps = {f"{probe}@step{step}": step for step in recipe.pretrain.kept_steps}
        if steps:
            steps[probe] = recipe.pretrain.steps
        part = rows[(rows.arm == arm) & rows.metric.isin(steps)]
        part = part.assign(step=part.metric.map(steps).astype(int))
        macs = part.step * step_macs(recipe.model, recipe.mask, recipe.pretrain.batch_size)
        parts.append(part.assign(macs=macs)[["arm", "seed", "step", "macs", "value"]])
    return pd.concat(parts, ignore_index=True)


def curve_summary(curve: pd.DataFrame) -> pd.DataFrame:
    """Mean and t interval over seeds at each point of a curve: columns arm, step, macs, mean, low, high."""
    parts = []
    for (step, macs), part in curve.groupby(["step", "macs"], sort=True):
        found = summarise(part.assign(metric="value"), "value")
        parts.append(found[["mean", "low", "high"]].rename_axis("arm").reset_index().assign(step=step, macs=macs))
    return pd.concat(parts, ignore_index=True)


def at_equal_steps(curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The other arms next to the baseline at the same step and seed: the columns of `curve`, and `baseline`."""
    values = curve[curve.arm == baseline].set_index(["seed", "step"]).value.rename("baseline")
    return curve[curve.arm != baseline].join(values, on=["seed", "step"], how="inner").reset_index(drop=True)


def at_equal_compute(curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The other arms next to the baseline at the same compute and seed: the columns of `curve`, and `baseline`.

    The baseline's value is interpolated linearly between its two points next to the arm's `macs`. Points outside the baseline's
    range are left out: nothing is extrapolated.
    """
    parts = []
    for seed, points in curve[curve.arm == baseline].groupby("seed"):
        known = points.sort_values("macs")
        part = curve[(curve.arm != baseline) & (curve.seed == seed)]
        found = np.interp(part.macs, known.macs, known.value, left=np.nan, right=np.nan)
        parts.append(part.assign(baseline=found).dropna(subset="baseline"))
    return pd.concat(parts, ignore_index=True) if parts else curve.iloc[:0].assign(baseline=0.0)


def comparison_rows(pairs: pd.DataFrame, curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Pairs of `at_equal_steps` or `at_equal_compute` as rows of results, one metric per step (`step250`).

    At each seed an arm differs from the baseline's row by its difference to its own partner, so that `compare` can be used.
    """
    own = curve[curve.arm == baseline].set_index(["seed", "step"]).value
    paired = pairs.join(own.rename("own"), on=["seed", "step"], how="inner")
    arms = paired.assign(value=paired.own + paired.value - paired.baseline)
    base = paired[["seed", "step", "own"]].drop_duplicates().rename(columns={"own": "value"}).assign(arm=baseline)
    rows = pd.concat([arms, base], ignore_index=True)
    return rows.assign(metric="step" + rows.step.astype(str))[["arm", "seed", "metric", "value"]]


def curve_differences(plan: Plan, curve: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """The other arms compared with the baseline at each of their steps.

    Columns arm, step, equal ("steps" or "compute"), and those of `compare`. Empty if the baseline was not run.
    """
    parts = []
    for equal, pairs in (("steps", at_equal_steps(curve, baseline)), ("compute", at_equal_compute(curve, baseline))):
        rows = comparison_rows(pairs, curve, baseline)
        for step in sorted(pairs.step.unique()):
            arms = [arm for arm in plan.pretrained if arm in set(pairs[pairs.step == step].arm)]
            found = compare(rows, f"step{step}", baseline, plan.recipe.evaluate.margin, arms)
            parts.append(found.rename_axis("arm").reset_index().assign(step=step, equal=equal))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "step", "equal", *COLUMNS])


def accuracy_against_compute(results: Results, curve: pd.DataFrame) -> Plot | None:
    """Accuracy during pre-training against steps and compute; None if no weights were kept."""
    untrained = ""
    if curve.empty:
        print(NO_CURVE)
        return None
    if FLOOR in results.plan.possible:
        untrained = f" The untrained encoder scores {results.summary(results.probe)['mean'][FLOOR]:.1f}%."
    figure = curves.accuracy_curves(curve_summary(curve), results.plan.arms, "frozen few-label readout, top-1 (%)")
    caption = (
        "Accuracy of the main frozen readout during pre-training, against optimiser steps and against the multiply-accumulates "
        f"of these steps, forward and backward. Mean and 95% t interval over {_seeds(results)}.{untrained} {SCHEDULE}"
    )
    return Plot(figure, "accuracy_against_compute", caption)


def difference_against_steps(results: Results, curve: pd.DataFrame) -> Plot | None:
    """Differences to the baseline during pre-training; None if there are none."""
    found, name = curve_differences(results.plan, curve), ARMS[BASELINE].label
    if found.empty:
        return None
    figure = curves.difference_curves(found, results.plan.arms, BASELINE, "difference in top-1 (points)")
    columns = [table for _, table in found.groupby(["equal", "step"])]
    caption = (
        f"Difference of each arm to '{name}' during pre-training, at the same number of steps and at the same number of "
        f"multiply-accumulates. {common.how_compared(results.margin, *columns)} At equal compute, the accuracy of '{name}' is "
        "interpolated linearly between its points; there is no value before its first point. Between distant points of a curve "
        f"that flattens, this understates '{name}'. {SCHEDULE} At equal compute this favours the arm at its last step. "
        "The axis is cut to the differences and to the intervals of the last step."
    )
    return Plot(figure, "difference_against_steps", caption)


def equal_compute_table(results: Results, curve: pd.DataFrame) -> Table | None:
    """Two lines per arm: its differences to the baseline at equal steps and at equal compute, one column per step."""
    name, found, lines = ARMS[BASELINE].label, curve_differences(results.plan, curve), []
    cost = curve.assign(each=curve.macs / curve.step).groupby("arm").each.first()
    for arm in [arm for arm in results.plan.pretrained if arm in set(found.arm)]:
        for equal, chosen in found[found.arm == arm].groupby("equal", sort=False):
            by_step, last = chosen.set_index("step"), curve.step.max()
            lines.append({
                "decoder mask": results.label(arm),
                f"compute per step, % of {name}": f"{100 * cost[arm] / cost[BASELINE]:.0f}",
                f"difference to {name} [95%] at equal": equal,
                **{f"after {step} steps": common.difference_cell(by_step, step) for step in sorted(curve.step.unique())},
                f"verdict after {last} steps": by_step.verdict.get(last, ""),
            })  # fmt: skip
    caption = f"The differences of the figure above in numbers, to '{name}' [95%], over {_seeds(results)}."
    return Table(pd.DataFrame(lines), "equal_compute", caption) if lines else None


def _seeds(results: Results) -> str:
    count = len(results.recipe.seeds)
    return f"{count} seed{'s' * (count > 1)}"


# ---- Controls ----


def controls_table(results: Results) -> Table:
    """The controls: those without an encoder next to the limit of chance, and trained ones with their interval over seeds.

    Empty for list files without `evaluate.controls`.
    """
    lines = pd.DataFrame([*_pixel_controls(results), *_trained_controls(results)]).fillna("")
    return Table(lines, "controls", "Controls: what can be read without an encoder, or from one that cannot have learned.")


def _pixel_controls(results: Results) -> list[dict[str, str]]:
    """Controls without an encoder, one line each."""
    if results.plan.controls is None:
        return []
    values = results.rows[results.rows.arm == "controls"].set_index("metric").value
    controls = results.store.result(results.plan.controls)
    clips, frames = controls["test_clips"], len(controls["single_frames"])
    names = {
        "raw_pixels": ("ridge on the raw pixels of the clip, few labels", 1),
        "single_frame_mean": (f"ridge on one frame, all labels, mean of {frames} frames", 1),
        "single_frame_best": (f"ridge on one frame, all labels, best of {frames} frames", frames),
    }
    return [
        {
            **_control_line(results, name, f"{values[metric]:.1f}"),
            "chance stays below, 95%": f"{_chance_limit(results, clips, tries):.1f}",
        }
        for metric, (name, tries) in names.items()
    ]


def _trained_controls(results: Results) -> list[dict[str, str]]:
    """The recipe's controls that read an encoder, one line each: mean, deviation and interval over seeds.

    The binomial limit of chance does not hold for them: a readout makes the same error on all clips of an action, so a fit to
    shuffled labels varies more than guesses.
    """
    rows, probe, lines = results.rows, results.probe, []
    names = {
        "other_clip": f"pre-training with the target of another clip, {PROBE_NAMES[probe]}",
        "shuffled_labels": f"pre-training, {PROBE_NAMES[probe]} fitted to shuffled labels",
    }
    for control, name in names.items():
        if not any(f"probe@{control}" in cell.measures for cell in results.plan.control_cells):
            continue
        own = rows[(rows.arm == "controls") & (rows.metric == f"{probe}@{control}")].assign(metric=probe)
        summary = summarise(own, probe)
        line = _control_line(results, name, common.mean_and_spread(summary, "controls"))
        low, high = summary.low["controls"], summary.high["controls"]
        if not np.isnan(low):
            line["95% interval over seeds"] = f"{low:.1f} to {high:.1f}"
        if control == "other_clip" and FLOOR in results.plan.possible:
            both = pd.concat([own, rows[(rows.arm == FLOOR) & (rows.metric == probe)]])
            comparisons = compare(both, probe, FLOOR, results.margin, ["controls"])
            line |= common.comparison_cells(comparisons, "controls", "the untrained encoder")
        lines.append(line)
    return lines


def _control_line(results: Results, name: str, accuracy: str) -> dict[str, str]:
    return {"control": name, "top-1 %": accuracy, "chance %": f"{results.chance:.1f}"}


def _chance_limit(results: Results, clips: int, tries: int) -> float:
    """Accuracy that the best of some tries at chance stays below in 95% of cases (binomial, Bonferroni), in percent."""
    return 100 * float(binom.ppf(1 - 0.05 / tries, clips, 1 / results.recipe.data.classes)) / clips


# ---- Conclusions ----


def conclusions(results: Results) -> list[str]:
    """The results in sentences."""
    plan, probe = results.plan, results.probe
    words = _single_frame_words(results)
    if FLOOR in plan.recipe.arms and plan.pretrained:
        words += common.floor_words(results, probe, FLOOR)
        others = [
            f"{PROBE_NAMES[other]} {common.difference_range(results.compare(other, FLOOR, plan.pretrained))}"
            for other in plan.recipe.evaluate.probe.probes[1:]
        ]
        if others:
            words.append(f"The other readouts change by: {'; '.join(others)} points.")
        tuned = results.compare("finetune", FLOOR, plan.pretrained)
        words.append(
            "Compared with training from scratch, pre-training changes the accuracy after fine-tuning "
            f"({plan.recipe.evaluate.finetune_labels or 'all'} labels) by {common.difference_range(tuned)} points."
        )
    words.append(_reconstruction_words(results))
    if BASELINE in plan.pretrained and len(plan.pretrained) > 1:
        words.append(common.verdict_words(results, results.compare(probe, BASELINE, plan.pretrained), BASELINE))
    return words + equal_compute_words(results, curve_rows(results))


def equal_compute_words(results: Results, curve: pd.DataFrame) -> list[str]:
    """The verdicts at equal compute at the arms' last step; no sentence if there is no curve."""
    found = curve_differences(results.plan, curve)
    last = found[(found.equal == "compute") & (found.step == curve.step.max())].set_index("arm")
    if last.empty:
        return []
    words = common.verdict_words(results, last, BASELINE)
    return [f"At equal compute, after the arms' last step: {words[0].lower()}{words[1:]}"]


def _single_frame_words(results: Results) -> list[str]:
    """Whether the class can be read from one frame, against the binomial limit for the best of all frames."""
    if results.plan.controls is None:
        return []
    best = results.rows[(results.rows.arm == "controls") & (results.rows.metric == "single_frame_best")].value.item()
    controls = results.store.result(results.plan.controls)
    limit = _chance_limit(results, controls["test_clips"], len(controls["single_frames"]))
    verdict = (
        "One frame alone beats chance: part of what is read is not motion" if best > limit else "No single frame beats chance"
    )
    return [f"{verdict} (best {best:.1f}%; the best of as many tries at chance stays below {limit:.1f}%)."]


def _reconstruction_words(results: Results) -> str:
    """How far the held-out errors are below those of predicting each cube's mean."""
    error, trivial = (results.summary(metric)["mean"] for metric in ("reconstruction", "cube_mean"))
    below = 100 * (1 - error / trivial)
    return (
        f"Held-out reconstruction errors are {below.min():.1f} to {below.max():.1f}% below those of predicting each cube's "
        "mean; compare masks by the readouts, not by these errors."
    )
