"""Distillation: a small student with and without a larger teacher, from scratch and pre-trained."""

import pandas as pd

from vmae_lab.data.dataset import DataSettings
from vmae_lab.lab.arms import DISTILLATION, TEACHER, Arm
from vmae_lab.lab.config import require
from vmae_lab.lab.estimate import classifier_parameters
from vmae_lab.lab.experiments.common import (
    clips_words,
    comparison_cells,
    comparison_words,
    how_compared,
    how_run,
    loss_history,
    mean_and_spread,
)
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.lab.statistics import compare, compare_pairs, summarise
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.sizes import ModelSettings

ACCURACY = "top-1"
STYLES: dict[str, Arm] = {"teacher": TEACHER, **DISTILLATION}
# A student that is taught, and the same one without a teacher.
PAIRS = {"scratch_taught": "scratch", "pretrained_taught": "pretrained"}


def accuracies(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """Top-1 of the teacher and of every student: columns arm (`teacher`, or the student's), seed, metric, value."""
    teacher = rows[(rows.metric == "finetune@teacher") & (rows.arm == plan.possible[0])].assign(arm="teacher")
    students = [
        rows[(rows.arm == arm) & (rows.metric == ("distill" if plan.arms[arm].taught else "finetune"))] for arm in plan.possible
    ]
    return pd.concat([teacher, *students], ignore_index=True)[["arm", "seed", "value"]].assign(metric=ACCURACY)


def students_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """One line a model: where it starts, what it learns from, how often it is right, what its teacher changes."""
    told = accuracies(plan, rows)
    accuracy, agreement = summarise(told, ACCURACY), summarise(rows, "distill_agreement")
    differences = _by_teacher(plan, rows)
    first = plan.first(plan.possible[0])
    clips = store.result(first.measures["finetune@teacher"])["labelled_clips"]
    lines = [{
        "model": f"teacher ({plan.recipe.model.size})", "starts from": "pre-training", "learns from": f"{clips} labelled clips",
        ACCURACY + " %": mean_and_spread(accuracy, "teacher"),
    }]  # fmt: skip
    for arm in plan.possible:
        stage = plan.first(arm).measures["student"]
        taught = plan.arms[arm].taught
        pool = _taught_on(stage, store) if taught else f"{clips} labelled clips"
        lines.append({
            "model": f"student ({stage.settings['model']['size']})",
            "starts from": "pre-training" if plan.arms[arm].pretrained else "scratch", "learns from": pool,
            ACCURACY + " %": mean_and_spread(accuracy, arm),
            **comparison_cells(differences, arm, "it without a teacher"),
            "says what the teacher says, %": mean_and_spread(agreement, arm),
        })  # fmt: skip
    return pd.DataFrame(lines).fillna("")


def _by_teacher(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """Each taught student compared with the same one without a teacher. Index: the taught arm."""
    pairs = compare_pairs(accuracies(plan, rows), ACCURACY, list(PAIRS.items()), plan.recipe.evaluate.margin)
    return pairs.set_axis([arm for arm, _ in pairs.index])


def students_caption(plan: Plan, rows: pd.DataFrame) -> str:
    """How teacher and students were trained."""
    recipe = plan.first(plan.possible[0]).recipe
    tuning = require(recipe.distill, "distill")
    made = how_run(
        plan,
        f"the teacher and every student trained alike, {tuning.steps} steps of {tuning.batch_size} clips; one draw of "
        f"{recipe.evaluate.finetune_labels or 'all'} labels a seed; softened by temperature {tuning.temperature:g}; the middle "
        "clip of a video",
    )
    return f"{made} {how_compared(plan, _by_teacher(plan, rows))}"


def sizes_table(plan: Plan) -> pd.DataFrame:
    """Teacher and student: parameters, and multiply-accumulates of one clip. Counted, not measured."""
    measures = plan.first(plan.possible[0]).measures
    counted = {"teacher": measures["finetune@teacher"], "student": measures["student"]}
    most = _clip_macs(counted["teacher"])
    return pd.DataFrame([
        {
            "model": f"{name} ({stage.settings['model']['size']})",
            "parameters, thousands": f"{classifier_parameters(stage) / 1e3:.0f}",
            "one clip, M multiply-accumulates": f"{_clip_macs(stage) / 1e6:.1f}",
            "part of the teacher's": f"{100 * _clip_macs(stage) / most:.0f} %",
        }
        for name, stage in counted.items()
    ])  # fmt: skip


def loss_of_the_taught(plan: Plan, store: RunStore) -> pd.DataFrame:
    """How far students' answers are from the teacher's while they learn: columns arm, seed, step, loss."""
    losses = loss_history(plan, store, measure="student")
    return losses[losses.arm.map(lambda arm: plan.arms[arm].taught)]


def conclusions(plan: Plan, rows: pd.DataFrame, store: RunStore) -> list[str]:
    """Whether a teacher helps the same student, and what is left to the teacher, in words computed from the numbers."""
    told = accuracies(plan, rows)
    accuracy, words = summarise(told, ACCURACY), []
    for arm, row in _by_teacher(plan, rows).iterrows():
        start = "pre-trained student" if plan.arms[arm].pretrained else "student from scratch"
        words.append(
            f"The {start} has {mean_and_spread(accuracy, arm)}% top-1 with its teacher and "
            f"{mean_and_spread(accuracy, PAIRS[arm])}% without: {comparison_words(row)}."
        )
    best = accuracy["mean"].drop("teacher").idxmax()
    row = compare(told, ACCURACY, "teacher", plan.recipe.evaluate.margin).loc[best]
    words.append(
        f"The teacher itself has {mean_and_spread(accuracy, 'teacher')}% top-1. The best student, "
        f"'{plan.arms[best].label}', differs by {comparison_words(row)}."
    )
    clips = store.result(plan.first(best).measures["finetune@teacher"])["test_clips"]
    return [*words, clips_words(float(accuracy["mean"][best]), clips)]


def _taught_on(stage: Stage, store: RunStore) -> str:
    """What a taught student learns from: it reads labels only where the recipe weighs them."""
    labels = "and their labels" if stage.settings["distill"]["hard_weight"] else "no label"
    return f"the teacher's answers on {store.result(stage)['clips']} clips, {labels}"


def _clip_macs(stage: Stage) -> float:
    """Multiply-accumulates of a classifier's forward pass on one clip."""
    model, data = ModelSettings(**stage.settings["model"]), DataSettings(**stage.settings["data"])
    return classify_cost(model.dimensions, model.clip, data.classes).macs
