"""Frozen probes: classifiers that are fitted to few labelled clips' tokens, without changing the encoder.

The direction of motion is a difference between places and times, which a mean over tokens loses. `ridge` (on concatenated
tokens) and `attentive` keep each token's place, `linear_2x2` (means of the four quarters of the frame, as one level of spatial
pyramid pooling, He et al. 2015) keeps it roughly, `linear_mean` and `knn` do not.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from pydantic import BaseModel, ConfigDict, Field
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import evaluated_clips
from vmae_lab.masking import Grid
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.utils.seeding import numpy_generator

Probe = Literal["ridge", "attentive", "linear_2x2", "linear_mean", "knn"]
PROBE_NAMES: dict[str, str] = {
    "ridge": "ridge on flattened tokens",
    "attentive": "attentive probe",
    "linear_2x2": "ridge on 2 x 2 mean tokens",
    "linear_mean": "ridge on mean token",
    "knn": "kNN on mean token",
}
TOKEN_SHARE = 0.25  # of a GPU's free memory that one set of tokens may take; concatenating it takes twice that


class ProbeSettings(BaseModel):
    """Which probes, and how many labels they get."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probes: tuple[Probe, ...] = Field(("ridge", "attentive", "linear_mean", "knn"), min_length=1)
    labels: int | None = Field(160, ge=2, description="labelled training clips, equally many per class; null: all")
    draws: int = Field(3, ge=1, description="independent draws of the labelled clips, averaged")
    attentive_steps: int = Field(200, ge=1)
    attentive_lr: float = Field(1e-3, gt=0)


def extract_tokens(
    encoder: nn.Module, clips: Clips, rows: Sequence[int], model: ModelSettings, stride: int, pooled: bool = False
) -> Tensor:
    """Tokens of the middle window of some clips: float32 `(n, N, D)`; their mean `(n, 1, D)` if `pooled`.

    On the encoder's device if they fit (see `token_device`), else on the CPU. Raises MissingVideos.
    """
    encoder.eval()
    videos = evaluated_clips(clips, rows, model.frames, stride, model.side)
    place = token_device(next(encoder.parameters()).device, token_bytes(model, len(rows), pooled))
    return torch.cat([tokens_of(encoder, video, pooled).to(place) for video in videos])


@torch.no_grad()
def tokens_of(encoder: nn.Module, video: Tensor, pooled: bool = False) -> Tensor:
    """Tokens of uint8 clips `(B, C, T, H, W)`: float32 `(B, N, D)` on the encoder's device; `(B, 1, D)` means if `pooled`."""
    tokens = encoder(video.to(next(encoder.parameters()).device))
    return (tokens.mean(1, keepdim=True) if pooled else tokens).to(torch.float32)


def token_bytes(model: ModelSettings, clips: int, pooled: bool = False) -> int:
    """Bytes of the float32 tokens of some clips."""
    return 4 * clips * model.dimensions.width * (1 if pooled else model.clip.tokens)


def token_device(device: torch.device, size: int) -> torch.device:
    """Where to keep `size` bytes of tokens that are computed on `device`: on it if it is a GPU with enough memory, else CPU."""
    if device.type == "cuda" and size <= TOKEN_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def draw_labelled(labels: np.ndarray, count: int, seed: int, draw: int) -> np.ndarray:
    """Rows of `count` labelled clips, equally many per class, the same for every arm. Raises ValueError if too few."""
    classes = np.unique(labels)
    each = count // len(classes)
    rng = numpy_generator(seed, "labelled clips", draw)
    rows = []
    for label in classes:
        available = np.flatnonzero(labels == label)
        if not 0 < each <= len(available):
            raise ValueError(
                f"{count} labels over {len(classes)} classes need {each} clips of each (at least 1); there are "
                f"{len(available)} of class {label}: lower the number of labels (null: all), or add labelled clips"
            )
        rows.append(rng.choice(available, each, replace=False))
    return np.sort(np.concatenate(rows))


def labelled_draws(labels: np.ndarray, settings: ProbeSettings, seed: int) -> list[np.ndarray]:
    """The rows of each draw of labelled clips; a single draw if all labels are used."""
    if settings.labels is None:
        return [np.arange(len(labels))]
    return [draw_labelled(labels, settings.labels, seed, draw) for draw in range(settings.draws)]


def pooled_only(probes: Sequence[Probe]) -> bool:
    """Whether these probes only need mean tokens."""
    return set(probes) <= {"linear_mean", "knn"}


def classical_answers(probe: Probe, features: Tensor, labels: np.ndarray, others: Tensor, grid: Grid) -> np.ndarray:
    """Fit a probe to labelled tokens `(n, N, D)` and predict the classes of others `(m, N, D)`: `(m,)`.

    `grid` is that of the N tokens, `(T', H', W')`. The regularisation strength is chosen within the labelled clips.
    """
    train, test = arrange(probe, features, grid), arrange(probe, others, grid)
    if probe in ("ridge", "linear_2x2", "linear_mean"):
        return ridge_answers(train, labels, test, np.logspace(0, 6, 13))
    if probe == "knn":
        classifier = make_pipeline(Normalizer(), KNeighborsClassifier(n_neighbors=min(10, len(labels)), weights="distance"))
        return classifier.fit(train.cpu().numpy(), labels).predict(test.cpu().numpy())
    raise ValueError(f"'{probe}' is not fitted in closed form")


def arrange(probe: Probe, features: Tensor, grid: Grid) -> Tensor:
    """Tokens `(n, N, D)` as columns of a probe: concatenated (ridge), means over the frame's quarters, or their mean."""
    if probe == "ridge":
        return features.flatten(1)
    if probe == "linear_2x2":
        over_time = rearrange(features, "n (t h w) d -> n t d h w", t=grid[0], h=grid[1]).mean(1)
        return functional.adaptive_avg_pool2d(over_time, 2).flatten(1)
    if features.device.type == "cpu":  # committed reports used NumPy, which adds in another order
        return torch.from_numpy(features.numpy().mean(1))
    return features.mean(1)


# --- Ridge classification, also of many more columns than rows ------------------------------------------------------------
BLOCK = 2**20  # values that are converted to float64 at a time: 8 MiB, which fit into a CPU's cache
EPS = torch.finfo(torch.float64).eps


def ridge_answers(features: Tensor, labels: np.ndarray, others: Tensor, alphas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fit a ridge classifier to standardised features `(n, d)` and predict the classes of others `(m, d)`: `(m,)`.

    The regularisation strength is chosen by leave-one-out validation. If n < d, the classifier is fitted to at most n
    coordinates instead of d columns, which gives the same predictions.
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
    assert isinstance(gram, Tensor), "at least one column is needed"
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
    """Blocks of columns, float64 and standardised like scikit-learn's StandardScaler, with each column's mean and scale.

    The scale of columns that are constant to rounding is 1.
    """
    for start in range(0, features.shape[1], width):
        columns = slice(start, start + width)
        block = features[:, columns].to(torch.float64)
        mean, variance = block.mean(0), block.var(0, correction=0)
        constant = variance <= len(block) * EPS * variance + (len(block) * EPS * mean) ** 2
        scale = variance.sqrt().masked_fill(constant, 1.0)
        yield columns, (block - mean) / scale, mean, scale
