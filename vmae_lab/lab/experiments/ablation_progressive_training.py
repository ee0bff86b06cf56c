"""Progressive training: what a small target gains from self-supervised and supervised training before it."""

import pandas as pd

from vmae_lab.lab.arms import UNSEEN
from vmae_lab.lab.experiments import labels_of
from vmae_lab.lab.experiments.common import (
    compared,
    comparison_cells,
    comparison_words,
    how_compared,
    how_run,
    mean_and_spread,
)
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import compare_pairs, summarise


def fractions(plan: Plan) -> dict[str, int]:
    """Label fractions as their metrics are called, with the number of labelled clips of each."""
    return {f"finetune@{part:g}": labels_of(plan.recipe, part) for part in plan.recipe.evaluate.label_fractions}


def curves(plan: Plan, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Accuracy over labelled clips: arm -> columns mean, low, high; index the number of clips."""
    tables = {labels: summarise(rows, metric) for metric, labels in fractions(plan).items()}
    return {arm: pd.DataFrame({labels: table.loc[arm] for labels, table in tables.items()}).T for arm in plan.possible}


def results_table(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """One line an arm: the steps before fine-tuning, and the accuracy at each number of labels."""
    lines = []
    for arm in plan.possible:
        style, recipe = plan.arms[arm], plan.first(arm).recipe
        line = {
            "before fine-tuning": style.label,
            "self-supervised steps": recipe.pretrain.steps if style.pretrained else 0,
            "supervised steps": recipe.post_pretrain.steps if style.post_pretrained else 0,
        }
        for metric, labels in fractions(plan).items():
            line[f"{labels} labels: top-1 %"] = mean_and_spread(summarise(rows, metric), arm)
        lines.append(line)
    return pd.DataFrame(lines)


def results_caption(plan: Plan) -> str:
    """How the main table was made: every model is fine-tuned, none is read frozen."""
    tuning = plan.recipe.evaluate.finetune
    labels = f"fine-tuned for {tuning.steps} steps of {tuning.batch_size} clips with one draw of labels a seed"
    return how_run(plan, labels, [UNSEEN])


def differences_table(plan: Plan, rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Paired differences to the baseline at each number of labels, one line an arm."""
    lines, to = [], plan.arms[baseline].label
    tables = {labels: compared(plan, rows, metric, baseline) for metric, labels in fractions(plan).items()}
    for arm in plan.possible:
        if arm != baseline:
            lines.append({"before fine-tuning": plan.arms[arm].label})
            for labels, table in tables.items():
                lines[-1] |= comparison_cells(table, arm, to, f"{labels} labels: ")
    return pd.DataFrame(lines)


def differences_caption(plan: Plan, rows: pd.DataFrame, baseline: str) -> str:
    """How the differences were made."""
    return how_compared(plan, *(compared(plan, rows, metric, baseline) for metric in fractions(plan)))


def supervised_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """How well the post-pre-trained models name the held-out clips of the sources they were trained on."""
    accuracy, lines = summarise(rows, "post_pretrain"), []
    for arm in plan.possible:
        if plan.arms[arm].post_pretrained:
            result = store.result(plan.first(arm).measures["post_pretrain"])
            lines.append({
                "model": plan.arms[arm].label, "labelled clips": result["labelled_clips"],
                "held-out clips of its sources: top-1 %": mean_and_spread(accuracy, arm),
            })  # fmt: skip
    return pd.DataFrame(lines)


def conclusions(plan: Plan, rows: pd.DataFrame) -> list[str]:
    """What the stages are worth at each number of labels, in words computed from the numbers."""
    pairs = (
        ("pretrained", "scratch", "Self-supervised pre-training alone, against training from scratch"),
        ("progressive", "pretrained", "Supervised post-pre-training on top of it, against fine-tuning directly"),
        ("progressive", "post_only", "Self-supervised pre-training before post-pre-training, against post-pre-training alone"),
    )
    words, margin = [], plan.recipe.evaluate.margin
    tables = {
        labels: compare_pairs(rows, metric, [(arm, baseline) for arm, baseline, _ in pairs], margin)
        for metric, labels in fractions(plan).items()
    }
    for place, (_, _, what) in enumerate([pair for pair in pairs if set(pair[:2]) <= set(plan.possible)]):
        parts = [f"{comparison_words(table.iloc[place])} with {labels} labels" for labels, table in tables.items()]
        words.append(f"{what}: {'; '.join(parts)}.")
    return words
