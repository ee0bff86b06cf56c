"""mAP of temporal action detection: what is done, from when to when, as ActivityNet's and ActionFormer's scripts have it.

Predictions of a class are taken by descending score. Each goes through the segments of its video and class by descending
temporal overlap (intersection over union), and is right about the first one that is free and overlaps by the threshold or
more: unlike in AVA, there is a second choice. Average precision is the area below the precision's envelope.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from vmae_lab.evaluation.metrics import average_precision

# Seconds, above the first and up to the second: the lengths by which DETAD, and ActionFormer after it, part THUMOS14.
DURATIONS = {"XS": (0.0, 3.0), "S": (3.0, 6.0), "M": (6.0, 12.0), "L": (12.0, 18.0), "XL": (18.0, np.inf)}
TWICE = 1e-3  # seconds up to which ActionFormer takes two segments of a class for one
KEY = ["video", "label"]
Protocol = Literal["activitynet", "actionformer"]


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """Average precision at `thresholds`, parts of 1: by class, NaN where no ground truth is; and the means by duration."""

    thresholds: np.ndarray
    per_class: dict[str, np.ndarray]
    by_duration: dict[str, np.ndarray]

    @property
    def by_threshold(self) -> np.ndarray:
        """mAP over the classes that have ground truth, float64 `(thresholds,)`; NaN where none has."""
        return _mean(self.per_class, len(self.thresholds))

    @property
    def mean(self) -> float:
        """The mean of mAP over the thresholds."""
        return float(self.by_threshold.mean())


def segment_map(
    truth: pd.DataFrame,
    predictions: pd.DataFrame,
    classes: Sequence[str],
    thresholds: Sequence[float],
    protocol: Protocol = "activitynet",
    durations: Mapping[str, tuple[float, float]] = DURATIONS,
) -> SegmentMap:
    """Judge predictions (`data.segments.read_predictions`) by ground truth (`Annotations.segments`) over `classes`.

    Rows of other classes do not count. Predictions in videos without ground truth are wrong. `actionformer` leaves out a
    segment whose start and end are within .001 s of an earlier one of its video and class; `activitynet` keeps it. Equal
    scores stand in the order of the file; of segments that a prediction overlaps equally the last is taken, as both scripts do.
    Raises ValueError for thresholds outside (0, 1] and for a protocol that is neither.
    """
    limits = np.asarray(thresholds, float)
    if limits.ndim != 1 or not len(limits) or not ((limits > 0) & (limits <= 1)).all():
        raise ValueError(f"thresholds are {thresholds}: overlaps above 0 and up to 1 are expected, as 0.3, 0.5")
    if protocol not in ("activitynet", "actionformer"):
        raise ValueError(f"protocol is {protocol!r}: 'activitynet' or 'actionformer' is expected")
    if protocol == "actionformer":
        truth = truth[~_repeated(truth)]
    predictions = by_score(predictions)
    judged = _Judged(truth, predictions, matches(truth, predictions, limits), tuple(classes))
    return SegmentMap(limits, judged.precisions(), {name: judged.of_length(*ends) for name, ends in durations.items()})


def by_score(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions by descending score; equal scores stand in the order of the file."""
    return predictions.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


