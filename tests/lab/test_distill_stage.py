"""The distillation stage: what it needs, how it is evaluated, and that adding it did not rename other stages."""

from pathlib import Path

import pytest

from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.experiments import plan_notebook
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.experiments.distillation import ARMS as DISTILLATION
from vmae_lab.lab.run_store import RunStore, in_order
from vmae_lab.lab.stages import WEIGHTS, distill_stage, finetune_stage, initial_stage, post_pretrain_stage, pretrain_stage
from vmae_lab.lab.stages.cost import BACKWARD
from vmae_lab.models.checkpoints import read_weights
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.videomae import VideoMAE

ROOT = Path(__file__).parents[2]
DISTILL = {"steps": 6, "batch_size": 4, "lr": 0.002, "readout": "flat", "temperature": 2.0, "feature_weight": 0.1}


@pytest.fixture
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": ["scratch"], "distill": DISTILL}, DECODER_MASKS)


def test_what_is_added_names_a_stage_once_it_is_used(recipe):
    scratch = initial_stage(recipe, 0)
    keys = {finetune_stage(recipe, scratch, 0).key, finetune_stage(recipe.model_copy(update={"distill": None}), scratch, 0).key}
    assert len(keys) == 1, "a section that a stage does not read is not in its name"
    for change in ({"ema": 0.9}, {"mix": {}}, {"repeats": 2}, {"dropout": 0.5}, {"sampling": "sparse"}):
        varied = recipe.with_overrides({f"evaluate.finetune.{name}": value for name, value in change.items()})
        keys.add(finetune_stage(varied, scratch, 0).key)
    assert len(keys) == 6
    assert pretrain_stage(recipe.with_overrides({"pretrain.ema": 0.9}), 0).key != pretrain_stage(recipe, 0).key


def test_a_plan_that_teaches_needs_the_section(recipe):
    plain = recipe.model_copy(update={"distill": None})
    with pytest.raises(RecipeError, match="distill: this section is missing"):
        distill_stage(plain, post_pretrain_stage(plain, None, 0), None, 0)
    with pytest.raises(RecipeError, match=r"distill\.temprature: unknown parameter \(did you mean 'temperature'\?\)"):
        recipe.with_overrides({"distill.temprature": 1})


@pytest.mark.slow
@pytest.mark.parametrize("from_scratch", [True, False])
def test_a_larger_model_teaches_a_smaller_one(recipe, home, tmp_path, from_scratch):
    """End to end: a tiny teacher, trained on labels, and a micro student, from scratch or from its own pre-training."""
    store, small = RunStore(tmp_path), recipe.with_overrides({"model.size": "micro"})
    teacher = post_pretrain_stage(recipe, None, 0)
    stage = distill_stage(small, teacher, None if from_scratch else pretrain_stage(small, 0), 0)
    for one in in_order([stage]):
        store.complete(one, recipe.compute, progress=False)
    result = store.result(stage)
    assert set(result["metrics"]) == {"distill", "distill_teacher", "distill_agreement"}
    assert result["metrics"]["distill_teacher"] == store.result(teacher)["metrics"]["post_pretrain"], "the same model and clips"
    assert all(0 <= value <= 100 for value in result["metrics"].values())
    assert store.progress(stage) == 1.0
    assert stage.steps == 6
    weights = read_weights(store.folder(stage) / WEIGHTS)
    student = VideoClassifier.from_pretrained(store.folder(stage))  # an ordinary classifier, without the map to the teacher
    assert (student.size, student.clip, student.head.readout) == (small.model.dimensions, small.model.clip, "flat")
    if not from_scratch:
        assert VideoMAE.from_pretrained(store.folder(stage.inputs[1])).size == small.model.dimensions
    assert stage.disk_bytes == sum(4 * value.numel() for value in weights.values())
    # Forward and backward of the student on 6 x 4 clips, the teacher's forward, and both once on the 32 held-out clips.
    held_out = 2 * 8 * 2
    shown = 6 * 4
    student, other = (classify_cost(each.model.dimensions, each.model.clip, 8).macs for each in (small, recipe))
    assert stage.macs == student * (BACKWARD * shown + held_out) + other * (shown + held_out)


def test_the_student_is_the_next_size_below_or_the_one_that_is_named(smoke):
    def sizes(**override) -> set[str]:
        recipe = build_recipe({**smoke, "arms": list(DISTILLATION), "override": override}, DISTILLATION)
        students = {cell.measures["student"].settings["model"]["size"] for cell in plan_notebook("distillation", recipe).cells}
        teachers = {
            cell.measures["finetune@teacher"].settings["model"]["size"] for cell in plan_notebook("distillation", recipe).cells
        }
        assert teachers == {recipe.model.size}
        return students

    assert sizes() == {"micro"}
    assert sizes(student="mini") == {"mini"}
    assert sizes(distill=None) == {"micro"}, "as fine-tuning is, where no recipe of its own is given"
    with pytest.raises(RecipeError, match=r"^student: 'huger'.* micro, "):
        sizes(student="huger")
    with pytest.raises(RecipeError, match=r"model\.size micro"):
        sizes(**{"model.size": "micro"})


def test_students_are_taught_on_the_sources_that_they_are_compared_on(smoke):
    changed = {"data.pretrain_sources": ["digits", "sticks"], "evaluate.sources": ["sprites"]}
    recipe = build_recipe({**smoke, "arms": list(DISTILLATION), "override": changed}, DISTILLATION)
    plan = plan_notebook("distillation", recipe)
    assert plan.recipe.data.pretrain_sources == plan.recipe.evaluate.sources == ("sprites",)
    assert plan.first("scratch").recipe.evaluate.finetune_labels == 8, "a quarter of 16, but at least one per class"
    finetuned = [stage for cell in plan.cells for stage in cell.measures.values() if stage.kind == "finetune"]
    assert all(stage.settings["sources"] == ["sprites"] for stage in finetuned)


def test_teacher_and_students_are_trained_alike(smoke):
    recipe = build_recipe({**smoke, "arms": list(DISTILLATION), "override": {"distill.steps": 7}}, DISTILLATION)
    trained = [stage for cell in plan_notebook("distillation", recipe).cells for stage in cell.measures.values()]
    assert {stage.steps for stage in trained} == {7}
    assert {stage.settings[stage.kind]["lr"] for stage in trained} == {recipe.distill.lr}
