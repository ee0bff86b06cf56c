"""Average precision per class: matching and counting, shared by frame mAP and temporal mAP."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


def average_precision(right: np.ndarray, positives: int) -> float:
    """Return the area under the precision envelope. `right`: bool `(n,)`, by descending score. NaN without positives."""
    if not positives:
        return float("nan")
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / positives)


def mean_over_classes(per_class: Mapping) -> np.ndarray:
    """Return the mean over classes with ground truth (those without NaN), or NaN if there are none."""
    values = list(per_class.values())
    defined = [value for value in values if not np.isnan(value).any()]
    return np.mean(defined, 0) if defined else np.full(np.shape(values[:1])[1:], np.nan)


def by_score(predictions: pd.DataFrame) -> pd.DataFrame:
    """Sort predictions by descending score. Equal scores keep their order."""
    return predictions.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


def match_groups(
    truth: pd.DataFrame,
    predictions: pd.DataFrame,
    key: list[str],
    thresholds: int,
    match: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return the row of ground truth that each prediction matches, or -1: int64 `(thresholds, predictions)`.

    `predictions` are sorted by descending score. Only rows with equal `key` match. `match` gets the rows of n predictions and m
    ground truths with equal key, and returns indices into the latter, or -1: int64 `(thresholds, n)`.
    """
    groups = truth.groupby(key).indices
    matched = np.full((thresholds, len(predictions)), -1)
    for group, rows in predictions.groupby(key).indices.items():
        if group in groups:
            found = match(rows, groups[group])
            matched[:, rows] = np.where(found >= 0, groups[group][found], -1)
    return matched


@dataclass(frozen=True, eq=False)
class Matches:
    """Classes of ground truth and predictions (by descending score), and the result of `match_groups`."""

    truth: pd.Series
    predicted: pd.Series
    matched: np.ndarray
    classes: Sequence[Hashable]

    def per_class(self, wanted: np.ndarray | None = None, counted: np.ndarray | None = None) -> dict:
        """Return the average precision of each class, float64 `(thresholds,)`.

        The masks `wanted`, bool `(truth,)`, and `counted`, bool `(thresholds, predictions)`, restrict it to some rows.
        """
        positives = (self.truth if wanted is None else self.truth[wanted]).value_counts()
        rows_of = self.predicted.groupby(self.predicted).indices
        precisions = {}
        for name in self.classes:
            rows = rows_of.get(name, np.zeros(0, np.int64))
            right = self.matched[:, rows] >= 0
            kept = np.ones_like(right) if counted is None else counted[:, rows]
            total = int(positives.get(name, 0))
            precisions[name] = np.array([average_precision(hits[mask], total) for hits, mask in zip(right, kept, strict=True)])
        return precisions

    def per_class_of(self, wanted: np.ndarray, inside: np.ndarray) -> dict:
        """Return the average precision of each class for a part of the ground truth, e.g. of one size.

        `wanted`: bool `(truth,)`. As in COCO, predictions that match other ground truth do not count, nor do unmatched
        predictions that are not `inside` that part themselves, bool `(predictions,)`.
        """
        return self.per_class(wanted, np.where(self.matched >= 0, np.append(wanted, False)[self.matched], inside))
