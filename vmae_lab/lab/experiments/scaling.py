"""Scaling: accuracy against the size of the model, the amount of data and the number of steps."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Overrides, Plan
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.style import BLUE, ORANGE, RED, SKY
from vmae_lab.lab.report.tables import interval
from vmae_lab.lab.stages.cost import parameter_count
from vmae_lab.lab.statistics import linear_trend, points
from vmae_lab.models.sizes import SIZES

SIZE_STEPS = {"smaller": -1, "middle": 0, "larger": 1}  # from the recipe's size, in the order of SIZES
DATA_PARTS = {"quarter": 0.25, "full": 1.0}
STEP_PARTS = {"third": 1 / 3, "whole": 1.0}
AXES = {"parameters": "encoder and decoder parameters", "clips": "clips to pre-train on", "steps": "steps"}


def scaled(size_step: int, data: float, steps: float) -> Callable[[Recipe], Overrides]:
    """Return overrides for the next smaller or larger size, a part of the pre-training clips, and a part of the steps.

    Raises RecipeError if there is no such size, or if a part of a list file is needed.
    """

    def overrides(recipe: Recipe) -> Overrides:
        sizes = list(SIZES)
        index = sizes.index(recipe.model.size) + size_step
        if not 0 <= index < len(sizes):
            raise RecipeError(f"there is no size {'below' if size_step < 0 else 'above'} model.size {recipe.model.size}")
        changes = {
            "model.size": sizes[index], "pretrain.steps": max(1, round(steps * recipe.pretrain.steps)),
            "pretrain.warmup_steps": round(steps * recipe.pretrain.warmup_steps),
        }  # fmt: skip
        if data < 1:
            if recipe.data.motionworld is None:
                raise RecipeError("a part of a list file's videos cannot be taken: use a shorter list")
            pool = recipe.data.pretrain_sources or recipe.data.sources
            changes["data.pretrain_limits"] = common.clips_per_action(recipe, dict.fromkeys(pool, data))
        return changes

    return overrides


# Color and marker show data and steps. The size is on the axis.
ARMS: dict[str, Arm] = {
    f"{size}_{data}_{steps}": Arm(
        f"{size} model, {data} data, {steps} steps",
        colour,
        marker,
        scaled(SIZE_STEPS[size], DATA_PARTS[data], STEP_PARTS[steps]),
    )
    for size, ((data, steps), colour, marker) in product(
        SIZE_STEPS, zip(product(DATA_PARTS, STEP_PARTS), (SKY, ORANGE, RED, BLUE), "Ps^D", strict=True)
    )
}
EXPERIMENT = Experiment(
    "Scaling: size, data, steps",
    "What do model size, data and steps each give?",
    ARMS,
    common.frozen_readouts,
    skip_impossible=True,
)


def budgets(plan: Plan) -> pd.DataFrame:
    """Return what each arm uses: columns parameters, clips, steps. Index: arm."""
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        table[arm] = {
            "parameters": parameter_count(recipe.model), "clips": recipe.data.pretrain_clips,
            "steps": recipe.pretrain.steps,
        }  # fmt: skip
    return pd.DataFrame.from_dict(table, orient="index")


def accuracy_plot(results: Results) -> Plot:
    """Plot accuracy over parameters, one line per amount of data and steps, in the style of its arms."""
    used, accuracy = budgets(results.plan), results.summary(results.probe)
    lines, styles = {}, {}
    for (clips, steps), group in used.groupby(["clips", "steps"]):
        name = f"{clips} clips, {steps} steps"
        lines[name] = accuracy.loc[group.index].set_index(group.parameters / 1e6).sort_index()
        styles[name] = replace(results.plan.arms[group.index[0]], label=name)
    axes = "parameters of encoder and decoder (millions)", "frozen few-label readout, top-1 (%)"
    figure = charts.lines_by_arm(lines, styles, *axes, results.chance)
    return Plot(figure, "accuracy", "Accuracy by model size, data and steps. Bars: 95% t interval over seeds.")


def results_table(results: Results) -> Table:
    """Return one row per arm: what it uses, and its accuracy."""
    lines = [
        {
            "model": results.plan.first(arm).recipe.model.size, "parameters, M": f"{row.parameters / 1e6:.2f}",
            "clips": int(row.clips), "steps": int(row.steps), "top-1 %": results.value(arm, results.probe),
        }
        for arm, row in budgets(results.plan).iterrows()
    ]  # fmt: skip
    return Table(pd.DataFrame(lines), "scaling", common.how_made(results.plan))


def trend(results: Results) -> pd.DataFrame:
    """Fit points of accuracy per doubling, over all runs at once: columns slope, low, high, verdict; index what is doubled.

    Raises ValueError if the arms that were run do not determine the slopes.
    """
    runs = results.rows[results.rows.metric == results.probe]
    used = budgets(results.plan).loc[runs.arm].reset_index(drop=True).rename(columns=AXES)
    varied = [name for name in used.columns if used[name].nunique() > 1]
    return linear_trend(np.log2(used[varied]), runs.value.to_numpy(), results.margin)


def trend_plot(results: Results) -> Plot:
    figure = charts.slopes(trend(results), "points of top-1 per doubling, 95% interval")
    return Plot(figure, "trend", "Points of accuracy per doubling, fitted to all runs.")


def trend_table(results: Results) -> Table:
    caption = (
        "Least squares over the logarithms, all runs taken as independent: points of accuracy per doubling. The 95% intervals "
        "are simultaneous (Bonferroni). A slope is equivalent to zero if two one-sided tests at 5% (Holm) find it to be within "
        f"{points(results.margin)}."
    )
    return Table(trend(results).round(2).reset_index(names="twice the"), "trend", caption)


def conclusions(results: Results) -> list[str]:
    """State the fitted slopes, with the range that was run."""
    used = budgets(results.plan).rename(columns=AXES)
    return [
        f"Twice the {name}, from {used[name].min():,} to {used[name].max():,}: "
        f"{interval(row.slope, row.low, row.high)} points, {row.verdict}."
        for name, row in trend(results).iterrows()
    ]
