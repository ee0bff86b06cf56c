"""Scaling: accuracy against the size of the model, the amount of data and the number of steps."""

from dataclasses import replace

import numpy as np
import pandas as pd

from vmae_lab.lab.arms import Arm
from vmae_lab.lab.experiments.common import impossible_words, main_probe, mean_and_spread
from vmae_lab.lab.measure import parameter_count
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.report.tables import interval
from vmae_lab.lab.statistics import linear_trend, points, summarise

AXES = {"parameters": "encoder and decoder parameters", "clips": "clips to pre-train on", "steps": "steps"}


def budgets(plan: Plan) -> pd.DataFrame:
    """What each arm spends: columns parameters, clips, steps. Index: arm."""
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        table[arm] = {
            "parameters": parameter_count(recipe.model), "clips": recipe.data.pretrain_clips,
            "steps": recipe.pretrain.steps,
        }  # fmt: skip
    return pd.DataFrame.from_dict(table, orient="index")


def results_table(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """One line an arm: what it spends, and its accuracy."""
    spent, accuracy = budgets(plan), summarise(rows, main_probe(plan))
    return pd.DataFrame([
        {
            "model": plan.first(arm).recipe.model.size, "parameters, M": f"{row.parameters / 1e6:.2f}", "clips": int(row.clips),
            "steps": int(row.steps), "top-1 %": mean_and_spread(accuracy, arm),
        }
        for arm, row in spent.iterrows()
    ])  # fmt: skip


def trend(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """Points of accuracy per doubling, over all runs at once: columns slope, low, high, verdict; index what is doubled.

    Raises ValueError if the arms that were run do not determine the slopes.
    """
    runs = rows[rows.metric == main_probe(plan)]
    spent = budgets(plan).loc[runs.arm].reset_index(drop=True).rename(columns=AXES)
    varied = [name for name in spent.columns if spent[name].nunique() > 1]
    return linear_trend(np.log2(spent[varied]), runs.value.to_numpy(), plan.recipe.evaluate.margin)


def trend_caption(plan: Plan) -> str:
    """How the slopes were fitted."""
    return (
        "Least squares over all runs, each taken as independent: points of accuracy per doubling. The 95% intervals hold for "
        "all slopes at once (Bonferroni). A slope is equivalent to zero if two one-sided tests at 5% (Holm) find it to be "
        f"within {points(plan.recipe.evaluate.margin)}."
    )


def curves(plan: Plan, rows: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, Arm]]:
    """Accuracy over parameters, a line for each amount of data and steps, and how each line is drawn: as its arms are."""
    spent, accuracy = budgets(plan), summarise(rows, main_probe(plan))
    lines, styles = {}, {}
    for (clips, steps), group in spent.groupby(["clips", "steps"]):
        name = f"{clips} clips, {steps} steps"
        lines[name] = accuracy.loc[group.index].set_index(group.parameters / 1e6).sort_index()
        styles[name] = replace(plan.arms[group.index[0]], label=name)
    return lines, styles


def conclusions(plan: Plan, rows: pd.DataFrame) -> list[str]:
    """The fitted trend in words, with its uncertainty and its reach."""
    fitted, spent, words = trend(plan, rows), budgets(plan).rename(columns=AXES), []
    for name, row in fitted.iterrows():
        reach = f"{spent[name].min():,} to {spent[name].max():,}"
        words.append(
            f"Twice the {name}: {interval(row.slope, row.low, row.high)} points, {row.verdict} (measured from {reach})."
        )
    words.append(
        "The trend is a straight line over the logarithms of what was spent, over all runs taken as independent; it says "
        "nothing beyond the ranges that were run."
    )
    return words + impossible_words(plan)
