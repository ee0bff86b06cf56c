"""Progressive training: what a small target gains from self-supervised and supervised training before it."""

import pandas as pd

from vmae_lab.lab.ablation import Plan
from vmae_lab.lab.arms import UNSEEN
from vmae_lab.lab.presentation.common import difference_cell, difference_words, differences_to, how_run, mean_and_spread
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.statistics import paired_differences, summarise
from vmae_lab.lab.workbook import labels_of


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
    tables = {labels: differences_to(plan, rows, metric, baseline) for metric, labels in fractions(plan).items()}
    return pd.DataFrame([
        {"difference to " + plan.arms[baseline].label + " [95 %]": plan.arms[arm].label}
        | {f"{labels} labels": difference_cell(table, arm) for labels, table in tables.items()}
        for arm in plan.possible if arm != baseline
    ])  # fmt: skip


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
    words = []
    for arm, baseline, what in pairs:
        if {arm, baseline} <= set(plan.possible):
            parts = [
                f"{difference_words(paired_differences(rows, metric, baseline).loc[arm])} with {labels} labels"
                for metric, labels in fractions(plan).items()
            ]
            words.append(f"{what}: {'; '.join(parts)}.")
    return words
