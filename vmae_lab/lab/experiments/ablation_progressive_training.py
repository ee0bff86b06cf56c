"""Progressive training: what self-supervised and supervised training add before fine-tuning on a small target."""

from collections.abc import Mapping

import pandas as pd

from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.ablation_hybrid_data import ALL_SOURCES, UNSEEN, hybrid_pool
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.style import BLUE, GREEN, GREY, ORANGE
from vmae_lab.lab.stages import Stage, finetune_stage, post_pretrain_stage
from vmae_lab.utils.counts import counted

BASELINE, TARGET = "pretrained", UNSEEN
POOL = hybrid_pool("all")
ARMS: dict[str, Arm] = {
    "scratch": Arm("from scratch", GREY, "X", pretrained=False),
    "pretrained": Arm("pre-trained", BLUE, "D", POOL),
    "post_only": Arm("post-pre-trained only", ORANGE, "s", POOL, pretrained=False, post_pretrained=True),
    "progressive": Arm("pre-trained, then post-pre-trained", GREEN, "*", POOL, post_pretrained=True),
}


def label_count(recipe: Recipe, fraction: float) -> int:
    """Return the number of labeled clips in a part of the target: the same for each class, at least one per class."""
    return recipe.data.classes * max(1, round(fraction * require(recipe.data.motionworld, "data.motionworld").train))


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Build fine-tuning on the target with parts of its labels, after the arm's earlier stages."""
    before, found = encoder if arm.pretrained else None, dict[str, Stage]()
    if arm.post_pretrained:
        before = found["post_pretrain"] = post_pretrain_stage(recipe, before, seed)
    for fraction in recipe.evaluate.label_fractions:
        labels = {"evaluate.sources": [TARGET], "evaluate.finetune_labels": label_count(recipe, fraction)}
        found[f"finetune@{fraction:g}"] = finetune_stage(recipe.with_overrides(labels), before, seed)
    return found


EXPERIMENT = Experiment(
    "Progressive training", "Is it better to train in several steps?",
    ARMS, stages, sources=ALL_SOURCES, baseline=BASELINE, metric="finetune@1",
)  # fmt: skip


def fractions(plan: Plan) -> dict[str, int]:
    """Return the metrics of the label fractions, with the number of labeled clips of each."""
    return {f"finetune@{part:g}": label_count(plan.recipe, part) for part in plan.recipe.evaluate.label_fractions}


def accuracy_plot(results: Results) -> Plot:
    """Plot accuracy over labeled clips, one line per arm."""
    tables = {labels: results.summary(metric) for metric, labels in fractions(results.plan).items()}
    lines = {arm: pd.DataFrame({labels: table.loc[arm] for labels, table in tables.items()}).T for arm in results.plan.possible}
    figure = charts.lines_by_arm(
        lines, results.plan.arms, "labeled clips of the target", "fine-tuned, top-1 (%)", results.chance
    )
    return Plot(figure, "accuracy", "Accuracy on the target by number of labels. Bars: 95% t interval over seeds.")


def results_table(results: Results) -> Table:
    """Return one row per arm: the steps before fine-tuning, and the accuracy for each number of labels."""
    lines = []
    for arm in results.plan.possible:
        style, recipe = results.plan.arms[arm], results.plan.first(arm).recipe
        lines.append({
            "before fine-tuning": style.label,
            "self-supervised steps": recipe.pretrain.steps if style.pretrained else 0,
            "supervised steps": recipe.post_pretrain.steps if style.post_pretrained else 0,
            **{f"{counted(n, 'label')}: top-1 %": results.value(arm, metric) for metric, n in fractions(results.plan).items()},
        })  # fmt: skip
    return Table(pd.DataFrame(lines), "progressive", results_caption(results.plan))


def results_caption(plan: Plan) -> str:
    tuning = plan.recipe.evaluate.finetune
    evaluation = (
        f"fine-tuned for {counted(tuning.steps, 'step')} of {counted(tuning.batch_size, 'clip')} with one draw of labels per "
        "seed"
    )
    return common.how_made(plan, evaluation, [TARGET])


def differences_table(results: Results) -> Table:
    """Return one row per arm: paired differences to the baseline for each number of labels."""
    tables = {n: results.compare(metric, BASELINE) for metric, n in fractions(results.plan).items()}
    lines = []
    for arm in results.plan.possible:
        if arm != BASELINE:
            lines.append({"before fine-tuning": results.label(arm)})
            for labels, table in tables.items():
                lines[-1] |= common.comparison_cells(table, arm, ARMS[BASELINE].label, f"{counted(labels, 'label')}: ")
    return Table(pd.DataFrame(lines), "differences", common.how_compared(results.margin, *tables.values()))


def supervised_table(results: Results) -> Table:
    """Return the accuracy of the post-pre-trained models on held-out clips of the sources they were trained on."""
    lines = [
        {
            "model": results.label(arm),
            "labeled clips": results.stage_result(arm, "post_pretrain")["labelled_clips"],
            "held-out clips of its sources: top-1 %": results.value(arm, "post_pretrain"),
        }
        for arm in results.plan.possible if results.plan.arms[arm].post_pretrained
    ]  # fmt: skip
    return Table(pd.DataFrame(lines), "post_pretraining", "The post-pre-trained models on the sources they were trained on.")


def conclusions(results: Results) -> list[str]:
    """State what each step of training changes, for each number of labels."""
    pairs = [("pretrained", "scratch"), ("progressive", "pretrained"), ("progressive", "post_only")]
    return [
        f"With {counted(labels, 'label')}: {sentence}"
        for metric, labels in fractions(results.plan).items()
        for sentence in common.pair_words(results, metric, pairs)
    ]
