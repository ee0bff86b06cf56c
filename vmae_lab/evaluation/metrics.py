"""Accuracy with its uncertainty."""

import numpy as np
from scipy.stats import binomtest


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers, in percent."""
    return 100 * float(np.mean(np.asarray(predicted) == np.asarray(labels)))


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson interval of a share of right answers, in percent: what the finite test set leaves open, seeds apart."""
    interval = binomtest(int(right), int(total)).proportion_ci(confidence, method="wilson")
    return 100 * interval.low, 100 * interval.high
