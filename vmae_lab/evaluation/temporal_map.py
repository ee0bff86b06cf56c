"""mAP of temporal action detection, as in ActivityNet's and ActionFormer's scripts, and an analysis of errors.

Predictions are matched by descending score. A prediction takes, among the unmatched segments of its video and class with an IoU
of at least the threshold, the one with the largest IoU. So, unlike in AVA, it may match its second-best segment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch

from vmae_lab.data.activitynet import segment_iou
from vmae_lab.evaluation.average_precision import Matches, by_score, match_groups, mean_over_classes

# Durations in seconds: minimum (excluded) and maximum (included), as in DETAD and ActionFormer for THUMOS14.
DURATIONS = {"XS": (0.0, 3.0), "S": (3.0, 6.0), "M": (6.0, 12.0), "L": (12.0, 18.0), "XL": (18.0, np.inf)}
DUPLICATE = 1e-3  # largest difference in seconds of segments that ActionFormer treats as duplicates
KEY = ["video", "label"]
Protocol = Literal["activitynet", "actionformer"]


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """Average precision at `thresholds` by class (NaN without ground truth), and means over classes by duration."""

    thresholds: np.ndarray
    per_class: dict[str, np.ndarray]
    by_duration: dict[str, np.ndarray]

    @property
    def by_threshold(self) -> np.ndarray:
        """mAP over the classes with ground truth, float64 `(thresholds,)`, or NaN if there is none."""
        return mean_over_classes(self.per_class)

    @property
    def mean(self) -> float:
        """Mean of mAP over the thresholds."""
        return float(self.by_threshold.mean())


def segment_map(
    truth: pd.DataFrame,
    predictions: pd.DataFrame,
    classes: Sequence[str],
    thresholds: Sequence[float],
    protocol: Protocol = "activitynet",
    durations: Mapping[str, tuple[float, float]] = DURATIONS,
) -> SegmentMap:
    """Evaluate predictions (`read_predictions` of data.activitynet) against `Annotations.segments` over `classes`.

    Rows of other classes do not count. Predictions in videos without ground truth are wrong. With the protocol `actionformer`,
    a segment whose start and end are within 0.001 s of an earlier one of its video and class is removed; `activitynet` keeps
    it. Equal scores keep the order of the file. Among segments with equal IoU, the last one is matched, as in both scripts.
    Raises ValueError for thresholds outside (0, 1] and unknown protocols.
    """
    limits = np.asarray(thresholds, float)
    if limits.ndim != 1 or not len(limits) or not ((limits > 0) & (limits <= 1)).all():
        raise ValueError(f"thresholds are {thresholds}; expected IoUs above 0 and up to 1, e.g. 0.3, 0.5")
    if protocol not in ("activitynet", "actionformer"):
        raise ValueError(f"protocol is {protocol!r}; expected 'activitynet' or 'actionformer'")
    if protocol == "actionformer":
        truth = truth[~_duplicates(truth)]
    predictions = by_score(predictions)
    found = Matches(truth.label, predictions.label, matches(truth, predictions, limits), tuple(classes))
    by_duration = {}
    for name, (low, high) in durations.items():
        lengths = (ends[:, 1] - ends[:, 0] for ends in map(segments_of, (truth, predictions)))
        wanted, inside = (((length > low) & (length <= high)).numpy() for length in lengths)
        by_duration[name] = mean_over_classes(found.per_class_of(wanted, inside))
    return SegmentMap(limits, found.per_class(), by_duration)


def matches(truth: pd.DataFrame, predictions: pd.DataFrame, thresholds: np.ndarray) -> np.ndarray:
    """Return the row of ground truth that each prediction matches, or -1: int64 `(thresholds, predictions)`.

    `predictions` are sorted by descending score.
    """
    segments, predicted = segments_of(truth), segments_of(predictions)

    def match(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return _greedy(segment_iou(predicted[rows][:, None], segments[targets]).numpy(), thresholds)

    return match_groups(truth, predictions, KEY, len(thresholds), match)


def segments_of(rows: pd.DataFrame) -> torch.Tensor:
    """Return starts and ends `(n, 2)`, float64, so that an IoU of exactly a threshold is computed exactly."""
    return torch.tensor(rows[["start", "end"]].to_numpy(float))


def _greedy(overlap: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the segment that each prediction matches, or -1: int64 `(thresholds, n)`. IoU `(n, m)`, best prediction first."""
    matched, last = np.full((len(thresholds), len(overlap)), -1), overlap.shape[1] - 1
    free, every = np.ones((len(thresholds), last + 1), bool), np.arange(len(thresholds))
    enough = overlap[:, None] >= thresholds[:, None]  # (n, thresholds, m)
    for row in np.flatnonzero(enough.any((1, 2))):
        candidates = np.where(free & enough[row], overlap[row], 0.0)  # (thresholds, m)
        best = last - candidates[:, ::-1].argmax(1)  # the last one of equal IoU
        right = candidates[every, best] > 0
        matched[right, row] = best[right]
        free[right, best[right]] = False
    return matched


