"""The experiments of this project, one module per notebook, and the plan of each."""

import pandas as pd

from vmae_lab.data.video_lists import ListError
from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.experiments import (
    ablation_decoder_mask,
    ablation_hybrid_data,
    ablation_mask_ratios,
    ablation_progressive_training,
    bring_your_own_videos,
    cost_of_dual_masking,
    distillation,
    downstream_action_classification,
    downstream_spatial_detection,
    downstream_temporal_detection,
    dual_masking_tour,
    scaling,
    use_a_checkpoint,
)
from vmae_lab.lab.experiments.common import Experiment
from vmae_lab.lab.own_data import clip_count
from vmae_lab.lab.plan import Plan, plan_ablation
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import compare, points, seeds_needed, smallest_detectable
from vmae_lab.utils.counts import counted
from vmae_lab.utils.paths import project_root, report_folder

# Notebook -> what it compares.
EXPERIMENTS: dict[str, Experiment] = {
    "00_dual_masking_tour": dual_masking_tour.EXPERIMENT,
    "ablation_decoder_mask": ablation_decoder_mask.EXPERIMENT,
    "ablation_mask_ratios": ablation_mask_ratios.EXPERIMENT,
    "ablation_hybrid_data": ablation_hybrid_data.EXPERIMENT,
    "ablation_progressive_training": ablation_progressive_training.EXPERIMENT,
    "cost_of_dual_masking": cost_of_dual_masking.EXPERIMENT,
    "bring_your_own_videos": bring_your_own_videos.EXPERIMENT,
    "downstream_action_classification": downstream_action_classification.EXPERIMENT,
    "downstream_spatial_detection": downstream_spatial_detection.EXPERIMENT,
    "downstream_temporal_detection": downstream_temporal_detection.EXPERIMENT,
    "distillation": distillation.EXPERIMENT,
    "scaling": scaling.EXPERIMENT,
    "use_a_checkpoint": use_a_checkpoint.EXPERIMENT,
}


def plan_notebook(name: str, recipe: Recipe) -> Plan:
    """Return the plan of an experiment. Sources that it needs are added to those of the embedded data set.

    Raises RecipeError with everything that is impossible, one line each.
    """
    experiment, problems = EXPERIMENTS[name], []
    missing = [source for source in experiment.sources if source not in recipe.data.sources]
    if missing and recipe.data.motionworld is None:
        raise RecipeError(f"{name} compares pools of the embedded data set's sources; it does not run on list files")
    if missing:
        recipe = recipe.with_overrides({"data.motionworld.sources": [*recipe.data.sources, *missing]})
    recipe = experiment.prepare(recipe)
    if experiment.one_seed:
        recipe = recipe.with_overrides({"seeds": recipe.seeds[:1]})
    if experiment.needs_labels and not recipe.data.labelled:
        problems.append(
            f"{name} evaluates encoders with labels, and data.lists has none: set data.lists.train to a list with labels or a "
            "folder that has one folder per class"
        )
    if not any(experiment.arms[arm].pretrained for arm in recipe.arms):
        problems.append(f"arms {list(recipe.arms)}: at least one arm with pre-training is needed")
    try:
        plan = plan_ablation(
            name, recipe, experiment.arms, experiment.stages, experiment.controls, experiment.skip_impossible,
            experiment.encoder,
        )  # fmt: skip
    except RecipeError as error:
        problems.append(str(error))
    if problems := [*problems, *_too_few_clips(name, recipe, experiment.min_clips)]:
        raise RecipeError("\n".join(problems))
    return plan


def _too_few_clips(name: str, recipe: Recipe, needed: int) -> list[str]:
    """Return one line if the lists have fewer videos than the pictures of an experiment need."""
    lists, split = recipe.data.lists, recipe.evaluate.split if recipe.data.labelled else "pretrain"
    if lists is None or needed < 2 or lists.missing(split):
        return []
    try:
        available = clip_count(lists, split)
    except ListError:  # the plan reports it
        return []
    problem = f"{name} compares clips with each other, and the {split} split has {available}; list more videos"
    return [problem] if available < needed else []


# ---- How many seeds a comparison needs ----

ENOUGH = 3  # seeds to estimate a spread from
SPREADS = (1.0, 2.0, 4.0)  # points, if none is measured


def seeds_summary(plan: Plan, store: RunStore) -> str:
    """Describe how many seeds find a difference as large as the margin, and what the planned seeds find.

    The spread is that of this plan's finished stages, or else that of the notebook's report at this scale. The text is empty if
    nothing is compared.
    """
    experiment, seeds, margin = EXPERIMENTS[plan.name], len(plan.recipe.seeds), plan.recipe.evaluate.margin
    baseline = experiment.baseline
    if baseline is None or baseline not in plan.possible or not plan.recipe.data.labelled:
        return ""
    arms = [arm for arm in plan.possible if arm not in (baseline, experiment.floor)]
    if not arms:
        return ""
    tests = f"80% power, {counted(len(arms), 'comparison')} with '{plan.arms[baseline].label}'"
    report = report_folder(plan.recipe.scale, plan.name) / "tables" / "results.csv"
    sources = {"finished stages of this plan": plan.rows_so_far(store)}
    if report.is_file():
        sources[str(report.relative_to(project_root()))] = pd.read_csv(report)
    spread_words = f"which is unknown until {ENOUGH} seeds of two arms are finished"
    for source, rows in sources.items():
        if rows.empty:
            continue
        table = compare(rows, experiment.metric_of(plan.recipe), baseline, margin, arms, required=False)
        table = table[table.seeds >= ENOUGH]
        spreads = table["std"].dropna().astype(float)
        if len(spreads):
            middle, largest = spreads.median(), spreads.max()
            needed = [seeds_needed(spread, margin, len(arms)) for spread in (middle, largest)]
            least = smallest_detectable(middle, seeds, len(arms))
            now = f" The {seeds} planned seeds find {least:.1f} points." if seeds > 1 else ""
            return (
                f"seeds: {needed[0]} find a difference of {points(margin)} in the median arm, {needed[1]} in the arm that "
                f"varies most ({tests}).{now} Standard deviation of paired differences: median {middle:.1f}, largest "
                f"{largest:.1f} points ({source})"
            )
        if len(table):
            spread_words = f"which have no spread over the {table.seeds.max()} finished seeds ({source})"
    listed = ", ".join(f"{seeds_needed(spread, margin, len(arms))} if it is {points(spread)}" for spread in SPREADS)
    return (
        f"seeds: how many find a difference of {points(margin)} ({tests}) depends on the standard deviation of the paired "
        f"differences, {spread_words}: {listed}; {seeds} planned"
    )
