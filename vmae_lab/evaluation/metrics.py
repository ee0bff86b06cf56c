"""Accuracy with its uncertainty; average precision."""

import numpy as np
from scipy.stats import binomtest

CONFIDENCE = 0.95  # of every interval


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, in percent."""
    return 100 * float(np.mean(np.asarray(predicted) == np.asarray(labels)))


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Wilson interval of a share of right answers, in percent: what the finite test set leaves open, seeds apart."""
    interval = binomtest(int(right), int(total)).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * interval.low, 100 * interval.high


def average_precision(right: np.ndarray, positives: int) -> float:
    """Of detections by descending score, bool `(n,)`: the area below precision's envelope; NaN without positives."""
    if not positives:
        return float("nan")
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / positives)
