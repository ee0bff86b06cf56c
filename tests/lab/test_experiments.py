"""The plans of the notebooks: shared stages, pools and steps of each arm, and arms that a grid does not allow."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.estimate import plan_cost, plan_summary, stage_table, this_machine
from vmae_lab.lab.experiments import EXPERIMENTS, common, distillation, plan_notebook, scaling
from vmae_lab.lab.experiments import ablation_progressive_training as progressive
from vmae_lab.lab.experiments import cost_of_dual_masking as dual_cost
from vmae_lab.lab.experiments.ablation_hybrid_data import POOLS, TARGET, UNSEEN
from vmae_lab.lab.experiments.common import Results
from vmae_lab.lab.plan import ROW, Arm, Plan
from vmae_lab.lab.plots.style import PRINTED
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.lab.stages.cost import parameter_count
from vmae_lab.lab.stages.measure import largest_batch
from vmae_lab.models.flops import state_bytes

PARAMS = Path(__file__).parents[2] / "params"


def planned(name: str, parameters: dict, **override) -> Plan:
    arms = EXPERIMENTS[name].arms
    return plan_notebook(name, build_recipe({"arms": list(arms), **parameters, "override": override}, arms))


@pytest.fixture(scope="module")
def plans(smoke) -> dict[str, Plan]:
    return {name: planned(name, smoke) for name in EXPERIMENTS}


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_notebook_plans_at_smoke(plans, name):
    plan = plans[name]
    assert not plan.impossible, "at smoke scale, the grid allows all arms"
    seeds = (0,) if EXPERIMENTS[name].one_seed else (0, 1)
    assert {(cell.arm, cell.seed) for cell in plan.cells} == {(arm, seed) for arm in EXPERIMENTS[name].arms for seed in seeds}
    measured = {cell.arm for cell in plan.cells if cell.measures}
    counted_only = {arm for arm in plan.arms if name == "cost_of_dual_masking" and not arm.startswith("small_")}
    assert measured == set(plan.arms) - counted_only, "every arm is evaluated"
    assert (plan.controls is not None) == (name == "ablation_decoder_mask")


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_stages_are_counted_by_kind(plans, name):
    table, stages = stage_table(plans[name]).set_index("kind"), plans[name].stages
    assert table.stages.to_dict() == Counter(stage.kind for stage in stages)
    assert table.steps.sum() == sum(stage.steps for stage in stages)


def test_the_hash_of_a_mask_picture_depends_on_the_mask(plans):
    pictures = common.mask_pictures(plans["ablation_decoder_mask"])
    assert pictures["encoder sees"].nunique() == 1, "arms that differ in the decoder's mask see the same"
    same = pictures.loc[["running_cell_50", "running_cell_50_all"], "decoder reconstructs"]
    assert same.nunique() == 1, "they differ in the loss alone"
    assert pictures["decoder reconstructs"].nunique() == len(pictures) - 1
    ratios = common.mask_pictures(plans["ablation_mask_ratios"])
    assert ratios.loc["tube_90_cell_50"].equals(pictures.loc["running_cell_50"].rename("tube_90_cell_50"))


def keys(plan: Plan, arm: str) -> list[str]:
    cell = plan.first(arm)
    return [cell.encoder.key, cell.measures["probe"].key]


def test_notebooks_share_the_stages_of_equal_arms(plans):
    """Each shared stage may save a day of pre-training. Any difference in a setting would prevent this."""
    dual, ratios, sizes = (plans[name] for name in ("ablation_decoder_mask", "ablation_mask_ratios", "scaling"))
    assert keys(dual, "running_cell_50") == keys(ratios, "tube_90_cell_50") == keys(sizes, "middle_full_whole")
    assert keys(dual, "none") == keys(ratios, "tube_90_cell_0")
    assert keys(dual, "scratch") == keys(ratios, "scratch")
    hybrid, progressive = plans["ablation_hybrid_data"], plans["ablation_progressive_training"]
    assert hybrid.first("all").encoder.key == progressive.first("pretrained").encoder.key
    assert progressive.first("pretrained").encoder.key == progressive.first("progressive").encoder.key


ON_LISTS = [name for name, book in EXPERIMENTS.items() if not book.sources]


@pytest.mark.parametrize(
    ("scale", "name"), [*(("smoke", name) for name in EXPERIMENTS), *(("paper", name) for name in ON_LISTS)]
)
def test_arms_with_different_names_have_different_settings(scale, name):
    """Otherwise one result would be reported under two names. List files have no sources, of which an arm could take a part."""
    plan = planned(name, yaml.safe_load((PARAMS / f"{scale}.yaml").read_text()))
    measured = [cell for cell in plan.cells if cell.seed == 0 and cell.measures]
    seen = Counter(tuple(stage.key for stage in (cell.encoder, *cell.measures.values())) for cell in measured)
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_arms_have_different_markers_in_every_figure(name):
    """Marker and filling differ, so that arms differ in grayscale print. Sizes are on an axis."""
    arms = EXPERIMENTS[name].arms
    along_an_axis = {arm: arm.split("_")[0] if name in ("cost_of_dual_masking", "scaling") else "" for arm in arms}
    looks = Counter((along_an_axis[key], arm.marker, arm.fill) for key, arm in arms.items())
    assert set(looks.values()) == {1}
    labels = Counter(arm.label for arm in arms.values())
    assert set(labels.values()) == {1}


def look(arm: Arm) -> tuple[str, str, str]:
    return arm.colour, arm.marker, arm.fill


def test_an_arm_has_the_same_style_in_all_notebooks(plans):
    """Arms are the same if their labels or their settings are equal. All encoders without training are the same arm."""
    looks = defaultdict(set)
    for plan in plans.values():
        for name in plan.possible:
            arm = plan.arms[name]
            setting = plan.first(name).recipe.model_dump(mode="json", exclude={"arms", "compute"})
            flags = (arm.pretrained, arm.post_pretrained, arm.taught)
            if plan.name == "use_a_checkpoint" and arm.pretrained:
                flags += (name,)  # these arms differ in what they do with one checkpoint, not in settings
            looks[arm.label].add(look(arm))
            looks[json.dumps([setting, *flags], sort_keys=True)].add(look(arm))
            if name in ("scratch", "untrained"):
                looks["untrained"].add(look(arm))
    for styles in (dual_cost.STYLES, distillation.STYLES):
        for arm in styles.values():
            looks[arm.label].add(look(arm))
    assert {key: different for key, different in looks.items() if len(different) > 1} == {}
    arms = [arm for book in EXPERIMENTS.values() for arm in book.arms.values()]
    supervised = {look(arm) for arm in arms if arm.pretrained and arm.post_pretrained}
    assert len(supervised) == 1, "pre-trained, then supervised: one way, whatever it is called"


def test_colors_are_in_the_palette_and_hatches_differ():
    used = {arm.colour for book in EXPERIMENTS.values() for arm in book.arms.values()}
    used |= {arm.colour for styles in (dual_cost.STYLES, distillation.STYLES) for arm in styles.values()}
    assert used <= set(PRINTED)
    assert len({hatch for _, hatch in PRINTED.values()}) == len(PRINTED), "bars of two colours are two greys and two hatches"


def pretraining(plan: Plan, arm: str) -> Stage:
    return next(stage for stage in plan.stages if stage.key == plan.first(arm).encoder.key and stage.kind == "pretrain")


def test_the_unseen_source_is_in_no_pool(plans):
    """Otherwise it would not measure transfer. The target is in every pool, so that larger pools contain it too."""
    assert UNSEEN != TARGET
    assert all(UNSEEN not in pool and pool[TARGET] == 1 for pool in POOLS.values())
    for name in ("ablation_hybrid_data", "ablation_progressive_training"):
        trained = [stage for stage in plans[name].stages if stage.kind in ("pretrain", "post_pretrain")]
        assert trained
        for stage in trained:
            pool = stage.settings["data"]["pretrain_sources"]
            assert pool, "an empty pool stands for all sources"
            assert UNSEEN not in pool


def test_encoders_are_evaluated_on_the_target_and_the_unseen_source(plans):
    for cell in plans["ablation_hybrid_data"].cells:
        sources = {name: stage.settings["sources"] for name, stage in cell.measures.items()}
        assert sources == {"probe@target": [TARGET], "probe@unseen": [UNSEEN]}
        assert all(stage.inputs == (cell.encoder,) for stage in cell.measures.values())


@pytest.mark.parametrize("train", [4, 16])
def test_pools_and_steps_match_the_names_of_arms(smoke, train):
    """Computed by hand for 4 and 16 clips per action: a half, a quarter, an eighth, but at least one clip."""
    plan = planned("ablation_hybrid_data", smoke, **{"data.motionworld.train": train, "pretrain.steps": 24})
    one = {"plaids": train}
    two = {**one, "coarse_plaids": train // 2}
    everything = {**two, "dark_plaids": train // 4, "photographs": max(1, train // 8)}
    pools = {arm: {"one": one, "two": two, "all": everything}[arm.split("_")[0]] for arm in plan.pretrained}
    assert len(pools) == 7
    for arm, pool in pools.items():
        stage = pretraining(plan, arm)
        data, steps = stage.settings["data"], stage.steps
        assert data["pretrain_sources"] == list(pool), arm
        assert data["pretrain_limits"] == pool, arm
        if arm.endswith("_epochs"):  # as many steps a clip as on one source
            assert steps * sum(one.values()) == 24 * sum(pool.values()), arm
        else:
            assert steps == 24, arm
        assert data["mixing"] == {"tempered": 0.5, "uniform": 0.0}.get(arm.split("_")[-1], 1.0), arm


def test_progressive_training_chains_its_stages(plans):
    """Pre-training, then supervised training on the hybrid, then the target. An arm must not skip a stage of its chain."""
    plan = plans["ablation_progressive_training"]
    chains = {
        "scratch": [],
        "pretrained": ["pretrain"],
        "post_only": ["post_pretrain"],
        "progressive": ["post_pretrain", "pretrain"],
    }
    assert set(chains) == set(plan.arms)
    for arm, kinds in chains.items():
        cell = plan.first(arm)
        finetunes = [stage for name, stage in cell.measures.items() if name.startswith("finetune@")]
        assert len(finetunes) == len(plan.recipe.evaluate.label_fractions)
        for stage in finetunes:
            assert stage.settings["sources"] == [UNSEEN]
            before = chain(stage)
            assert [link.kind for link in before] == kinds, arm
            assert all(link.settings["seed"] == cell.seed for link in (stage, *before))
        assert ("post_pretrain" in cell.measures) == ("post_pretrain" in kinds), "its own accuracy is reported too"
        if "post_pretrain" in kinds:
            assert finetunes[0].inputs == (cell.measures["post_pretrain"],)


def chain(stage: Stage) -> list[Stage]:
    """Return the stages that a stage starts from, the last one first."""
    assert len(stage.inputs) <= 1
    return [link for source in stage.inputs for link in (source, *chain(source))]


def test_label_fractions_are_parts_of_the_clips_of_the_unseen_source(smoke):
    """16 clips per action, 8 classes: the same number per class, at least one."""
    fractions = [0.01, 0.25, 1.0]
    plan = planned(
        "ablation_progressive_training", smoke, **{"data.motionworld.train": 16, "evaluate.label_fractions": fractions}
    )
    labels = {name: stage.settings["labels"] for name, stage in plan.first("scratch").measures.items()}
    assert labels == {"finetune@0.01": 8, "finetune@0.25": 32, "finetune@1": 128}


def test_the_arms_of_scaling_change_the_named_quantities(plans):
    """The recipe is tiny: 4 clips per action, 6 steps, 2 of them warm-up."""
    plan = plans["scaling"]
    for arm in plan.arms:
        size, data, steps = arm.split("_")
        settings = pretraining(plan, arm).settings
        assert settings["model"]["size"] == {"smaller": "micro", "middle": "tiny", "larger": "mini"}[size]
        assert settings["data"]["pretrain_limits"] == ({"digits": 1, "sticks": 1} if data == "quarter" else {})
        assert settings["pretrain"]["steps"] == {"third": 2, "whole": 6}[steps]
        assert settings["pretrain"]["warmup_steps"] == {"third": 1, "whole": 2}[steps]


def test_the_trend_of_scaling_finds_known_slopes(plans, tmp_path):
    """Per doubling: 3 points of compute, hence 3 of steps; none of clips. One budget of compute gives no slope."""
    plan = plans["scaling"]
    used = scaling.budgets(plan)
    assert used.gmacs.nunique() == 6
    assert used.gmacs["larger_full_whole"] == pytest.approx(3 * used.gmacs["larger_quarter_third"]), "6 steps, 2 steps"

    def fitted(cells: list) -> pd.DataFrame:
        noise = 0.01 * np.random.default_rng(0).standard_normal(len(cells))
        rows = [
            {"arm": cell.arm, "seed": cell.seed, "metric": "ridge", "value": 50 + 3 * np.log2(used.gmacs[cell.arm]) + small}
            for cell, small in zip(cells, noise, strict=True)
        ]
        return scaling.trend(Results(plan, pd.DataFrame(rows), RunStore(tmp_path)))

    slopes = fitted(plan.cells).slope
    assert slopes[[scaling.COMPUTE, "steps", "clips to pre-train on"]].tolist() == pytest.approx([3, 3, 0], abs=0.02)
    assert list(
        fitted([cell for cell in plan.cells if cell.arm.startswith("middle") and cell.arm.endswith("whole")]).index
    ) == ["clips to pre-train on"]


def test_scaling_reports_arms_that_are_impossible(smoke):
    """At the smallest and the largest size, and for parts of list files. Otherwise an arm would have a wrong name."""
    lists = planned("scaling", yaml.safe_load((PARAMS / "paper.yaml").read_text()))
    assert lists.possible == [
        f"{size}_full_{steps}" for size in ("smaller", "middle", "larger") for steps in ("third", "whole")
    ]
    assert all("a part of a list file's videos cannot be taken" in reason for reason in lists.impossible.values())
    for size, place, word in (("micro", "smaller", "below"), ("giant", "larger", "above")):
        end = planned("scaling", smoke, **{"model.size": size})
        assert set(end.impossible) == {arm for arm in end.arms if arm.startswith(place)}
        assert all(reason == f"there is no size {word} model.size {size}" for reason in end.impossible.values())


def test_measured_steps_use_the_papers_clips_and_seeds_share_them(plans):
    """All seeds share one measurement. Sizes that are not listed are only counted."""
    plan = plans["cost_of_dual_masking"]
    assert len(plan.stages) == 2, "the small model, with and without a decoder mask, one batch size"
    for stage in plan.stages:
        assert stage.kind == "measure"
        assert stage.settings["model"] == {"size": "small", "frames": 16, "side": 224, "tubelet": 2, "patch": None}
    assert {stage.settings["mask"]["decoder"] for stage in plan.stages} == {"none", "running_cell"}


def test_the_batches_of_both_precisions_are_explained(plans, tmp_path):
    """In a memory that is just large enough for the float32 model, bf16 does not fit."""
    plan = plans["cost_of_dual_masking"]
    recipe = plan.first("giant_none").recipe
    model, masks = recipe.measure.model_of("giant"), recipe.mask
    memory = state_bytes(parameter_count(model))
    assert largest_batch(model, masks, memory, half=False) > largest_batch(model, masks, memory, half=True) == 0
    caption = dual_cost.batch_table(Results(plan, pd.DataFrame(columns=ROW), RunStore(tmp_path))).caption
    assert "bf16 keeps extra copies of the weights" in caption


def test_all_best_students_are_compared_with_the_teacher(plans, tmp_path, monkeypatch):
    monkeypatch.setattr(Results, "stage_result", lambda *_: {"test_clips": 100})
    accuracies = {"scratch": 50.0, "scratch_taught": 60.0, "pretrained": 60.0, "pretrained_taught": 55.0}
    rows = [
        {"arm": arm, "seed": seed, "metric": metric, "value": value + seed}
        for arm, accuracy in accuracies.items() for seed in (0, 1)
        for metric, value in (("finetune@teacher", 70.0), ("distill" if "taught" in arm else "finetune", accuracy))
    ]  # fmt: skip
    words = " ".join(distillation.conclusions(Results(plans["distillation"], pd.DataFrame(rows), RunStore(tmp_path))))
    for arm, accuracy in accuracies.items():
        assert (f"'{distillation.ARMS[arm].label}', compared with the teacher" in words) == (accuracy == 60)


def test_timed_stages_run_alone(smoke):
    """Two stages at the same time would slow each other down. Without timed stages, the recipe's jobs are kept."""
    jobs = {name: planned(name, smoke, **{"compute.jobs": 2}).recipe.compute.jobs for name in EXPERIMENTS}
    assert jobs == {name: 1 if name == "cost_of_dual_masking" else 2 for name in EXPERIMENTS}


