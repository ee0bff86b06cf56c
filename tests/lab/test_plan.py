"""Rows of a plan, and comparisons as text and in tables."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vmae_lab.evaluation.classification import top1, wilson_interval
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.experiments.ablation_decoder_mask import accuracy_against_cost, conclusions
from vmae_lab.lab.experiments.ablation_hybrid_data import ARMS as HYBRID_DATA
from vmae_lab.lab.experiments.ablation_mask_ratios import pareto
from vmae_lab.lab.experiments.common import (
    Results,
    comparison_cells,
    comparison_words,
    highest_mean_words,
    how_compared,
    readout_words,
)
from vmae_lab.lab.plan import plan_ablation
from vmae_lab.lab.report.tables import interval, plus_minus
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import compare
from vmae_lab.utils.atomic_io import make_folder, write_json


def rows(values: dict[str, list[float]], metric: str = "ridge") -> pd.DataFrame:
    return pd.DataFrame(
        [{"arm": arm, "seed": seed, "metric": metric, "value": v} for arm, vs in values.items() for seed, v in enumerate(vs)]
    )


def test_rows_name_the_place_where_they_were_measured(smoke, tmp_path):
    """Two probes of an arm must have different names. A measure that an arm lacks has no row."""
    recipe = build_recipe({**smoke, "arms": ["scratch", "one"], "seeds": [0]}, HYBRID_DATA)
    plan, store = plan_notebook("ablation_hybrid_data", recipe), RunStore(tmp_path)
    for stage in plan.stages:
        metrics = (
            {"ridge": {"plaids": 1.0, "striped_plaids": 2.0}[stage.settings["sources"][0]]} if stage.kind == "probe" else {}
        )
        result = {"metrics": metrics}
        if stage.kind == "pretrain":
            result["training"] = {"seconds_per_step": 0.5, "peak_memory_mib": None}
        write_json(make_folder(store.folder(stage)) / "result.json", result)
    table = plan.rows(store)
    assert {(row.arm, row.metric): row.value for row in table.itertuples()} == {
        ("scratch", "ridge@target"): 1.0,
        ("scratch", "ridge@unseen"): 2.0,
        ("one", "ridge@target"): 1.0,
        ("one", "ridge@unseen"): 2.0,
        ("one", "pretrain_seconds_per_step"): 0.5,
    }
    assert set(table.stage) <= {stage.key for stage in plan.stages}


@pytest.fixture
def plan(smoke):
    recipe = build_recipe({**smoke, "arms": ["scratch", "none", "running_cell_50"]}, DECODER_MASKS)
    return plan_notebook("ablation_decoder_mask", recipe)


ERRORS = {"reconstruction": 0.9, "cube_mean": 1.0}


def test_accuracy_and_its_interval():
    assert top1(np.array([1, 2, 3]), np.array([1, 2, 0])) == pytest.approx(200 / 3)
    low, high = wilson_interval(50, 100)
    assert (low, high) == pytest.approx((40.38, 59.62), abs=0.01)  # Wilson 1927's formula by hand


@pytest.mark.parametrize(
    ("none", "cell", "said"),
    [
        (
            [70.0, 71.0, 69.0],
            [70.5, 69.0, 70.8],
            r"3 seeds, undecided: 'cell 50%' \(\+0.1 \[.*, about \d+ more seeds",
        ),
        ([70.0, 71.0, 69.0], [60.1, 61.0, 59.0], r"3 seeds, lower: 'cell 50%' \(-10.0 \["),
        ([70.0], [60.0], r"With one seed or arm, nothing can be concluded"),
        ([70.0, 71.0], [70.0, 71.0], r"2 seeds, undecided: 'cell 50%' \(\+0.0 \[no interval\], no spread over seeds\)"),
    ],
)
def test_words_follow_the_numbers(smoke, tmp_path, none, cell, said):
    seeds = list(range(len(none)))
    changed = {"arms": ["scratch", "none", "running_cell_50"], "seeds": seeds, "override": {"pretrain.keep_at": []}}
    plan = replace(plan_notebook("ablation_decoder_mask", build_recipe({**smoke, **changed}, DECODER_MASKS)), controls=None)
    values = {"scratch": [20.0] * len(none), "none": none, "running_cell_50": cell}
    errors = [rows({"none": [x] * len(none), "running_cell_50": [x] * len(none)}, metric) for metric, x in ERRORS.items()]
    every = [rows(values, metric) for metric in ("ridge", "finetune", "attentive", "linear_mean", "knn")]
    table = pd.concat([*every, *errors])
    words = conclusions(Results(plan, table, RunStore(tmp_path)))
    assert re.search(said, words[-1])
    gains = [np.mean(arm) - 20 for arm in (none, cell)]
    numbers = f"{min(gains):+.1f} to {max(gains):+.1f}" if none != cell else f"{gains[0]:+.1f}"
    assert f" by {numbers} points" in words[0]


def test_a_comparison_in_words_and_in_cells():
    table = compare(rows({"b": [70.0, 71.0, 69.0], "a": [60.1, 61.0, 59.0]}), "ridge", "b", arms=["a", "missing"])
    assert comparison_words(table.loc["a"]) == "-10.0 [-10.1, -9.8] points, lower"
    assert comparison_cells(table, "a", "b", "here: ") == {
        "here: difference to b [95%]": "-10.0 [-10.1, -9.8]", "here: verdict": "lower"
    }  # fmt: skip
    assert comparison_cells(table, "missing", "b") == {"difference to b [95%]": "", "verdict": "not measured"}
    assert comparison_cells(table, "b", "b") == {"difference to b [95%]": "", "verdict": ""}


def test_a_caption_names_comparisons_error_and_what_can_be_detected():
    rng = np.random.default_rng(2)
    few, many = (compare(rows({arm: list(rng.normal(70, 1, seeds)) for arm in "abcd"}), "ridge", "a") for seeds in (3, 12))
    one = compare(rows({"a": [1.0], "b": [2.0]}), "ridge", "a")
    assert many.pooled.all()
    words = how_compared(2.0, few)
    assert "simultaneous over the comparisons of the table (3)" in words
    assert "paired differences (Bonferroni)" in words
    assert f"3 seeds detect with 80% power is {few.detectable.min():.1f} to {few.detectable.max():.1f} points" in words
    assert "less than 2 points" in words
    assert "two-way" in how_compared(2.0, many)
    assert "comparisons of the column (3)" in how_compared(2.0, few, many)
    assert "3 to 12 seeds" in how_compared(2.0, few, many)
    assert how_compared(2.0, one).endswith("an interval needs two seeds of both arms.")
    equal = compare(rows({"a": [1.0, 5.0], "b": [2.0, 6.0]}), "ridge", "a")
    assert how_compared(2.0, equal).endswith("two seeds of both arms and differences that vary over the seeds.")


@pytest.mark.parametrize(("metric", "baseline"), [("rigde", "none"), ("ridge", "nope")])
def test_results_compare_no_unknown_metric_or_arm(plan, tmp_path, metric, baseline):
    """An arm of the experiment that was not run has an empty table, since a plan can have a part of the arms."""
    results = Results(plan, rows({"none": [1.0, 2.0], "running_cell_50": [2.0, 4.0]}), RunStore(tmp_path))
    assert results.compare("ridge", "frame_50").empty
    with pytest.raises(ValueError, match=f"'{metric if baseline == 'none' else baseline}'"):
        results.compare(metric, baseline)


@pytest.mark.parametrize(
    ("means", "named"),
    [([50.0, 60.0, 55.0], "'B'"), ([60.0, 60.0, 55.0], "'A' and 'B'"), ([60.0, 60.0, 60.0], "'A', 'B' and 'C'")],
)
def test_the_highest_mean_can_be_that_of_several_arms(means, named):
    assert highest_mean_words(pd.Series(means, index=list("abc")), {name: name.upper() for name in "abc"}) == (
        f"The highest mean is that of {named}."
    )


def test_equal_changes_are_one_number_and_all_smallest_are_named(plan, tmp_path):
    table = rows({"scratch": [20.0, 21.0], "none": [21.6, 22.6], "running_cell_50": [21.5, 22.7]})
    words = readout_words(Results(plan, table, RunStore(tmp_path)), "ridge", "scratch", "none")[0]
    assert "by +1.6 points compared" in words
    assert "that of 'none (V1)': +1.6 [no interval] points, undecided (no spread over seeds); 'cell 50%': +1.6 [" in words


SMALL_GRID = {"model.side": 12, "mask.decoder": "none", "mask.decoder_ratio": 0.0}  # 90% and 95% of 9 tubes are the same


@pytest.mark.parametrize(
    ("draw", "name", "override", "arms", "equal"),
    [
        (accuracy_against_cost, "ablation_decoder_mask", {}, ["none", "frame_50", "running_cell_50"], True),
        (accuracy_against_cost, "ablation_decoder_mask", {}, ["none", "running_cell_50"], False),
        (pareto, "ablation_mask_ratios", SMALL_GRID, ["tube_90_cell_0", "tube_95_cell_0"], True),
        (pareto, "ablation_mask_ratios", SMALL_GRID, ["tube_75_cell_0", "tube_90_cell_0"], False),
    ],
)
def test_captions_describe_points_of_equal_cost_if_there_are_some(smoke, tmp_path, draw, name, override, arms, equal):
    parameters = {**smoke, "arms": ["scratch", *arms], "override": override}
    plan = plan_notebook(name, build_recipe(parameters, EXPERIMENTS[name].arms))
    table = rows({arm: [70.0, 71.0] for arm in ["scratch", *arms]})
    caption = draw(Results(plan, table, RunStore(tmp_path))).caption
    assert caption.endswith(" Points of equal cost are drawn side by side.") == equal


def test_cells_of_tables():
    assert plus_minus(70.04, float("nan")) == "70.0"
    assert interval(1.0, float("nan"), float("nan")) == "+1.0 [no interval]"
    assert interval(1.0, -0.5, 2.5) == "+1.0 [-0.5, +2.5]"


@pytest.fixture
def five_waves(smoke, tmp_path):
    """The smoke recipe on a list of five videos of class wave and nine of class jump, without the files."""
    videos = [*(f"wave/{n}.mp4,wave" for n in range(5)), *(f"jump/{n}.mp4,jump" for n in range(9))]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *videos]))
    lists = {"root": str(tmp_path), "train": "train.csv", "test": "train.csv"}
    evaluate = {**smoke["evaluate"], "sources": [], "finetune_labels": 10, "probe": {"probes": ["ridge"], "labels": 10}}
    return {**smoke, "data": {"lists": lists}, "evaluate": evaluate, "arms": ["scratch", "running_cell_50"]}


@pytest.mark.parametrize("name", ["finetune_labels", "probe.labels"])
def test_more_labels_than_a_list_has_are_refused_before_anything_runs(five_waves, name):
    plan_notebook("ablation_decoder_mask", build_recipe(five_waves))
    more = build_recipe({**five_waves, "override": {f"evaluate.{name}": 12}})
    message = f"^evaluate.{name}: for 12 labels, .* 'wave' of data.lists.train .* at most 10"
    with pytest.raises(RecipeError, match=message):
        plan_notebook("ablation_decoder_mask", more)
    plan_ablation("pretrain", more, DECODER_MASKS, lambda recipe, arm, encoder, seed: {"pretrain": encoder})  # draws none
    everything = build_recipe({**five_waves, "override": {f"evaluate.{name}": None}})
    plan_notebook("ablation_decoder_mask", everything)


def test_a_list_that_is_not_there_yet_is_not_counted(five_waves, tmp_path):
    (tmp_path / "train.csv").unlink()
    later = build_recipe({**five_waves, "override": {"data.lists.classes": 2, "evaluate.finetune_labels": 160}})
    assert plan_notebook("ablation_decoder_mask", later).stages