def _duplicates(truth: pd.DataFrame) -> np.ndarray:
    """Return the duplicates, bool `(n,)`: segments within DUPLICATE of an earlier one that is not a duplicate itself."""
    duplicate, segments = np.zeros(len(truth), bool), segments_of(truth)
    for rows in truth.groupby(KEY).indices.values():
        near = ((segments[rows][:, None] - segments[rows]).abs() <= DUPLICATE).all(2).numpy()
        for i, row in enumerate(rows):
            duplicate[row] = (near[i, :i] & ~duplicate[rows[:i]]).any()
    return duplicate


# --- Kinds of errors, a simpler form of DETAD (Alwassel et al., ECCV 2018, arXiv 1807.10706) ------------------------------
KINDS = {  # the first one that applies counts
    "right": "overlaps enough with an unmatched segment of its class",
    "double": "overlaps enough with segments of its class that predictions with higher scores have matched",
    "localisation": "overlaps with a segment of its class, but not enough",
    "confusion": "overlaps enough with a segment of another class",
    "both": "overlaps with a segment of another class, but not enough",
    "background": "overlaps with no segment",
}


@dataclass(frozen=True)
class ErrorKinds:
    """Number of predictions by KINDS, and of segments that no prediction matches (`missed`)."""

    counts: dict[str, int]
    missed: int

    @property
    def total(self) -> int:
        """Number of examined predictions."""
        return sum(self.counts.values())


def error_kinds(truth: pd.DataFrame, predictions: pd.DataFrame, threshold: float = 0.5, background: float = 0.1) -> ErrorKinds:
    """Count predictions (`read_predictions` of data.activitynet) by kind of error, given `Annotations.segments`.

    For a class with G segments, the G predictions with the highest scores are examined. An IoU of at least `threshold` is
    enough, one below `background` does not count. Equal scores keep the order of the file. Raises ValueError unless
    0 < background < threshold <= 1.
    """
    if not 0 < background < threshold <= 1:
        raise ValueError(f"background is {background}, threshold is {threshold}; expected 0 < background < threshold <= 1")
    predictions = by_score(predictions)
    wanted = predictions.label.map(truth.label.value_counts().to_dict()).fillna(0).to_numpy(int)
    best = predictions[predictions.groupby("label").cumcount().to_numpy() < wanted].reset_index(drop=True)
    own, other = _largest_overlaps(truth, best)
    right = matches(truth, best, np.array([threshold]))[0] >= 0
    applies = [right, own >= threshold, own >= background, other >= threshold, other >= background, np.ones(len(best), bool)]
    first = np.argmax(applies, 0)
    counts = {kind: int((first == i).sum()) for i, kind in enumerate(KINDS)}
    return ErrorKinds(counts, len(truth) - counts["right"])


def _largest_overlaps(truth: pd.DataFrame, predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest IoU of each prediction with its own class and with other classes: float64 `(predictions,)` each."""
    own, other = np.zeros(len(predictions)), np.zeros(len(predictions))
    rows_of = truth.groupby("video").indices
    labels, predicted = truth.label.to_numpy(object), predictions.label.to_numpy(object)
    segments, found = segments_of(truth), segments_of(predictions)
    for video, rows in predictions.groupby("video").indices.items():
        if video in rows_of:
            overlap = segment_iou(found[rows][:, None], segments[rows_of[video]]).numpy()
            same = predicted[rows, None] == labels[None, rows_of[video]]
            own[rows] = np.where(same, overlap, 0).max(1)
            other[rows] = np.where(same, 0, overlap).max(1)
    return own, other