# 3 x 5 x 5 tokens: odd sides crop the cells, and 3 time steps do not bring each phase to as many of them.
ODD_GRID = {"model.side": 20, "model.frames": 6, "data.stride": 1, "mask.decoder": "none", "mask.decoder_ratio": 0}
REASON = "mask a different number of tokens in each phase"


def test_arms_that_the_grid_does_not_allow_are_left_out_and_reported(smoke, tmp_path):
    plan = planned("ablation_mask_ratios", smoke, **ODD_GRID)
    without = [arm for arm in plan.arms if arm == "scratch" or arm.endswith("_cell_0")]
    assert plan.possible == without
    assert {cell.arm for cell in plan.cells} == set(without)
    assert set(plan.impossible) == set(plan.arms) - set(without)
    assert len(plan.impossible) == 12
    assert all(REASON in reason for reason in plan.impossible.values())
    assert ": 5 arms x 2 seeds" in plan_summary(plan, RunStore(tmp_path)), "what is not run is not counted"


def test_a_plan_without_any_possible_pretrained_arm_is_refused(smoke):
    """There would be nothing to compare, and tables would fail after the run."""
    with pytest.raises(RecipeError, match=rf"no arm with pre-training is possible(.|\n)*tube_90_cell_50': .*{REASON}"):
        planned("ablation_mask_ratios", {**smoke, "arms": ["scratch", "tube_90_cell_50"]}, **ODD_GRID)


