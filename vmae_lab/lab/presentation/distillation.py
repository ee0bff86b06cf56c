"""Distillation: a small student with and without a larger teacher, from scratch and pre-trained."""

import pandas as pd

from vmae_lab.data.clips import DataSettings
from vmae_lab.lab.ablation import Plan
from vmae_lab.lab.arms import DISTILLATION, TEACHER, Arm
from vmae_lab.lab.cost import classifier_parameters
from vmae_lab.lab.presentation.common import clips_words, difference_cell, how_run, loss_history, mean_and_spread
from vmae_lab.lab.recipe import needed
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.lab.statistics import paired_differences, summarise
from vmae_lab.lab.tables import interval
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
        differences = paired_differences(told, ACCURACY, PAIRS[arm]) if PAIRS.get(arm) in plan.possible else pd.DataFrame()
        lines.append({
            "model": f"student ({stage.settings['model']['size']})",
            "starts from": "pre-training" if plan.arms[arm].pretrained else "scratch", "learns from": pool,
            ACCURACY + " %": mean_and_spread(accuracy, arm),
            "difference to it without a teacher [95 %]": difference_cell(differences, arm),
            "says what the teacher says, %": mean_and_spread(agreement, arm),
        })  # fmt: skip
    return pd.DataFrame(lines).fillna("")


def students_caption(plan: Plan) -> str:
    """How teacher and students were trained."""
    recipe = plan.first(plan.possible[0]).recipe
    tuning = needed(recipe.distill, "distill")
    return how_run(
        plan,
        f"the teacher and every student trained alike, {tuning.steps} steps of {tuning.batch_size} clips; one draw of "
        f"{recipe.evaluate.finetune_labels or 'all'} labels a seed; softened by temperature {tuning.temperature:g}; the middle "
        "clip of a video",
    )


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
    for arm, alone in PAIRS.items():
        if {arm, alone} <= set(plan.possible):
            row = paired_differences(told, ACCURACY, alone).loc[arm]
            start = "pre-trained student" if plan.arms[arm].pretrained else "student from scratch"
            words.append(
                f"The {start} {_verdict(row)}: {mean_and_spread(accuracy, arm)} % with its teacher, "
                f"{mean_and_spread(accuracy, alone)} % without, {interval(row.difference, row.low, row.high)} points."
            )
    best = accuracy["mean"].drop("teacher").idxmax()
    row = paired_differences(told, ACCURACY, "teacher").loc[best]
    words.append(
        f"The teacher itself is right for {mean_and_spread(accuracy, 'teacher')} %; the best student, "
        f"'{plan.arms[best].label}', differs by {interval(row.difference, row.low, row.high)} points."
    )
    clips = store.result(plan.first(best).measures["finetune@teacher"])["test_clips"]
    return [*words, clips_words(float(accuracy["mean"][best]), clips)]


def _taught_on(stage: Stage, store: RunStore) -> str:
    """What a taught student learns from: it reads labels only where the recipe weighs them."""
    labels = "and their labels" if stage.settings["distill"]["hard_weight"] else "no label"
    return f"the teacher's answers on {store.result(stage)['clips']} clips, {labels}"


def _verdict(row: pd.Series) -> str:
    if row.low > 0:
        return "is better for being taught"
    return "is worse for being taught" if row.high < 0 else "cannot be told apart with and without a teacher"


def _clip_macs(stage: Stage) -> float:
    """Multiply-accumulates of a classifier's forward pass on one clip."""
    model, data = ModelSettings(**stage.settings["model"]), DataSettings(**stage.settings["data"])
    return classify_cost(model.dimensions, model.clip, data.classes).macs
