"""Decoder masks: which tokens should the decoder reconstruct? Accuracy against cost (VideoMAE V2, table 1)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binom

from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.estimate import token_table
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Cell, Plan
from vmae_lab.lab.plots import charts, clip_pictures, curves, examples
from vmae_lab.lab.plots.style import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY
from vmae_lab.lab.stages import Stage, controls_stage, kept_probe_stage, pretrain_stage, probe_stage, shuffled_probe_stage
from vmae_lab.lab.stages.cost import step_macs
from vmae_lab.lab.statistics import COLUMNS, compare, compare_differences, summarise
from vmae_lab.paper import CITATION, TABLE_1
from vmae_lab.utils.counts import counted

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
    """Build frozen readouts after pre-training and at the steps whose weights it keeps, and fine-tuning."""
    kept = recipe.pretrain.kept_steps if arm.pretrained else ()
    along = {f"probe@step{step}": kept_probe_stage(recipe, encoder, seed, step) for step in kept}
    return {**common.readouts_and_finetuning(recipe, arm, encoder, seed), **along}


def controls(recipe: Recipe, cells: Sequence[Cell]) -> tuple[Stage | None, list[Cell]]:
    """Build readouts of pixels and single frames (of the embedded data only), and the controls in `evaluate.controls`, which
    run at every seed for the first arm with pre-training.

    `other_clip`: pre-training with the target of another clip. `shuffled_labels`: a readout fitted to shuffled labels.
    """
    pixels = controls_stage(recipe) if recipe.data.motionworld else None
    control_cells = []
    for cell in cells:
        if cell.arm != cells[0].arm:
            continue
        for name in dict.fromkeys(recipe.evaluate.controls):
            if name == "other_clip":
                varied = cell.recipe.with_overrides({"pretrain.target_from": "other_clip", "pretrain.keep_at": []})
                encoder = pretrain_stage(varied, cell.seed)
                probe = probe_stage(varied, encoder, cell.seed)
            else:
                varied = cell.recipe
                encoder = cell.encoder
                probe = shuffled_probe_stage(varied, encoder, cell.seed)
            control_cells.append(Cell("controls", cell.seed, varied, encoder, {f"probe@{name}": probe}))
    return pixels, control_cells


EXPERIMENT = Experiment(
    "Decoder masks: accuracy against cost", "Which tokens should the decoder reconstruct?",
    ARMS, stages, baseline=BASELINE, floor=FLOOR, controls=controls,
)  # fmt: skip

# ---- Masks on a clip ----


def mask_gallery(plan: Plan, clip: int = 0) -> Plot:
    """Show a clip, what the encoder sees of it, and what each arm's decoder reconstructs; one column per time step."""
    shape = plan.recipe.model.clip
    frames = examples.picture_clip(plan, clip)[0, :, :: shape.tubelet].permute(1, 2, 3, 0).numpy()
    rows = {"clip": frames}
    # Arms that differ only in the loss have equal pictures. They share a row, under the shorter label.
    decoded: dict[bytes, np.ndarray] = {}
    labels: dict[bytes, str] = {}
    for arm in plan.pretrained:
        masks = examples.masks_of_pictures(plan.first(arm).recipe)
        rows["encoder sees"], picture = (
            clip_pictures.painted(frames, mask[0].view(shape.grid).numpy(), shape.patch) for mask in masks
        )
        pixels = picture.tobytes()
        label = plan.arms[arm].label
        decoded[pixels] = picture
        labels[pixels] = min(labels.get(pixels, label), label, key=len)
    rows |= {f"decodes: {labels[pixels]}": picture for pixels, picture in decoded.items()}
    figure = clip_pictures.strips(rows, [f"time step {step + 1}" for step in range(len(frames))])
    return Plot(figure, "masks", "What the encoder sees, and what each decoder reconstructs. Masked patches are gray.")


# ---- Accuracy and cost ----


