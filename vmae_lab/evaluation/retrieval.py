"""What lies near what in an encoder's features: nearest neighbours, how often they are of one class, and a map of all."""

import numpy as np
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FEWEST = 2  # clips of a map: one alone has no neighbour
PERPLEXITY = 30.0


def standardised(features: np.ndarray) -> np.ndarray:
    """Features `(n, D)` with each column's mean taken away and its deviation made one: what all clips share says nothing."""
    return StandardScaler().fit_transform(features.astype(np.float64))


def nearest(features: np.ndarray, count: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The rows most like each row of features `(n, D)` by cosine, the nearest first: int64 `(n, count)`.

    A row's neighbours are of other `groups` `(n,)` than its own; without groups they are all others. Fewer columns where a row
    has not so many; of equally near ones the first in order comes first.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths == 0, 1, lengths)
    likeness = unit @ unit.T
    allowed = _others(len(features), groups)
    order = np.argsort(np.where(allowed, -likeness, np.inf), axis=1, kind="stable")
    return order[:, : min(count, allowed.sum(1).min())]


def same_class(labels: np.ndarray, neighbours: np.ndarray) -> float:
    """Share of rows whose nearest neighbour is of their class, in percent; `neighbours` as `nearest` gives them."""
    return 100 * float(np.mean(labels[neighbours[:, 0]] == labels))


def same_class_by_chance(labels: np.ndarray, groups: np.ndarray | None = None) -> float:
    """What `same_class` is where each row's neighbour is drawn at random from those that `nearest` chooses from, in percent."""
    allowed = _others(len(labels), groups)
    same = (labels[:, None] == labels) & allowed
    return 100 * float(np.mean(same.sum(1) / allowed.sum(1)))


def _others(rows: int, groups: np.ndarray | None) -> np.ndarray:
    """Which rows each row may have as a neighbour: bool `(n, n)`."""
    groups = np.arange(rows) if groups is None else groups
    return groups[:, None] != groups


def perplexity_of(rows: int) -> float:
    """The map's perplexity: 30, or less where there are fewer than some 90 rows."""
    return min(PERPLEXITY, (rows - 1) / 3)


def feature_map(features: np.ndarray, seed: int) -> np.ndarray:
    """A t-SNE map of features `(n, D)`, n >= 2, begun at their principal components: `(n, 2)`, the same for one seed.

    Clips that are all alike lie on one point.
    """
    if not np.ptp(features, axis=0).any():  # scikit-learn divides by their deviation, and t-SNE of what is not finite crashes
        return np.zeros((len(features), 2))
    with threadpool_limits(1):  # sums over threads would end in other last digits, which t-SNE magnifies
        drawn = TSNE(init="pca", perplexity=perplexity_of(len(features)), random_state=seed % 2**32)
        return drawn.fit_transform(features)
