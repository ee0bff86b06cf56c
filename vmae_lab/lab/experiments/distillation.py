"""Distillation: a small student with and without a larger teacher, from scratch and from its own pre-training."""

from collections.abc import Mapping

import pandas as pd

from vmae_lab.lab.config import Recipe, RecipeError, require
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Overrides, Plan
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.style import BLACK, BLUE, GREY, ORANGE, RED
from vmae_lab.lab.stages import Stage, distill_stage, finetune_stage, pretrain_stage
from vmae_lab.lab.stages.finetune import SupervisedStage
from vmae_lab.lab.statistics import compare, compare_pairs, summarise
from vmae_lab.models.sizes import SIZES
from vmae_lab.training.tasks.finetune import FinetuneSettings
from vmae_lab.utils.counts import counted


def same_training(recipe: Recipe) -> Overrides:
    """Return the training settings that teacher and students share: `distill` if it is set, else those of fine-tuning.

    On the embedded data set, only a quarter of the labels is used. With all labels, all models of scale demo reach 97% to 98%,
    so a teacher can hardly improve them (reports/LOG.md).
    """
    tuning = recipe.distill or recipe.evaluate.finetune
    shared = tuning.model_dump(mode="json", include=set(FinetuneSettings.model_fields))
    own = {} if recipe.distill else {"distill": shared}
    labels = recipe.evaluate.finetune_labels
    if labels is not None and recipe.data.motionworld:
        labels = max(labels // 4, recipe.data.classes)
    return {**common.running_cells(0.5), "evaluate.finetune": shared, "evaluate.finetune_labels": labels, **own}


ARMS: dict[str, Arm] = {
    "scratch": Arm("student from scratch, labels", GREY, "X", same_training, pretrained=False),
    "scratch_taught": Arm("student from scratch, teacher", ORANGE, "s", same_training, pretrained=False, taught=True),
    "pretrained": Arm("pre-trained student, labels", BLUE, "D", same_training),
    "pretrained_taught": Arm("pre-trained student, teacher", RED, "^", same_training, taught=True),
}
STYLES: dict[str, Arm] = {"teacher": Arm("teacher", BLACK, "o"), **ARMS}
ACCURACY = "top-1"
PAIRS = [("scratch_taught", "scratch"), ("pretrained_taught", "pretrained")]  # a student with a teacher, and without


def student_size(recipe: Recipe) -> str:
    """Return the recipe's `student`, or the next size below `model.size`. Raises RecipeError if there is none."""
    sizes = list(SIZES)
    index = sizes.index(recipe.model.size)
    if not (recipe.student or index):
        raise RecipeError(f"student: there is no size below the teacher's model.size {recipe.model.size}; set a larger one")
    return recipe.student or sizes[index - 1]


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Build a pre-trained, fine-tuned teacher, and a smaller student that learns from its predictions or the same labels."""
    small = recipe.with_overrides({"model.size": student_size(recipe)})
    before = pretrain_stage(small, seed) if arm.pretrained else None
    teacher = finetune_stage(recipe, pretrain_stage(recipe, seed), seed)
    student = distill_stage(small, teacher, before, seed) if arm.taught else finetune_stage(small, before, seed)
    return {"finetune@teacher": teacher, "student": student}


def prepare(recipe: Recipe) -> Recipe:
    """Train teacher and students on the sources that the recipe evaluates.

    On plaids, the source that scale demo pre-trains on, all models reach 100%.
    """
    evaluated = recipe.evaluate.sources or recipe.data.sources
    if recipe.data.motionworld and (recipe.data.pretrain_sources or recipe.data.sources) != evaluated:
        return recipe.with_overrides({"data.pretrain_sources": list(evaluated)})
    return recipe


EXPERIMENT = Experiment("Distillation", "Does a large teacher help a small student?", ARMS, stages, prepare=prepare)


def sizes_table(plan: Plan) -> Table:
    """Count the parameters of teacher and student, and the multiply-accumulates of one clip. Nothing is measured."""
    measures, lines = plan.first(plan.possible[0]).measures, []
    stages = {"teacher": measures["finetune@teacher"], "student": measures["student"]}
    counted = {name: stage for name, stage in stages.items() if isinstance(stage, SupervisedStage)}
    for name, stage in counted.items():
        lines.append({
            "model": f"{name} ({stage.model.size})", "parameters, thousands": f"{stage.parameters / 1e3:.0f}",
            "one clip, M multiply-accumulates": f"{stage.clip_macs / 1e6:.1f}",
            "part of the teacher's": f"{stage.clip_macs / counted['teacher'].clip_macs:.0%}",
        })  # fmt: skip
    caption = "Parameters, and multiply-accumulates of one clip's forward pass. Counted, not measured."
    return Table(pd.DataFrame(lines), "sizes", caption)


def accuracies(results: Results) -> pd.DataFrame:
    """Return top-1 of the teacher and of every student: columns arm (`teacher`, or the student's), seed, metric, value."""
    plan, rows = results.plan, results.rows
    parts = [rows[(rows.metric == "finetune@teacher") & (rows.arm == plan.possible[0])].assign(arm="teacher")]
    for arm in plan.possible:
        metric = "distill" if plan.arms[arm].taught else "finetune"
        parts.append(rows[(rows.arm == arm) & (rows.metric == metric)])
    return pd.concat(parts, ignore_index=True)[["arm", "seed", "value"]].assign(metric=ACCURACY)


def students_table(results: Results) -> Table:
    """Return one row per model: what it starts from, what it learns from, its accuracy, and what the teacher changes."""
    plan, found, first = results.plan, accuracies(results), results.plan.possible[0]
    accuracy, differences = summarise(found, ACCURACY), compare_pairs(found, ACCURACY, PAIRS, results.margin)
    differences = differences.set_axis([arm for arm, _ in differences.index])
    clips = results.stage_result(first, "finetune@teacher")["labelled_clips"]
    lines = [{
        "model": f"teacher ({plan.recipe.model.size})", "starts from": "pre-training",
        "learns from": counted(clips, "labeled clip"),
        ACCURACY + " %": common.mean_and_spread(accuracy, "teacher"),
    }]  # fmt: skip
    for arm in plan.possible:
        stage, pool = plan.first(arm).measures["student"], counted(clips, "labeled clip")
        if plan.arms[arm].taught:  # it reads labels only if the recipe weighs them
            labels = "and their labels" if stage.settings["distill"]["hard_weight"] else "no label"
            pool = f"the teacher's predictions on {counted(results.store.result(stage)['clips'], 'clip')}, {labels}"
        lines.append({
            "model": f"student ({stage.settings['model']['size']})",
            "starts from": "pre-training" if plan.arms[arm].pretrained else "scratch", "learns from": pool,
            ACCURACY + " %": common.mean_and_spread(accuracy, arm),
            **common.comparison_cells(differences, arm, "it without a teacher"),
            "agrees with the teacher, %": results.value(arm, "distill_agreement"),
        })  # fmt: skip
    recipe = plan.first(first).recipe
    tuning = require(recipe.distill, "distill")
    evaluation = (
        f"teacher and students trained with the same settings, {counted(tuning.steps, 'step')} of "
        f"{counted(tuning.batch_size, 'clip')}, one draw of {recipe.evaluate.finetune_labels or 'all'} labels per seed, "
        f"temperature {tuning.temperature:g}; one clip per video"
    )
    caption = common.caption(results, differences, evaluation=evaluation)
    return Table(pd.DataFrame(lines).fillna(""), "students", caption)


def accuracy_plot(results: Results) -> Plot:
    summaries = {"held-out clips": summarise(accuracies(results), ACCURACY)}
    figure = charts.dots_by_arm(summaries, STYLES, results.chance, "top-1, %")
    return Plot(figure, "accuracy", "Top-1 of teacher and students on held-out clips: mean and 95% t interval over seeds.")


def losses(results: Results) -> Plot | None:
    """Plot the divergence of the students' predictions from the teacher's during training; None if no student has a teacher."""
    history = common.loss_history(results, measure="student")
    taught = history[history.arm.map(lambda arm: ARMS[arm].taught)]
    if taught.empty:
        return None
    figure = charts.loss_curves(taught, ARMS, legend="student", loss="divergence from the teacher")
    return Plot(figure, "loss", "Divergence of the student's predictions from the teacher's, mean and range over seeds.")


def conclusions(results: Results) -> list[str]:
    """Whether a teacher helps the same student, and how far the best student is from the teacher."""
    found, names = accuracies(results), {arm: style.label for arm, style in STYLES.items()}
    accuracy = summarise(found, ACCURACY)["mean"].drop("teacher")
    clips = results.stage_result(results.plan.possible[0], "finetune@teacher")["test_clips"]
    to_teacher, best = compare(found, ACCURACY, "teacher", results.margin), common.best_arms(accuracy)
    who = "The best student" if len(best) == 1 else "One of the best students"
    return [
        *common.pair_words(results, ACCURACY, PAIRS, found, names),
        *(f"{who}, '{names[arm]}', compared with the teacher: {common.comparison_words(to_teacher.loc[arm])}." for arm in best),
        common.test_set_words(accuracy.max(), clips),
    ]
