"""What is wrong with predicted segments: kinds of errors after DETAD (Alwassel et al., ECCV 2018, arXiv 1807.10706).

In a simpler form of our own: of each class the best scored predictions, as many as it has segments, and one kind for each.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vmae_lab.evaluation.temporal_map import by_score, matches, segments_of, temporal_overlap

# Of several that apply, the first.
KINDS = {
    "right": "overlaps enough with a free segment of its class",
    "double": "overlaps enough with segments of its class, but better scored predictions have them",
    "localisation": "overlaps with a segment of its class, but not enough",
    "confusion": "overlaps enough with a segment of another class",
    "both": "overlaps with a segment of another class, but not enough",
    "background": "overlaps with nothing",
}


@dataclass(frozen=True)
class ErrorKinds:
    """How many predictions are of each of KINDS, and how many segments (`missed`) none of these predictions is right about."""

    counts: dict[str, int]
    missed: int

    @property
    def total(self) -> int:
        """The predictions that were looked at."""
        return sum(self.counts.values())


def error_kinds(truth: pd.DataFrame, predictions: pd.DataFrame, threshold: float = 0.5, background: float = 0.1) -> ErrorKinds:
    """Sort predictions (`data.segments.read_predictions`) by what is wrong with them, given `Annotations.segments`.

    Of a class with G segments its G best predictions are looked at, of a class with none, none. `threshold` is the overlap
    (intersection over union) that is enough, `background` the one below which there is none. Equal scores stand in the
    order of the file. Raises ValueError unless 0 < background < threshold <= 1.
    """
    if not 0 < background < threshold <= 1:
        raise ValueError(f"background {background} and threshold {threshold}: 0 < background < threshold <= 1 is expected")
    looked = _best(truth, predictions)
    own, other = _most_overlap(truth, looked)
    right = matches(truth, looked, np.array([threshold]))[0] >= 0
    applies = [right, own >= threshold, own >= background, other >= threshold, other >= background, np.ones(len(looked), bool)]
    first = np.argmax(applies, 0)
    counts = {kind: int((first == place).sum()) for place, kind in enumerate(KINDS)}
    return ErrorKinds(counts, len(truth) - counts["right"])


def _best(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The best predictions of each class, as many as it has segments, by descending score."""
    predictions = by_score(predictions)
    wanted = predictions.label.map(truth.label.value_counts().to_dict()).fillna(0).to_numpy(int)
    return predictions[predictions.groupby("label").cumcount().to_numpy() < wanted].reset_index(drop=True)


def _most_overlap(truth: pd.DataFrame, predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Each prediction's largest overlap with a segment of its class, and with one of another: float64 `(predictions,)`."""
    own, other = np.zeros(len(predictions)), np.zeros(len(predictions))
    there = truth.groupby("video").indices
    labels, said = truth.label.to_numpy(object), predictions.label.to_numpy(object)
    segments, found = segments_of(truth), segments_of(predictions)
    for video, rows in predictions.groupby("video").indices.items():
        if video in there:
            overlap = temporal_overlap(found[rows], segments[there[video]])
            same = said[rows, None] == labels[None, there[video]]
            own[rows] = np.where(same, overlap, 0).max(1)
            other[rows] = np.where(same, 0, overlap).max(1)
    return own, other
