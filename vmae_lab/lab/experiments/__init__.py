"""The notebooks of the workbook: which arms each compares, and by which stages an arm is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

from vmae_lab.data.video_lists import ListError
from vmae_lab.evaluation.retrieval import FEWEST
from vmae_lab.lab.arms import (
    DECODER_MASKS,
    DISTILLATION,
    DOWNSTREAM,
    DUAL_COST,
    HYBRID_DATA,
    JUDGED_ON,
    MASK_RATIOS,
    OWN_VIDEOS,
    POOLS,
    PROGRESSIVE,
    SCALING,
    SPATIAL_DETECTION,
    TEMPORAL_DETECTION,
    TOUR,
    UNSEEN,
    Arm,
    student_size,
)
from vmae_lab.lab.config import Recipe, RecipeError, require
from vmae_lab.lab.own_data import clip_count
from vmae_lab.lab.plan import Measures, Plan, plan_ablation
from vmae_lab.lab.stages import (
    Stage,
    detect_stage,
    distill_stage,
    finetune_stage,
    kept_probe_stage,
    localise_stage,
    measure_stage,
    post_pretrain_stage,
    pretrain_stage,
    probe_stage,
    views_stage,
)


def _pretrained(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Pre-training alone: its pictures are looked at."""
    return {"pretrain": encoder}


