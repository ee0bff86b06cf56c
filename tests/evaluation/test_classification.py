"""Scores of class probabilities, compared with cases computed by hand."""

import numpy as np
import pytest

from vmae_lab.evaluation.classification import (
    calibration_error,
    class_accuracies,
    prediction_table,
    score_intervals,
    scores,
)


def test_calibration_error_of_four_predictions():
    """Bins of 1/15: 0.90 and 0.92 share a bin (mean 0.91, half right). 0.60 (right) is an upper edge, 0.62 is above it."""
    sure, right = np.array([0.90, 0.92, 0.60, 0.62]), np.array([True, False, True, False])
    by_hand = (2 * abs(0.91 - 0.5) + abs(0.60 - 1) + abs(0.62 - 0)) / 4
    assert calibration_error(sure, right) == pytest.approx(100 * by_hand)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert calibration_error(np.ones(3), np.zeros(3, bool)) == 100


def test_top1_and_top5():
    ranks = np.array([0, 1, 4, 5, 0])  # rank of the true class
    probabilities = np.tile([0.3, 0.2, 0.15, 0.14, 0.11, 0.1], (5, 1))
    found = scores(probabilities, ranks)
    assert found["top1"] == pytest.approx(40)
    assert found["top5"] == pytest.approx(80)
    assert found["ece"] == pytest.approx(10), "confidence 0.3, accuracy 0.4"


def test_intervals_contain_the_score_and_shrink_with_more_videos():
    rng = np.random.default_rng(0)
    widths = []
    for count in (50, 800):
        labels = rng.integers(0, 3, count)
        probabilities = rng.dirichlet(np.ones(3), count)
        low, high = score_intervals(probabilities, labels, seed=1)["top1"]
        assert low < scores(probabilities, labels)["top1"] < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35), "proportional to the square root of the number"
    assert score_intervals(probabilities, labels, seed=1) == score_intervals(probabilities, labels, seed=1)


def test_the_width_of_an_interval_matches_its_confidence():
    """For 800 predictions, half of them right, the half-width is 1.96 standard errors of 100 sqrt(0.25 / 800)."""
    labels = np.arange(800) % 2
    low, high = score_intervals(np.tile([0.6, 0.4], (800, 1)), labels, seed=0)["top1"]
    assert (high - low) / 2 == pytest.approx(1.96 * 100 * np.sqrt(0.25 / 800), rel=0.08), "estimated from 1000 draws"


def test_accuracies_by_class():
    found = class_accuracies(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0]), 4)
    assert found.tolist()[:2] == [50, 100]
    assert np.isnan(found[2])
    assert found[3] == 0


def test_the_table_of_predictions_survives_parquet(tmp_path):
    import pandas as pd

    table = prediction_table(np.array([[0.7, 0.3], [0.6, 0.4]]), np.array([0, 1]), ["a.mp4", "b.mp4"], ["run", "walk"])
    assert table.correct.tolist() == [True, False]
    assert table.loc[1, ["class", "answer", "probability"]].tolist() == ["walk", "run", 0.6]
    table.to_parquet(tmp_path / "predictions.parquet")
    again = pd.read_parquet(tmp_path / "predictions.parquet")
    assert again.probabilities.map(list).tolist() == [[0.7, 0.3], [0.6, 0.4]]
    assert again.drop(columns="probabilities").equals(table.drop(columns="probabilities"))
