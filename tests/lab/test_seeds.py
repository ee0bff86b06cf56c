"""How many seeds a plan needs: from its own stages, from a report, or for a list of spreads."""

import re

import numpy as np
import pandas as pd
import pytest

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook, seeds_summary
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS as DECODER_MASKS
from vmae_lab.lab.experiments.scaling import ARMS as SCALING
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import seeds_needed, smallest_detectable
from vmae_lab.utils.atomic_io import make_folder, write_json

ARMS = ["scratch", "none", "frame_50", "running_cell_50"]
# Paired differences of standard deviation 1 and 3 at three seeds; the untrained encoder varies much more and is not compared.
VALUES = {"scratch": [0, 50, 0], "none": [70, 72, 71], "frame_50": [70, 73, 73], "running_cell_50": [73, 72, 68]}


@pytest.fixture
def plan(smoke):
    return plan_notebook("ablation_decoder_mask", build_recipe({**smoke, "arms": ARMS, "seeds": [0, 1, 2]}, DECODER_MASKS))


def write_report(project, factor):
    rows = [(arm, seed, "ridge", factor * v) for arm, values in VALUES.items() for seed, v in enumerate(values)]
    folder = make_folder(project / "reports" / "smoke" / "ablation_decoder_mask" / "tables")
    pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).to_csv(folder / "results.csv", index=False)


def finish(plan, store, seeds):
    for cell in plan.cells:
        if cell.seed in seeds:
            for name, stage in cell.measures.items():
                metrics = {"ridge": VALUES[cell.arm][cell.seed]} if name == "probe" else {}
                write_json(make_folder(store.folder(stage)) / "result.json", {"metrics": metrics})


def needed_for(spreads):
    return [seeds_needed(spread, 2.0, 2) for spread in (np.median(spreads), max(spreads))]


def numbers(words):
    return [int(number) for number in re.findall(r"(\d+) (?:find|in the arm that varies)", words)]


def test_without_runs_the_answer_is_listed_by_spread(plan, project):
    words = seeds_summary(plan, RunStore(project / "runs"))
    assert "2 comparisons with 'none (V1)'" in words
    assert all(f"{seeds_needed(spread, 2.0, 2)} if it is {spread:g} point" in words for spread in (1.0, 2.0, 4.0))


def test_a_report_of_the_scale_gives_the_spread(plan, project):
    write_report(project, factor=1.0)
    words = seeds_summary(plan, RunStore(project / "runs"))
    assert "reports/smoke/ablation_decoder_mask/tables/results.csv" in words
    assert numbers(words) == needed_for([1.0, 3.0])
    assert f"3 planned seeds find {smallest_detectable(2.0, 3, 2):.1f} points" in words


def test_three_finished_seeds_come_before_the_report(plan, project):
    """Stages of other seeds or measures may be unfinished; two seeds are not enough."""
    store = RunStore(project / "runs")
    write_report(project, factor=2.0)
    finish(plan, store, seeds=[0, 1])
    assert numbers(seeds_summary(plan, store)) == needed_for([2.0, 6.0])
    finish(plan, store, seeds=[2])
    words = seeds_summary(plan, store)
    assert "finished stages" in words
    assert numbers(words) == needed_for([1.0, 3.0])


def test_equal_differences_at_all_finished_seeds_have_no_spread(plan, project, monkeypatch):
    """More seeds of two arms are finished than a spread needs, but they do not vary."""
    store = RunStore(project / "runs")
    for arm, shift in {"frame_50": 0, "running_cell_50": 3}.items():
        monkeypatch.setitem(VALUES, arm, [value + shift for value in VALUES["none"]])
    finish(plan, store, seeds=[0, 1, 2])
    words = seeds_summary(plan, store)
    assert "no spread over the 3 finished seeds (finished stages of this plan)" in words
    assert "unknown" not in words


def test_the_margin_is_the_recipes(plan, project, smoke):
    recipe = plan.recipe.with_overrides({"evaluate.margin": 1.0})
    words = seeds_summary(plan_notebook("ablation_decoder_mask", recipe), RunStore(project / "runs"))
    assert f"{seeds_needed(1.0, 1.0, 2)} if it is 1 point" in words


def test_plans_that_compare_nothing_are_silent(plan, project, smoke):
    alone = plan_notebook("ablation_decoder_mask", plan.recipe.with_overrides({"arms": ["scratch", "none"]}))
    trend = plan_notebook("scaling", build_recipe({**smoke, "arms": list(SCALING)}, SCALING))
    assert [seeds_summary(one, RunStore(project / "runs")) for one in (alone, trend)] == ["", ""]


@pytest.mark.parametrize("name", [name for name, book in EXPERIMENTS.items() if book.baseline])
def test_baselines_are_arms_and_metrics_are_named_as_rows_name_them(name, smoke):
    book = EXPERIMENTS[name]
    assert book.baseline in book.arms
    measure, _, place = book.metric.partition("@")
    if measure in ("probe", "finetune"):
        plan = plan_notebook(name, build_recipe({**smoke, "arms": list(book.arms)}, book.arms))
        assert book.metric in plan.first(book.baseline).measures
        if book.floor:  # outside of the comparison: it has no pre-training or not this metric
            assert not book.arms[book.floor].pretrained or book.metric not in plan.first(book.floor).measures
    else:
        assert (measure, place) in (("frame_map", ""), ("segment_map", ""))