def results_table(results: Results) -> Table:
    """Return one row per arm: accuracies, paired difference to the baseline, cost, and what the paper reports."""
    probe, evaluate = results.probe, results.recipe.evaluate
    differences = results.compare(probe, BASELINE, results.plan.pretrained)
    cost = token_table(results.plan)
    lines = []
    for arm in results.recipe.arms:
        reported = TABLE_1.get(arm)
        lines.append({
            "decoder mask": results.label(arm),
            f"frozen, {PROBE_NAMES[probe]}, {common.label_words(evaluate.probe.labels)}: top-1 %": results.value(arm, probe),
            **common.comparison_cells(differences, arm, ARMS[BASELINE].label),
            f"fine-tuned, {common.label_words(evaluate.finetune_labels)}: top-1 %": results.value(arm, "finetune"),
            "M MAC per clip": f"{cost.MMAC[arm]:.2f}" if arm in cost.index else "",
            "paper, reported: SSv2 top-1 %": f"{reported.top1_percent:.2f}" if reported else "",
            "paper, reported: G MAC": f"{reported.giga:.2f}" if reported else "",
        })  # fmt: skip
    paper = f"Reported: {CITATION}, table 1, ViT-B, 800 epochs; not a result of this run."
    return Table(pd.DataFrame(lines), "decoder_mask", f"{common.caption(results, differences)} {paper}")


def accuracy_against_cost(results: Results) -> Plot:
    figure = charts.accuracy_against_cost(
        results.summary(results.probe), token_table(results.plan).MMAC, results.plan.arms, FLOOR, results.chance,
        "frozen few-label readout, top-1 (%)",
    )  # fmt: skip
    equal = common.equal_cost_words(results.plan)
    caption = f"Accuracy against pre-training cost. Bars: 95% t interval over seeds.{equal}"
    return Plot(figure, "accuracy_against_cost", caption)


def details_table(results: Results) -> Table:
    """Return one row per arm: the test set's interval, other readouts, reconstruction errors, memory of a step."""
    others: dict[str, tuple[str, int]] = {
        **{probe: (f"{PROBE_NAMES[probe]}: top-1 %", 1) for probe in results.recipe.evaluate.probe.probes[1:]},
        "reconstruction": ("reconstruction error", 4),
        "cube_mean": ("error of the patch mean", 4),
        "pretrain_peak_memory_mib": ("peak GPU memory, MiB", 0),
    }
    measured = {metric: named for metric, named in others.items() if metric in set(results.rows.metric)}
    lines = [
        {
            "decoder mask": results.label(arm),
            f"{PROBE_NAMES[results.probe]}: 95% interval of the test set": common.test_set_interval(results, arm),
            **{name: results.value(arm, metric, digits) for metric, (name, digits) in measured.items()},
            "error below that of the patch mean, %": _below_patch_mean(results, arm),
        }
        for arm in results.recipe.arms
    ]
    caption = (
        "Uncertainty from the size of the test set, other readouts, and held-out reconstruction error. The "
        "error is measured under each arm's own masks and does not measure the quality of features."
    )
    return Table(pd.DataFrame(lines), "details", caption)


def _below_patch_mean(results: Results, arm: str) -> str:
    """Return how far an arm's error is below that of the patch mean: percent, two significant digits; or an empty text."""
    means = results.rows[results.rows.arm == arm].groupby("metric").value.mean()
    return f"{100 * (1 - means['reconstruction'] / means['cube_mean']):.2g}" if "cube_mean" in means else ""


def losses(results: Results) -> Plot:
    return common.loss_plot(results, legend="decoder mask", note=". Not comparable between arms")


def reconstruction(results: Results, clip: int = 0) -> Plot:
    """Show how the arm with running cells of 50%, or else the first pre-trained arm, reconstructs a held-out clip."""
    plan = results.plan
    arm = "running_cell_50" if "running_cell_50" in plan.pretrained else plan.pretrained[0]
    figure = clip_pictures.strips(examples.reconstructions(plan, results.store, arm, clip))
    caption = (
        f"A held-out clip and its reconstruction by '{results.label(arm)}', with the true mean and contrast of each patch."
    )
    return Plot(figure, "reconstruction", caption)


# ---- Accuracy against compute ----

NO_CURVE = "There is no curve, since no weights were kept during pre-training. Set pretrain.keep_at, e.g. to [0.25, 0.5, 0.75]."