def test_a_notebook_that_compares_kinds_of_masks_refuses_impossible_masks(smoke):
    """Without one of the kinds, its comparison would be incomplete."""
    with pytest.raises(RecipeError, match=rf"arm 'running_cell_50_all': .*{REASON}"):
        planned("ablation_decoder_mask", smoke, **ODD_GRID)


def test_pools_get_all_their_sources(smoke):
    few = {**smoke["data"], "motionworld": {**smoke["data"]["motionworld"], "sources": ["digits", "sticks", "plaids"]}}
    for name in ("ablation_hybrid_data", "ablation_progressive_training"):
        plan = planned(name, {**smoke, "data": few})
        assert plan.recipe.data.sources == (
            "digits",
            "sticks",
            "plaids",
            "coarse_plaids",
            "dark_plaids",
            "photographs",
            "striped_plaids",
        )
        assert {stage.settings["data"]["motionworld"]["sources"][-1] for stage in plan.stages if "data" in stage.settings} == {
            "striped_plaids"
        }


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_one_of_a_kind_has_no_plural(smoke, tmp_path, name):
    """With one seed and one draw, in captions, in the cost of the plan and in the estimate of a notebook."""
    plan = planned(name, {**smoke, "seeds": [0]}, **{"evaluate.probe.draws": 1, "compute.jobs": 1, "compute.workers": 1})
    cost = plan_cost(plan, RunStore(tmp_path), this_machine(1e9)).sentence()
    for text in (common.how_made(plan), plan_summary(plan, RunStore(tmp_path)), cost):
        assert re.search(r"\b1 (seed|draw|stage)\b", text)
        assert not re.search(r"(?<![\d.,])1 (?!class |process )[\w -]*?(arm|seed|draw|stage|processe|clip|step)s\b", text), text


def test_captions_describe_how_each_table_was_made(plans):
    """Frozen readouts average several draws of labels. Fine-tuning has one draw per seed, on the unseen source only."""
    frozen, tuned = common.how_made(plans["scaling"]), progressive.results_caption(plans["ablation_progressive_training"])
    assert all(
        "6 pre-training steps of 4 clips unless the arm sets another number; mean ± standard deviation over 2 seeds" in words
        for words in (frozen, tuned)
    )
    assert "frozen readouts, mean over 1 draw of 16 labels;" in frozen
    assert "fine-tuned for 4 steps of 4 clips with one draw of labels per seed; pre-trained on plaids, coarse_plaids," in tuned
    assert tuned.endswith("evaluated on striped_plaids.")
    assert "frozen" not in tuned
    assert "pre-trained on" not in common.how_made(plans["ablation_hybrid_data"]), "its arms have different pools"
