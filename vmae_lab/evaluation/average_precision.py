"""Average precision of detections by class: matching and counting that frame mAP and temporal mAP share."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


def average_precision(right: np.ndarray, positives: int) -> float:
    """Area under the envelope of precision, of detections by descending score, bool `(n,)`; NaN without positives."""
    if not positives:
        return float("nan")
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / positives)


def mean_over_classes(per_class: Mapping) -> np.ndarray:
    """The mean over the classes that have ground truth (whose values are no NaN); NaN if there is none."""
    values = list(per_class.values())
    defined = [value for value in values if not np.isnan(value).any()]
    return np.mean(defined, 0) if defined else np.full(np.shape(values[:1])[1:], np.nan)


def by_score(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions by descending score; equal scores keep their order."""
    return predictions.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


def match_groups(
    truth: pd.DataFrame,
    predictions: pd.DataFrame,
    key: list[str],
    thresholds: int,
    match: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The row of ground truth that each prediction (by descending score) matches, or -1: int64 `(thresholds, predictions)`.

    Only rows with equal `key` match. For rows of both, `(n,)` and `(m,)`, `match(rows of predictions, rows of truth)` returns
    indices into the latter, or -1: int64 `(thresholds, n)`.
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
    """Classes of ground truth and of predictions (by descending score), and what `match_groups` returns for them."""

    truth: pd.Series
    predicted: pd.Series
    matched: np.ndarray
    classes: Sequence[Hashable]

    def per_class(self, wanted: np.ndarray | None = None, counted: np.ndarray | None = None) -> dict:
        """Average precision of each class, float64 `(thresholds,)`; of parts of the ground truth, bool `(truth,)`, and of the
        predictions, bool `(thresholds, predictions)`, if masks are given."""
        positives = (self.truth if wanted is None else self.truth[wanted]).value_counts()
        rows_of = self.predicted.groupby(self.predicted).indices
        precisions = {}
        for name in self.classes:
            rows = rows_of.get(name, np.zeros(0, np.int64))
            right = self.matched[:, rows] >= 0
            kept = np.ones_like(right) if counted is None else counted[:, rows]
            total = int(positives.get(name, 0))
            precisions[name] = np.array(
                [average_precision(some[which], total) for some, which in zip(right, kept, strict=True)]
            )
        return precisions

    def per_class_of(self, wanted: np.ndarray, inside: np.ndarray) -> dict:
        """The same of the ground truth `wanted`, e.g. of one size, bool `(truth,)`. As in COCO, predictions that match other
        ground truth do not count, nor do unmatched ones that are not `inside` themselves, bool `(predictions,)`."""
        return self.per_class(wanted, np.where(self.matched >= 0, np.append(wanted, False)[self.matched], inside))
