"""The statistics against scipy, and what the words say when the numbers say nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from vmae_lab.evaluation.metrics import top1, wilson_interval
from vmae_lab.lab.ablation import paired_differences, plan_ablation, summarise, t_interval
from vmae_lab.lab.arms import DECODER_MASKS
from vmae_lab.lab.presentation import conclusions
from vmae_lab.lab.recipe import build_recipe
from vmae_lab.lab.tables import interval, plus_minus


def rows(values: dict[str, list[float]], metric: str = "ridge") -> pd.DataFrame:
    return pd.DataFrame(
        [{"arm": arm, "seed": seed, "metric": metric, "value": v} for arm, vs in values.items() for seed, v in enumerate(vs)]
    )


def test_paired_differences_equal_scipys_paired_test():
    a, b = np.array([70.0, 72.0, 75.0, 71.0]), np.array([68.0, 71.5, 73.0, 71.2])
    ours = paired_differences(rows({"a": a.tolist(), "b": b.tolist()}), "ridge", "b").loc["a"]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high))
    assert ours.difference == pytest.approx((a - b).mean())


def test_the_interval_of_a_mean_equals_scipys():
    values = np.array([1.0, 2.0, 4.0])
    assert t_interval(values) == pytest.approx(stats.t.interval(0.95, 2, values.mean(), stats.sem(values)))
    assert np.isnan(t_interval(values[:1])).all(), "one seed gives no interval"


ERRORS = {"reconstruction": 0.9, "cube_mean": 1.0}


def test_seeds_are_paired_by_number_not_by_order():
    table = rows({"a": [10.0, 20.0], "b": [1.0, 2.0]})
    assert paired_differences(table.sample(frac=1, random_state=1), "ridge", "b").difference["a"] == 13.5


def test_summary_keeps_the_order_of_arms():
    table = summarise(rows({"z": [1.0, 3.0], "a": [5.0, 5.0]}), "ridge")
    assert list(table.index) == ["z", "a"]
    assert table["std"]["z"] == pytest.approx(np.sqrt(2))


def test_accuracy_and_its_interval():
    assert top1(np.array([1, 2, 3]), np.array([1, 2, 0])) == pytest.approx(200 / 3)
    low, high = wilson_interval(50, 100)
    assert (low, high) == pytest.approx((40.38, 59.62), abs=0.01)  # Wilson 1927's formula by hand


@pytest.mark.parametrize(
    ("none", "cell", "said"),
    [
        ([70.0, 71.0, 69.0], [70.5, 70.0, 69.8], "No decoder mask can be told apart"),
        ([70.0, 71.0, 69.0], [60.1, 61.0, 59.0], "1 of 1 masks differ"),
        ([70.0], [60.0], "With one seed nothing can be said"),
    ],
)
def test_words_follow_the_numbers(smoke, none, cell, said):
    seeds = list(range(len(none)))
    recipe = build_recipe({**smoke, "arms": ["scratch", "none", "running_cell_50"], "seeds": seeds}, DECODER_MASKS)
    values = {"scratch": [20.0] * len(none), "none": none, "running_cell_50": cell}
    errors = [rows({"none": [x] * len(none), "running_cell_50": [x] * len(none)}, metric) for metric, x in ERRORS.items()]
    every = [rows(values, metric) for metric in ("ridge", "finetune", "attentive", "linear_mean", "knn")]
    table = pd.concat([*every, *errors])
    words = conclusions(plan_ablation("x", recipe, DECODER_MASKS), table, "none", "scratch")
    assert said in words[-1]
    gains = [np.mean(arm) - 20 for arm in (none, cell)]
    assert f"{min(gains):+.1f} to {max(gains):+.1f} points" in words[0]
    assert "lie 10.0 to 10.0 % below" in words[-2]


def test_cells_of_tables():
    assert plus_minus(70.04, float("nan")) == "70.0"
    assert interval(1.0, float("nan"), float("nan")) == "+1.0 [one seed]"
    assert interval(1.0, -0.5, 2.5) == "+1.0 [-0.5, +2.5]"
