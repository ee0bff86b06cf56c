"""Classification metrics: accuracy, calibration error, and their confidence intervals over videos."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from vmae_lab.utils.seeding import numpy_generator

CONFIDENCE = 0.95  # level of every interval
BINS = 15  # bins of the calibration error
RESAMPLES = 1000
SCORES = ("top1", "top5", "ece")


def top1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy in percent."""
    return 100 * float(np.mean(np.asarray(predicted) == np.asarray(labels)))


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return the Wilson interval of an accuracy, in percent. It covers the finite test set, not the seeds."""
    interval = binomtest(int(right), int(total)).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * interval.low, 100 * interval.high


def class_accuracies(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the accuracy of each class in percent: `(classes,)`, NaN for a class without videos."""
    total = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == predicted], minlength=classes)
    return np.divide(100.0 * right, total, out=np.full(classes, np.nan), where=total > 0)


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1, top-5 and the expected calibration error, in percent. Probabilities `(n, classes)`, labels `(n,)`."""
    return dict(zip(SCORES, _scores(*_per_video(probabilities, labels)), strict=True))


def score_intervals(probabilities: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals of `scores` over videos, in percent."""
    columns, rng = _per_video(probabilities, labels), numpy_generator(seed, "bootstrap over videos")
    draws = (rng.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
    resampled = np.array([_scores(*(column[rows] for column in columns)) for rows in draws])
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(SCORES)}


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error (Naeini et al. 2015; Guo et al. 2017), in percent.

    Predictions are divided by confidence `(n,)` into 15 bins of equal width over (0, 1], upper edges included. The absolute
    difference between mean confidence and accuracy (`right`, bool `(n,)`) is averaged over bins, weighted by predictions.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, confidence, BINS) - np.bincount(bins, right.astype(float), BINS)
    return 100 * float(np.abs(gaps).sum()) / len(confidence)


def prediction_table(
    probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str], classes: Sequence[str]
) -> pd.DataFrame:  # fmt: skip
    """Return a table of predictions, one row per video.

    Columns: row, video (name), label, class, predicted, answer (name of the predicted class), probability (of the prediction),
    correct, probabilities (list of all classes).
    """
    predicted = probabilities.argmax(1)
    return pd.DataFrame({
        "row": np.arange(len(labels)), "video": list(names), "label": labels, "class": [classes[label] for label in labels],
        "predicted": predicted, "answer": [classes[label] for label in predicted], "probability": probabilities.max(1),
        "correct": predicted == labels, "probabilities": probabilities.tolist(),
    })  # fmt: skip


def _per_video(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return whether top-1 and top-5 are correct, and the confidence: `(n,)` each."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    right = order == labels[:, None]
    return right[:, 0], right.any(1), probabilities.max(1)


def _scores(right: np.ndarray, in_five: np.ndarray, confidence: np.ndarray) -> tuple[float, float, float]:
    return 100 * float(right.mean()), 100 * float(in_five.mean()), calibration_error(confidence, right)