def curve_rows(results: Results) -> pd.DataFrame:
    """Return the main readout of each pre-trained arm at its kept steps and its last: columns arm, seed, step, macs, value.

    `macs`: multiply-accumulates of the pre-training up to that step, forward and backward. Empty if no weights were kept.
    """
    rows, probe = results.rows, results.probe
    parts = []
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
    """Return the mean and t interval over seeds at each step: columns arm, step, macs, mean, low, high."""
    parts = []
    for (step, macs), part in curve.groupby(["step", "macs"], sort=True):
        found = summarise(part.assign(metric="value"), "value")
        parts.append(found[["mean", "low", "high"]].rename_axis("arm").reset_index().assign(step=step, macs=macs))
    return pd.concat(parts, ignore_index=True)


def at_equal_steps(curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Pair the other arms with the baseline at the same step and seed: the columns of `curve`, and `baseline`."""
    values = curve[curve.arm == baseline].set_index(["seed", "step"]).value.rename("baseline")
    return curve[curve.arm != baseline].join(values, on=["seed", "step"], how="inner").reset_index(drop=True)


def at_equal_compute(curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Pair the other arms with the baseline at the same compute and seed: the columns of `curve`, and `baseline`.

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


def curve_differences(plan: Plan, curve: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Compare the other arms with the baseline at each of their steps.

    Columns arm, step, equal ("steps" or "compute"), and those of `compare`. Empty if the baseline was not run.
    """
    parts = []
    for equal, pairs in (("steps", at_equal_steps(curve, baseline)), ("compute", at_equal_compute(curve, baseline))):
        for step, part in pairs.assign(value=pairs.value - pairs.baseline).groupby("step"):
            differences = part.pivot(index="seed", columns="arm", values="value")
            arms = [arm for arm in plan.pretrained if arm in differences]
            found = compare_differences(differences[arms], plan.recipe.evaluate.margin)
            parts.append(found.rename_axis("arm").reset_index().assign(step=step, equal=equal))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "step", "equal", *COLUMNS])


def accuracy_against_compute(results: Results, curve: pd.DataFrame) -> Plot | None:
    """Plot accuracy during pre-training against steps and compute; None if no weights were kept."""
    if curve.empty:
        print(NO_CURVE)
        return None
    untrained = ""
    if FLOOR in results.plan.possible:
        untrained = f" The untrained encoder scores {results.summary(results.probe)['mean'][FLOOR]:.1f}%."
    figure = curves.accuracy_curves(curve_summary(curve), results.plan.arms, "frozen few-label readout, top-1 (%)")
    caption = (
        "Main frozen readout during pre-training, against optimizer steps and against their multiply-accumulates (forward "
        f"and backward). Mean and 95% t interval over {counted(len(results.recipe.seeds), 'seed')}.{untrained} All points of "
        "an arm come from one training, whose learning rate falls until the last step."
    )
    return Plot(figure, "accuracy_against_compute", caption)


def difference_against_steps(results: Results, curve: pd.DataFrame) -> Plot | None:
    """Plot differences to the baseline during pre-training; None if there are none."""
    found = curve_differences(results.plan, curve)
    if found.empty:
        return None
    name = ARMS[BASELINE].label
    figure = curves.difference_curves(found, results.plan.arms, BASELINE, "difference in top-1 (points)")
    columns = [table for _, table in found.groupby(["equal", "step"])]
    caption = (
        f"Difference to '{name}' during pre-training, at the same number of steps and at the same number of "
        f"multiply-accumulates. {common.how_compared(results.margin, *columns)} At equal compute, the accuracy of '{name}' is "
        "interpolated linearly between its points and not extrapolated. On a curve that flattens, this underestimates "
        f"'{name}'. The vertical axis is cut."
    )
    return Plot(figure, "difference_against_steps", caption)


def equal_compute_table(results: Results, curve: pd.DataFrame) -> Table | None:
    """Return two rows per arm: its differences to the baseline at equal steps and at equal compute, one column per step."""
    name = ARMS[BASELINE].label
    found = curve_differences(results.plan, curve)
    last = curve.step.max()
    cost = curve.assign(each=curve.macs / curve.step).groupby("arm").each.first()
    lines = []
    for arm in [arm for arm in results.plan.pretrained if arm in set(found.arm)]:
        for equal, chosen in found[found.arm == arm].groupby("equal", sort=False):
            by_step = chosen.set_index("step")
            lines.append({
                "decoder mask": results.label(arm),
                f"compute per step, % of {name}": f"{100 * cost[arm] / cost[BASELINE]:.0f}",
                f"difference to {name} [95%] at equal": equal,
                **{
                    f"after {counted(step, 'step')}": common.difference_cell(by_step, step)
                    for step in sorted(curve.step.unique())
                },
                f"verdict after {counted(last, 'step')}": by_step.verdict.get(last, ""),
            })  # fmt: skip
    caption = (
        f"The differences of the figure above: points, with 95% intervals over {counted(len(results.recipe.seeds), 'seed')}."
    )
    return Table(pd.DataFrame(lines), "equal_compute", caption) if lines else None


