"""Accuracy against compute: the main readout at several steps of each pre-training, and arms at equal steps and compute."""

import numpy as np
import pandas as pd

from vmae_lab.lab.experiments.common import compared, difference_cell, how_compared, main_probe, verdict_words
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.stage_cost import step_macs
from vmae_lab.lab.statistics import COLUMNS, summarise

NO_CURVE = (
    "No weights were kept during pre-training, so there is no accuracy against compute. Set pretrain.keep_at, for example to "
    "[0.25, 0.5, 0.75]."
)


def curve_rows(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """The main readout of each pre-trained arm at its kept steps and its last: columns arm, seed, step, macs, value.

    `macs`: multiply-accumulates of the pre-training up to that step, forward and backward. Empty if no weights were kept.
    """
    probe, parts = main_probe(plan), []
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
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

    The baseline's value is interpolated linearly between its two points next to the arm's `macs`. Points below the baseline's
    first or above its last are left out: nothing is extrapolated.
    """
    parts = []
    for seed, points in curve[curve.arm == baseline].groupby("seed"):
        known = points.sort_values("macs")
        part = curve[(curve.arm != baseline) & (curve.seed == seed)]
        found = np.interp(part.macs, known.macs, known.value, left=np.nan, right=np.nan)
        parts.append(part.assign(baseline=found).dropna(subset="baseline"))
    return pd.concat(parts, ignore_index=True) if parts else curve.iloc[:0].assign(baseline=0.0)


def comparison_rows(pairs: pd.DataFrame, curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Pairs of `at_equal_steps` or `at_equal_compute` as rows that tables of results have: columns arm, seed, metric, value.

    One metric per step, `step250`. At each seed an arm differs from the baseline's row by its difference to its own partner.
    """
    own = curve[curve.arm == baseline].set_index(["seed", "step"]).value
    there = pairs.join(own.rename("own"), on=["seed", "step"], how="inner")
    arms = there.assign(value=there.own + there.value - there.baseline)
    base = there[["seed", "step", "own"]].drop_duplicates().rename(columns={"own": "value"}).assign(arm=baseline)
    rows = pd.concat([arms, base], ignore_index=True)
    return rows.assign(metric="step" + rows.step.astype(str))[["arm", "seed", "metric", "value"]]


def differences(plan: Plan, curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The other arms compared with the baseline at each of their steps.

    Columns arm, step, equal ("steps" or "compute"), and those of `compare`. Empty if the baseline was not run.
    """
    parts = []
    for equal, pairs in (("steps", at_equal_steps(curve, baseline)), ("compute", at_equal_compute(curve, baseline))):
        rows = comparison_rows(pairs, curve, baseline)
        for step in sorted(pairs.step.unique()):
            arms = [arm for arm in plan.pretrained if arm in set(pairs[pairs.step == step].arm)]
            found = compared(plan, rows, f"step{step}", baseline, arms)
            parts.append(found.rename_axis("arm").reset_index().assign(step=step, equal=equal))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "step", "equal", *COLUMNS])


def difference_table(plan: Plan, curve: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Two lines per arm: its differences to the baseline at equal steps and at equal compute, one column per step."""
    found, name, lines = differences(plan, curve, baseline), plan.arms[baseline].label, []
    cost = curve.assign(each=curve.macs / curve.step).groupby("arm").each.first()
    last = curve.step.max()
    for arm in [arm for arm in plan.pretrained if arm in set(found.arm)]:
        for equal, chosen in found[found.arm == arm].groupby("equal", sort=False):
            by_step = chosen.set_index("step")
            line = {
                "decoder mask": plan.arms[arm].label,
                f"compute per step, % of {name}": f"{100 * cost[arm] / cost[baseline]:.0f}",
                f"difference to {name} [95%] at equal": equal,
            }
            line |= {f"after {step} steps": difference_cell(by_step, step) for step in sorted(curve.step.unique())}
            lines.append({**line, f"verdict after {last} steps": by_step.verdict.get(last, "")})
    return pd.DataFrame(lines)


def conclusions(plan: Plan, curve: pd.DataFrame, baseline: str) -> list[str]:
    """The verdicts at equal compute at the arms' last step, in a sentence; none if there is no curve."""
    found = differences(plan, curve, baseline)
    last = found[(found.equal == "compute") & (found.step == curve.step.max())].set_index("arm")
    if last.empty:
        return []
    words = verdict_words(plan, last, baseline)
    return [f"At equal compute, after the arms' last step: {words[0].lower()}{words[1:]}"]


SCHEDULE = (
    "All points of an arm come from one training, whose learning rate falls until its last step. A training planned for fewer "
    "steps may score higher than such a point."
)


def accuracy_caption(plan: Plan, rows: pd.DataFrame, floor: str) -> str:
    """The caption of the figure of `accuracy_curves`."""
    untrained = ""
    if floor in plan.possible:
        untrained = f" The untrained encoder scores {summarise(rows, main_probe(plan))['mean'][floor]:.1f}%."
    return (
        "Accuracy of the main frozen readout during pre-training, against optimiser steps and against the multiply-accumulates "
        f"of these steps, forward and backward. Mean and 95% t interval over {_seeds(plan)}.{untrained} {SCHEDULE}"
    )


def difference_caption(plan: Plan, curve: pd.DataFrame, baseline: str) -> str:
    """The caption of the figure of `difference_curves`."""
    name, found = plan.arms[baseline].label, differences(plan, curve, baseline)
    columns = [table for _, table in found.groupby(["equal", "step"])]
    return (
        f"Difference of each arm to '{name}' during pre-training, at the same number of steps and at the same number of "
        f"multiply-accumulates. {how_compared(plan, *columns)} At equal compute, the accuracy of '{name}' is interpolated "
        "linearly between its points; there is no value before its first point. Between distant points of a curve that "
        f"flattens, this understates '{name}'. {SCHEDULE} At equal compute this favours the arm at its last step. "
        "The axis is cut to the differences and to the intervals of the last step."
    )


def table_caption(plan: Plan, baseline: str) -> str:
    """The caption of the table of differences."""
    return f"The differences of the figure above in numbers, to '{plan.arms[baseline].label}' [95%], over {_seeds(plan)}."


def _seeds(plan: Plan) -> str:
    count = len(plan.recipe.seeds)
    return f"{count} seed{'s' * (count > 1)}"