def _probe(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Frozen readouts alone."""
    return {"probe": probe_stage(recipe, encoder, seed)}


def _probe_where_labelled(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Without labels there is pre-training alone, and of the untrained encoder nothing to compute."""
    if recipe.data.labelled:
        return _probe(recipe, arm, encoder, seed)
    return {"pretrain": encoder} if arm.pretrained else {}


def _probe_and_finetune(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    return {
        "probe": probe_stage(recipe, encoder, seed),
        "finetune": finetune_stage(recipe, encoder if arm.pretrained else None, seed),
    }


def _decoder_masks(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Frozen readouts, also of the weights that pre-training kept on its way, and fine-tuning."""
    kept = recipe.pretrain.kept_steps if arm.pretrained else ()
    along = {f"probe@step{step}": kept_probe_stage(recipe, encoder, seed, step) for step in kept}
    return {**_probe_and_finetune(recipe, arm, encoder, seed), **along}


def _downstream(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Frozen readouts, fine-tuning, and the fine-tuned classifier on several views."""
    stages = dict(_probe_and_finetune(recipe, arm, encoder, seed))
    return {**stages, "views": views_stage(recipe, stages["finetune"], seed)}


def _detect(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Spatial detection, after pre-training or from scratch."""
    return {"detect": detect_stage(recipe, encoder if arm.pretrained else None, seed)}


def _localise(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Temporal detection on the features of an encoder, untrained, pre-trained, or then supervised too."""
    if recipe.localise and not recipe.localise.videos.extracted:
        raise RecipeError(
            "localise.videos.lists.features are of one encoder, and the plan compares encoders: give lists.videos, or train on "
            "the features alone with `vmae-lab localise`"
        )
    before = post_pretrain_stage(recipe, encoder, seed) if arm.post_pretrained else encoder
    return {"localise": localise_stage(recipe, before, seed)}


def _two_places(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Frozen readouts on the target source and on the one that is in no pool."""
    return {
        f"probe@{place}": probe_stage(recipe.with_overrides({"evaluate.sources": [source]}), encoder, seed)
        for place, source in JUDGED_ON.items()
    }


def _label_fractions(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Fine-tuning on the unseen source with parts of its labels, after what the arm does before."""
    before = encoder if arm.pretrained else None
    stages = {}
    if arm.post_pretrained:
        before = stages["post_pretrain"] = post_pretrain_stage(recipe, before, seed)
    for fraction in recipe.evaluate.label_fractions:
        labels = {"evaluate.sources": [UNSEEN], "evaluate.finetune_labels": labels_of(recipe, fraction)}
        stages[f"finetune@{fraction:g}"] = finetune_stage(recipe.with_overrides(labels), before, seed)
    return stages


def _distilled(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """A pre-trained and fine-tuned teacher, and a smaller student that learns from its answers or from the same labels."""
    small = recipe.with_overrides({"model.size": student_size(recipe)})
    before = pretrain_stage(small, seed) if arm.pretrained else None
    teacher = finetune_stage(recipe, pretrain_stage(recipe, seed), seed)
    student = distill_stage(small, teacher, before, seed) if arm.taught else finetune_stage(small, before, seed)
    return {"finetune@teacher": teacher, "student": student}


def _step(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """A measured step at each batch size; seeds share it."""
    if recipe.measure.size not in recipe.measure.sizes:
        return {}
    return {f"step@{batch_size}": measure_stage(recipe, batch_size) for batch_size in recipe.measure.batch_sizes}


def labels_of(recipe: Recipe, fraction: float) -> int:
    """A part of the unseen source's labels, equally many a class, one a class at least."""
    return recipe.data.classes * max(1, round(fraction * require(recipe.data.motionworld, "data.motionworld").train))


@dataclass(frozen=True)
class Notebook:
    """What a notebook compares. `sources`: what it needs the embedded data set to hold. `alone`: nothing may run beside it.
    `one_seed`: it shows, and compares nothing, so that the first seed is enough. `fewest`: clips that its pictures need.
    `baseline`: the arm that its main table compares the others with, by `metric`, `probe` being the recipe's main readout;
    `floor`: an arm that is not among those, since all others are compared with it elsewhere.
    """

    arms: Mapping[str, Arm]
    measures: Measures
    controls: bool = False
    skip_impossible: bool = False
    sources: tuple[str, ...] = ()
    alone: bool = False
    one_seed: bool = False
    fewest: int = 1
    baseline: str | None = None
    metric: str = "probe"
    floor: str | None = None

    def metric_of(self, recipe: Recipe) -> str:
        """What arms are compared by, as its rows name it."""
        return self.metric.replace("probe", recipe.evaluate.probe.probes[0])


_ALL_SOURCES = (*POOLS["all"], UNSEEN)
EXPERIMENTS: dict[str, Notebook] = {
    "00_dual_masking_tour": Notebook(TOUR, _pretrained, one_seed=True),
    "ablation_decoder_mask": Notebook(DECODER_MASKS, _decoder_masks, controls=True, baseline="none", floor="scratch"),
    "ablation_mask_ratios": Notebook(MASK_RATIOS, _probe, skip_impossible=True, baseline="tube_90_cell_0", floor="scratch"),
    "ablation_hybrid_data": Notebook(
        HYBRID_DATA, _two_places, sources=_ALL_SOURCES, baseline="one", metric="probe@target", floor="scratch"
    ),
    "ablation_progressive_training": Notebook(
        PROGRESSIVE, _label_fractions, sources=_ALL_SOURCES, baseline="pretrained", metric="finetune@1"
    ),
    "cost_of_dual_masking": Notebook(DUAL_COST, _step, alone=True),
    "bring_your_own_videos": Notebook(OWN_VIDEOS, _probe_where_labelled, fewest=FEWEST, baseline="untrained"),
    "downstream_action_classification": Notebook(DOWNSTREAM, _downstream, baseline="scratch", metric="finetune"),
    "downstream_spatial_detection": Notebook(SPATIAL_DETECTION, _detect, baseline="scratch", metric="frame_map"),
    "downstream_temporal_detection": Notebook(TEMPORAL_DETECTION, _localise, baseline="untrained", metric="segment_map"),
    "distillation": Notebook(DISTILLATION, _distilled),
    "scaling": Notebook(SCALING, _probe, skip_impossible=True),
}


def plan_notebook(name: str, recipe: Recipe) -> Plan:
    """The plan of a notebook of this workbook. Sources that its pools need are added to those of the embedded data set.

    Raises RecipeError with all that is impossible, one line each.
    """
    book = EXPERIMENTS[name]
    missing = [source for source in book.sources if source not in recipe.data.sources]
    if missing and recipe.data.motionworld is None:
        raise RecipeError(f"{name} compares pools of the embedded data set's sources; it does not run on list files")
    if missing:
        recipe = recipe.with_overrides({"data.motionworld.sources": [*recipe.data.sources, *missing]})
    if book.measures is _distilled:  # students are compared on the sources that they are taught on
        taught_on = recipe.data.pretrain_sources or recipe.data.sources
        if recipe.data.motionworld and (recipe.evaluate.sources or recipe.data.sources) != taught_on:
            recipe = recipe.with_overrides({"evaluate.sources": list(taught_on)})
    problems = []
    if not recipe.data.labelled and book.measures not in (_pretrained, _probe_where_labelled):
        problems.append(
            f"{name} evaluates encoders with labels, and data.lists has none: set data.lists.train to a list with labels or a "
            "folder that has one folder per class"
        )
    if not any(book.arms[arm].pretrained for arm in recipe.arms):
        problems.append(f"arms {list(recipe.arms)}: at least one arm with pre-training is needed")
    if book.alone:
        recipe = recipe.with_overrides({"compute.jobs": 1})
    if book.one_seed:
        recipe = recipe.with_overrides({"seeds": recipe.seeds[:1]})
    try:
        plan = plan_ablation(name, recipe, book.arms, book.measures, book.controls, book.skip_impossible)
    except RecipeError as error:
        problems.append(str(error))
    if problems := [*problems, *_too_few_clips(name, recipe, book.fewest)]:
        raise RecipeError("\n".join(problems))
    return plan


def _too_few_clips(name: str, recipe: Recipe, fewest: int) -> list[str]:
    """What is wrong if a notebook's pictures need more listed videos than there are, in one line."""
    lists, split = recipe.data.lists, recipe.evaluate.split if recipe.data.labelled else "pretrain"
    if lists is None or fewest < 2 or lists.missing(split):
        return []
    try:
        there = clip_count(lists, split)
    except ListError:  # the plan reports it
        return []
    told = f"{name} compares clips with each other, and the {split} split has {there}; list more videos"
    return [told] if there < fewest else []
