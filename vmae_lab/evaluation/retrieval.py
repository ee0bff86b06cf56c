"""Retrieval: nearest neighbors of features, how often they share a class, and a t-SNE map."""

import numpy as np
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FEWEST = 2  # smallest number of clips of a map
PERPLEXITY = 30.0


def standardised(features: np.ndarray) -> np.ndarray:
    """Return features `(n, D)` with zero mean and unit standard deviation per column."""
    return StandardScaler().fit_transform(features.astype(np.float64))


def nearest(features: np.ndarray, count: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the `count` nearest rows of each row of features `(n, D)` by cosine similarity: int64 `(n, count)`.

    If `groups` `(n,)` are given, neighbors are from other groups. There are fewer columns if a row has fewer neighbors. Equally
    near rows keep their order.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths == 0, 1, lengths)
    similarity = unit @ unit.T
    allowed = _others(len(features), groups)
    order = np.argsort(np.where(allowed, -similarity, np.inf), axis=1, kind="stable")
    return order[:, : min(count, allowed.sum(1).min())]


def same_class(labels: np.ndarray, neighbors: np.ndarray) -> float:
    """Return the percentage of rows whose nearest neighbor has the same class. `neighbors`: from `nearest`."""
    return 100 * float(np.mean(labels[neighbors[:, 0]] == labels))


def same_class_by_chance(labels: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Return the expected `same_class` in percent for random neighbors."""
    allowed = _others(len(labels), groups)
    same = (labels[:, None] == labels) & allowed
    return 100 * float(np.mean(same.sum(1) / allowed.sum(1)))


def _others(rows: int, groups: np.ndarray | None) -> np.ndarray:
    """Return which rows each row may have as a neighbor: bool `(n, n)`."""
    groups = np.arange(rows) if groups is None else groups
    return groups[:, None] != groups


def perplexity_of(rows: int) -> float:
    """Return the perplexity of the map: 30, or less for fewer than about 90 rows."""
    return min(PERPLEXITY, (rows - 1) / 3)


def feature_map(features: np.ndarray, seed: int) -> np.ndarray:
    """Return a t-SNE map of features `(n, D)`, n >= 2: `(n, 2)`. It starts from principal components and depends on the seed.

    If all clips are equal, they are at one point.
    """
    if not np.ptp(features, axis=0).any():  # scikit-learn divides by the standard deviation, and t-SNE fails on NaN
        return np.zeros((len(features), 2))
    with threadpool_limits(1):  # t-SNE amplifies rounding differences between numbers of threads
        tsne = TSNE(init="pca", perplexity=perplexity_of(len(features)), random_state=seed % 2**32)
        return tsne.fit_transform(features)
