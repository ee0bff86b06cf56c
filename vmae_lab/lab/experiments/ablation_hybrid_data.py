"""Hybrid data: which sources are pre-trained on, in which shares, for how long."""

import pandas as pd

from vmae_lab.lab.arms import JUDGED_ON, TARGET, pool_limits
from vmae_lab.lab.experiments.common import (
    compared,
    comparison_cells,
    floor_words,
    how_compared,
    how_made,
    main_probe,
    mean_and_spread,
    verdict_words,
)
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import summarise

NAMES = {"target": "target source", "unseen": "source in no pool"}
PLACES = {place: f"{NAMES[place]} ({source})" for place, source in JUDGED_ON.items()}


def planned_pools(plan: Plan) -> pd.DataFrame:
    """What each arm is to be pre-trained on: clips of each source, and steps. Index: arm; the same on every machine."""
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        clips = {source: recipe.data.classes * limit for source, limit in recipe.data.pretrain_limits.items()}
        table[arm] = {**dict.fromkeys(pool_limits(plan.recipe, "all"), 0), **clips, "steps": recipe.pretrain.steps}
    return pd.DataFrame.from_dict(table, orient="index")


def shares(plan: Plan, store: RunStore) -> pd.DataFrame:
    """What part of the samples each source gave, in percent: a row an arm (by label), a column a source."""
    table = {}
    for arm in plan.pretrained:
        drawn = store.result(plan.first(arm).encoder)["samples_by_source"]
        table[plan.arms[arm].label] = {source: 100 * count / sum(drawn.values()) for source, count in drawn.items()}
    order = list(pool_limits(plan.recipe, "all"))
    return pd.DataFrame.from_dict(table, orient="index").reindex(columns=order).fillna(0.0)


def pools_table(plan: Plan, store: RunStore) -> pd.DataFrame:
    """One line an arm: clips in its pool, steps, epochs over the pool, epochs over the target source, share of each source."""
    share, lines = shares(plan, store), []
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        limits, classes = recipe.data.pretrain_limits, recipe.data.classes
        samples = recipe.pretrain.steps * recipe.pretrain.batch_size / recipe.pretrain.repeats
        row = share.loc[plan.arms[arm].label]
        lines.append({
            "pre-trained on": plan.arms[arm].label, "clips": classes * sum(limits.values()), "steps": recipe.pretrain.steps,
            "epochs of the pool": f"{samples / (classes * sum(limits.values())):.1f}",
            f"epochs of {TARGET}": f"{samples * row[TARGET] / 100 / (classes * limits[TARGET]):.1f}",
            **{f"{source}, % of steps": f"{value:.1f}" for source, value in row.items()},
        })  # fmt: skip
    return pd.DataFrame(lines)


def summaries(plan: Plan, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Accuracies in each place, by its name."""
    return {name: summarise(rows, f"{main_probe(plan)}@{place}") for place, name in PLACES.items()}


def results_table(plan: Plan, rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One line an arm: accuracy in each place, and the paired difference to the baseline."""
    lines = []
    tables = {
        name: (summarise(rows, metric), compared(plan, rows, metric, baseline, plan.pretrained))
        for name, metric in ((name, f"{main_probe(plan)}@{place}") for place, name in PLACES.items())
    }
    for arm in plan.possible:
        line = {"pre-trained on": plan.arms[arm].label}
        for name, (accuracy, differences) in tables.items():
            line[f"{name}: top-1 %"] = mean_and_spread(accuracy, arm)
            line |= comparison_cells(differences, arm, plan.arms[baseline].label, f"{name}: ")
        lines.append(line)
    return pd.DataFrame(lines)


def results_caption(plan: Plan, rows: pd.DataFrame, baseline: str) -> str:
    """How the main table was made."""
    metrics = [f"{main_probe(plan)}@{place}" for place in PLACES]
    tables = [compared(plan, rows, metric, baseline, plan.pretrained) for metric in metrics]
    return f"{how_made(plan, list(PLACES.values()))} {how_compared(plan, *tables)}"


def conclusions(plan: Plan, rows: pd.DataFrame, baseline: str, floor: str) -> list[str]:
    """What the numbers say in each place, in words computed from them."""
    words = []
    for place, name in PLACES.items():
        metric = f"{main_probe(plan)}@{place}"
        told = floor_words(plan, rows, metric, floor)
        if baseline in plan.possible:
            told.append(verdict_words(plan, compared(plan, rows, metric, baseline, plan.pretrained), baseline))
        words += [f"{name.capitalize()}. {sentence}" for sentence in told]
    return words