def temporal_overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of segments `(n, 2)` and `(m, 2)`, starts and ends: float64 `(n, m)`. Segments that do not end
    after they start overlap with nothing."""
    starts = np.maximum(some[:, None, 0], others[None, :, 0])
    shared = np.clip(np.minimum(some[:, None, 1], others[None, :, 1]) - starts, 0, None)
    union = np.diff(some) + np.diff(others).T - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=shared > 0)


def matches(truth: pd.DataFrame, predictions: pd.DataFrame, thresholds: np.ndarray) -> np.ndarray:
    """For predictions by descending score, the rows of the ground truth that they are right about, or -1: int64
    `(thresholds, predictions)`."""
    there = truth.groupby(KEY).indices
    segments, said = segments_of(truth), segments_of(predictions)
    matched = np.full((len(thresholds), len(predictions)), -1)
    for key, rows in predictions.groupby(KEY).indices.items():
        if key in there:
            found = _first_come(temporal_overlap(said[rows], segments[there[key]]), thresholds)
            matched[:, rows] = np.where(found >= 0, there[key][found], -1)
    return matched


def segments_of(rows: pd.DataFrame) -> np.ndarray:
    """Starts and ends, float64 `(n, 2)`, by which an overlap of exactly a threshold is that."""
    return rows[["start", "end"]].to_numpy(float)


def _first_come(overlap: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Which segment each prediction gets, or -1: overlaps `(n, m)`, best prediction first, to int64 `(thresholds, n)`."""
    matched, last = np.full((len(thresholds), len(overlap)), -1), overlap.shape[1] - 1
    free, every = np.ones((len(thresholds), last + 1), bool), np.arange(len(thresholds))
    enough = overlap[:, None] >= thresholds[:, None]  # (n, thresholds, m)
    for row in np.flatnonzero(enough.any((1, 2))):
        still = free & enough[row]
        if not still.any():
            continue
        open_to = np.where(still, overlap[row], 0.0)
        best = last - open_to[:, ::-1].argmax(1)
        right = open_to[every, best] > 0
        matched[right, row] = best[right]
        free[right, best[right]] = False
    return matched


def _repeated(truth: pd.DataFrame) -> np.ndarray:
    """Which segments are within TWICE of an earlier one of their video and class that is not so itself: bool `(n,)`."""
    repeated, segments = np.zeros(len(truth), bool), segments_of(truth)
    for rows in truth.groupby(KEY).indices.values():
        near = (np.abs(segments[rows, None] - segments[None, rows]) <= TWICE).all(2)
        for place, row in enumerate(rows):
            repeated[row] = (near[place, :place] & ~repeated[rows[:place]]).any()
    return repeated


@dataclass(frozen=True, eq=False)
class _Judged:
    """Ground truth, predictions by descending score, what each of those is right about at each threshold (-1: nothing)."""

    truth: pd.DataFrame
    predictions: pd.DataFrame
    matched: np.ndarray
    classes: tuple[str, ...]

    def precisions(self, wanted: np.ndarray | None = None, counted: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Average precision of each class, `(thresholds,)`; of part of the ground truth `(n,)` and of the predictions
        `(thresholds, predictions)`, where masks are given."""
        positives = (self.truth if wanted is None else self.truth[wanted]).label.value_counts()
        rows_of = self.predictions.groupby("label").indices
        found = {}
        for one in self.classes:
            rows = rows_of.get(one, np.zeros(0, np.int64))
            right = self.matched[:, rows] >= 0
            kept = np.ones_like(right) if counted is None else counted[:, rows]
            total = int(positives.get(one, 0))
            found[one] = np.array([average_precision(some[which], total) for some, which in zip(right, kept, strict=True)])
        return found

    def of_length(self, low: float, high: float) -> np.ndarray:
        """mAP `(thresholds,)` of segments of more than `low` and up to `high` seconds. As COCO has it for sizes, predictions
        that are right about segments of another length do not count, nor do wrong ones of another length."""
        wanted, long = (ends[:, 1] - ends[:, 0] for ends in map(segments_of, (self.truth, self.predictions)))
        wanted, long = ((length > low) & (length <= high) for length in (wanted, long))
        counted = np.where(self.matched >= 0, np.append(wanted, False)[self.matched], long)
        return _mean(self.precisions(wanted, counted), len(self.matched))


def _mean(per_class: Mapping[str, np.ndarray], thresholds: int) -> np.ndarray:
    there = [values for values in per_class.values() if not np.isnan(values).any()]
    return np.mean(there, 0) if there else np.full(thresholds, np.nan)
