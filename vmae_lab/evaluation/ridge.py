"""Ridge classification of features, also of many more columns than rows."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

BLOCK = 2**20  # values that are float64 at a time: 8 MiB, which a CPU's cache holds
EPS = torch.finfo(torch.float64).eps


def ridge_answers(features: Tensor, labels: np.ndarray, others: Tensor, alphas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fit a ridge classifier to standardised features `(n, d)` and predict the classes of others `(m, d)`: `(m,)`.

    The regularisation strength is chosen by leave-one-out validation on the n rows. If n < d, the classifier is fitted to at
    most n coordinates instead of d columns, which gives the same predictions.
    """
    classifier = RidgeClassifierCV(alphas=alphas)
    if len(features) >= features.shape[1]:
        pipeline = make_pipeline(StandardScaler(), classifier)
        return pipeline.fit(features.cpu().numpy(), labels).predict(others.cpu().numpy())
    values = wide_decision(classifier, features, labels, others)
    chosen = values.argmax(1) if values.shape[1] > 1 else (values[:, 0] > 0).astype(int)
    return classifier.classes_[chosen]


def wide_decision(classifier: RidgeClassifierCV, features: Tensor, labels: np.ndarray, others: Tensor) -> np.ndarray:
    """Fit a classifier to standardised features `(n, d)`, n < d, and return its decision values of others `(m, d)`.

    They are float64 `(m, classes)`, or `(m, 1)` if there are two. With X the standardised features and U diag(s^2) U^T the
    eigendecomposition of X X^T, the coordinates of X in its own span are U s. A ridge regression's weights lie in the span of
    its rows, and a rotation does not change their norm, so the fit to U s equals the fit to X: weights w of the coordinates are
    the weights X^T U w / s of the columns. Columns are read in blocks, on the features' device.
    """
    width = max(1, BLOCK // (len(features) + len(others)))
    gram = sum(block @ block.T for _, block, _, _ in _standardised(features, width))
    assert isinstance(gram, Tensor), "there is at least one column"
    squares, vectors = torch.linalg.eigh(gram)
    kept = squares > EPS * squares[-1]  # the others are zero to rounding
    kept[-1] = True  # all are zero if all rows are equal; the fit then has an intercept only
    lengths, basis = squares[kept].clamp(min=torch.finfo(torch.float64).tiny).sqrt(), vectors[:, kept]
    classifier.fit((basis * lengths).cpu().numpy(), labels)
    of_rows = basis / lengths @ torch.from_numpy(np.atleast_2d(classifier.coef_).T).to(basis)
    values = torch.from_numpy(np.atleast_1d(classifier.intercept_)).to(basis).repeat(len(others), 1)
    for columns, block, mean, scale in _standardised(features, width):
        weights = block.T @ of_rows / scale[:, None]
        values += others[:, columns].to(block) @ weights - mean @ weights
    return values.cpu().numpy()


def _standardised(features: Tensor, width: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Blocks of columns, float64 and standardised as by scikit-learn's StandardScaler; with the mean and scale of each column.

    The scale is 1 for columns that are constant to rounding.
    """
    for start in range(0, features.shape[1], width):
        columns = slice(start, start + width)
        block = features[:, columns].to(torch.float64)
        mean, variance = block.mean(0), block.var(0, correction=0)
        constant = variance <= len(block) * EPS * variance + (len(block) * EPS * mean) ** 2
        scale = variance.sqrt().masked_fill(constant, 1.0)
        yield columns, (block - mean) / scale, mean, scale
