"""What class probabilities are worth: accuracy, calibration, and what the finite number of videos leaves open."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vmae_lab.evaluation.metrics import CONFIDENCE
from vmae_lab.utils.seeding import numpy_generator

BINS = 15  # of the calibration error
RESAMPLES = 1000
SCORES = ("top1", "top5", "ece")


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1, top-5 and the expected calibration error, in percent, of probabilities `(n, classes)` and labels `(n,)`."""
    return dict(zip(SCORES, _scores(*_per_video(probabilities, labels)), strict=True))


def score_intervals(probabilities: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of `scores` over videos, in percent: what other videos might have given."""
    columns, rng = _per_video(probabilities, labels), numpy_generator(seed, "bootstrap over videos")
    draws = (rng.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
    found = np.array([_scores(*(column[rows] for column in columns)) for rows in draws])
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(found, [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(SCORES)}


def calibration_error(sure: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017), in percent.

    Answers are put into bins by their probability `sure` `(n,)`, 15 of equal width over (0, 1], the upper edge in the bin;
    the distances of mean probability and share of `right` answers `(n,)` are averaged, weighted by the answers in a bin.
    """
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, sure, BINS) - np.bincount(bins, right.astype(float), BINS)
    return 100 * float(np.abs(gaps).sum()) / len(sure)


def prediction_table(
    probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str], classes: Sequence[str]
) -> pd.DataFrame:  # fmt: skip
    """What was said of each video, for a person to look at: one line a video.

    Columns: row, video (its name), label, class, predicted, answer (its class), probability (of the answer), correct,
    probabilities (of all classes, a list).
    """
    said = probabilities.argmax(1)
    return pd.DataFrame({
        "row": np.arange(len(labels)), "video": list(names), "label": labels, "class": [classes[label] for label in labels],
        "predicted": said, "answer": [classes[label] for label in said], "probability": probabilities.max(1),
        "correct": said == labels, "probabilities": probabilities.tolist(),
    })  # fmt: skip


def class_accuracies(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Share of right answers of each class, in percent: `(classes,)`, NaN for a class without videos."""
    total = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == predicted], minlength=classes)
    return np.divide(100.0 * right, total, out=np.full(classes, np.nan), where=total > 0)


def _per_video(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether the answer is right, whether the class is among the first five, the answer's probability: `(n,)` each."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    right = order == labels[:, None]
    return right[:, 0], right.any(1), probabilities.max(1)


def _scores(right: np.ndarray, in_five: np.ndarray, sure: np.ndarray) -> tuple[float, float, float]:
    return 100 * float(right.mean()), 100 * float(in_five.mean()), calibration_error(sure, right)
