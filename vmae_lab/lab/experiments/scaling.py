"""Scaling: accuracy against the size of the model, the amount of data and the number of steps."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Overrides, Plan
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.style import BLUE, ORANGE, RED, SKY
from vmae_lab.lab.report.tables import interval
from vmae_lab.lab.stages.cost import parameter_count, step_macs
from vmae_lab.lab.statistics import linear_trend, points
from vmae_lab.models.sizes import SIZES
from vmae_lab.utils.counts import counted

SIZE_STEPS = {"smaller": -1, "middle": 0, "larger": 1}  # from the recipe's size, in the order of SIZES
DATA_PARTS = {"quarter": 0.25, "full": 1.0}
STEP_PARTS = {"third": 1 / 3, "whole": 1.0}
AXES = {"parameters": "encoder and decoder parameters", "clips": "clips to pre-train on", "steps": "steps"}
COMPUTE = "compute of the pre-training"  # parameters and steps determine it, so its fit is separate


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
    """Return what each arm uses: columns parameters, clips, steps, gmacs. Index: arm.

    `gmacs`: multiply-accumulates of the whole pre-training in 1e9, forward and backward.
    """
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        each = step_macs(recipe.model, recipe.mask, recipe.pretrain.batch_size)
        table[arm] = {
            "parameters": parameter_count(recipe.model), "clips": recipe.data.pretrain_clips,
            "steps": recipe.pretrain.steps, "gmacs": recipe.pretrain.steps * each / 1e9,
        }  # fmt: skip
    return pd.DataFrame.from_dict(table, orient="index")


def accuracy_plot(results: Results) -> Plot:
    """Plot accuracy over parameters, one line per amount of data and steps, in the style of its arms."""
    figure = _lines(results, budgets(results.plan).parameters / 1e6, "parameters of encoder and decoder (millions)")
    return Plot(figure, "accuracy", "Accuracy by model size, data and steps. Bars: 95% t interval over seeds.")


def compute_plot(results: Results) -> Plot:
    """Plot accuracy over the compute of the pre-training, with the lines of `accuracy_plot`."""
    figure = _lines(results, budgets(results.plan).gmacs / 1e3, "compute of the pre-training (1e12 multiply-accumulates)")
    caption = "Accuracy by compute. The points of a line are model sizes. Bars: 95% t interval over seeds."
    return Plot(figure, "accuracy_against_compute", caption)


def _lines(results: Results, x: pd.Series, xlabel: str) -> Figure:
    """Plot accuracy over `x` (index: arm), one line per amount of data and steps."""
    used, accuracy = budgets(results.plan), results.summary(results.probe)
    lines, styles = {}, {}
    for (clips, steps), group in used.groupby(["clips", "steps"]):
        name = f"{counted(clips, 'clip')}, {counted(steps, 'step')}"
        lines[name] = accuracy.loc[group.index].set_index(x[group.index]).sort_index()
        styles[name] = replace(results.plan.arms[group.index[0]], label=name)
    return charts.lines_by_arm(lines, styles, xlabel, "frozen few-label readout, top-1 (%)", results.chance)


def results_table(results: Results) -> Table:
    """Return one row per arm: what it uses, and its accuracy."""
    lines = [
        {
            "model": results.plan.first(arm).recipe.model.size, "parameters, M": f"{row.parameters / 1e6:.2f}",
            "clips": int(row.clips), "steps": int(row.steps), "compute, 1e12 MAC": f"{row.gmacs / 1e3:.2f}",
            "top-1 %": results.value(arm, results.probe),
        }
        for arm, row in budgets(results.plan).iterrows()
    ]  # fmt: skip
    return Table(pd.DataFrame(lines), "scaling", common.how_made(results.plan))


def trend(results: Results) -> pd.DataFrame:
    """Fit points of accuracy per doubling to all runs: columns slope, low, high, verdict; index what is doubled.

    Parameters, clips and steps are fitted at once. Compute is fitted alone, since parameters and steps determine it.

    Raises ValueError if the arms that were run do not determine the slopes.
    """
    runs = results.rows[results.rows.metric == results.probe]
    used = np.log2(budgets(results.plan).loc[runs.arm].reset_index(drop=True)).rename(columns={**AXES, "gmacs": COMPUTE})
    varied = [name for name in used.columns if used[name].nunique() > 1]
    joint = [name for name in varied if name != COMPUTE]
    alone = [[COMPUTE]] if COMPUTE in varied else []
    fits = [linear_trend(used[columns], runs.value.to_numpy(), results.margin) for columns in [joint, *alone]]
    return pd.concat(fits)


def trend_plot(results: Results) -> Plot:
    figure = charts.slopes(trend(results), "points of top-1 per doubling, 95% interval")
    return Plot(figure, "trend", "Points of accuracy per doubling, fitted to all runs.")


def trend_table(results: Results) -> Table:
    compute = budgets(results.plan).gmacs.nunique()
    caption = (
        "Least squares over the logarithms, all runs taken as independent: points of accuracy per doubling. The 95% intervals "
        "are simultaneous (Bonferroni). A slope is equivalent to zero if two one-sided tests at 5% (Holm) find it to be within "
        f"{points(results.margin)}. Compute ({counted(compute, 'budget')}) is fitted alone; its interval is not corrected."
    )
    return Table(trend(results).round(2).reset_index(names="twice the"), "trend", caption)


def conclusions(results: Results) -> list[str]:
    """State the fitted slopes, with the range that was run."""
    used = budgets(results.plan).rename(columns={**AXES, "gmacs": COMPUTE})
    unit = {COMPUTE: " x 1e9 multiply-accumulates"}
    return [
        f"Twice the {name}, from {used[name].min():,.0f} to {used[name].max():,.0f}{unit.get(name, '')}: "
        f"{interval(row.slope, row.low, row.high)} points, {row.verdict}."
        for name, row in trend(results).iterrows()
    ]