# ---- Controls and conclusions ----


def controls_table(results: Results) -> Table:
    """Return one row per control. Empty for list files without `evaluate.controls`."""
    lines = pd.DataFrame([*_pixel_controls(results), *_trained_controls(results)]).fillna("")
    return Table(
        lines, "controls", "Controls: accuracy without an encoder, and of encoders and readouts that cannot have learned."
    )


def _pixel_controls(results: Results) -> list[dict[str, str]]:
    """Return the rows of the readouts without an encoder.

    Each has the accuracy that guessing exceeds in 5% of cases (binomial, Bonferroni over the frames).
    """
    if results.plan.controls is None:
        return []
    values = results.rows[results.rows.arm == "controls"].set_index("metric").value
    found = results.store.result(results.plan.controls)
    clips, frames = found["test_clips"], len(found["single_frames"])
    lines = []
    for metric, name, tries in (
        ("raw_pixels", "ridge on the raw pixels of the clip, few labels", 1),
        ("single_frame_mean", f"ridge on one frame, all labels, mean of {counted(frames, 'frame')}", 1),
        ("single_frame_best", f"ridge on one frame, all labels, best of {counted(frames, 'frame')}", frames),
    ):
        limit = 100 * float(binom.ppf(1 - 0.05 / tries, clips, results.chance / 100)) / clips
        above = "yes" if values[metric] > limit else "no"
        line = _control_line(results, name, f"{values[metric]:.1f}")
        lines.append({**line, "95% limit of guessing": f"{limit:.1f}", "above chance": above})
    return lines


def _trained_controls(results: Results) -> list[dict[str, str]]:
    """Return the rows of the controls that read an encoder, with an interval over seeds.

    The binomial limit of chance does not hold for them: a readout makes the same error on all clips of an action, so a fit to
    shuffled labels varies more than guessing does.
    """
    rows, probe = results.rows, results.probe
    lines = []
    for control, name in {
        "other_clip": f"pre-training with the target of another clip, {PROBE_NAMES[probe]}",
        "shuffled_labels": f"pre-training, {PROBE_NAMES[probe]} fitted to shuffled labels",
    }.items():
        if control not in results.recipe.evaluate.controls:
            continue
        own = rows[(rows.arm == "controls") & (rows.metric == f"{probe}@{control}")].assign(metric=probe)
        summary = summarise(own, probe)
        line = _control_line(results, name, common.mean_and_spread(summary, "controls"))
        if not np.isnan(summary.low["controls"]):
            line["95% interval over seeds"] = f"{summary.low['controls']:.1f} to {summary.high['controls']:.1f}"
        if control == "other_clip" and FLOOR in results.plan.possible:
            both = pd.concat([own, rows[(rows.arm == FLOOR) & (rows.metric == probe)]])
            comparisons = compare(both, probe, FLOOR, results.margin, ["controls"])
            line |= common.comparison_cells(comparisons, "controls", "the untrained encoder")
        lines.append(line)
    return lines


def _control_line(results: Results, name: str, accuracy: str) -> dict[str, str]:
    return {"control": name, "top-1 %": accuracy, "chance %": f"{results.chance:.1f}"}


def conclusions(results: Results) -> list[str]:
    """State what pre-training changes, and the verdicts at equal steps and at equal compute."""
    words = common.readout_words(results, results.probe, FLOOR, BASELINE)
    return words + equal_compute_words(results, curve_rows(results))


def equal_compute_words(results: Results, curve: pd.DataFrame) -> list[str]:
    """State the verdicts at equal compute at the arms' last step; no sentence if there is no curve."""
    found = curve_differences(results.plan, curve)
    last = found[(found.equal == "compute") & (found.step == curve.step.max())].set_index("arm")
    if last.empty:
        return []
    words = common.verdict_words(results, last, BASELINE)
    return [f"At equal compute after the last step, {words[0].lower()}{words[1:]}"]
