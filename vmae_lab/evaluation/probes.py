"""Frozen probes: classifiers on the tokens of a few labeled clips. The encoder is not changed.

The direction of motion is a difference between positions and times, which the mean over tokens loses. `ridge` (on concatenated
tokens) and `attentive` keep the position of each token. `linear_2x2` (means of the four quarters of the frame, one level of
spatial pyramid pooling, He et al. 2015) keeps it roughly. `linear_mean` and `knn` lose it.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from pydantic import Field
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import evaluated_clips
from vmae_lab.evaluation.inference import DEFAULT, Inference
from vmae_lab.masking import Grid
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.utils.counts import counted
from vmae_lab.utils.precision import Precision, autocast
from vmae_lab.utils.seeding import numpy_generator
from vmae_lab.utils.settings import Settings

Probe = Literal["ridge", "attentive", "linear_2x2", "linear_mean", "knn"]
PROBE_NAMES: dict[str, str] = {
    "ridge": "ridge on flattened tokens",
    "attentive": "attentive probe",
    "linear_2x2": "ridge on 2 x 2 mean tokens",
    "linear_mean": "ridge on mean token",
    "knn": "kNN on mean token",
}
TOKEN_SHARE = 0.25  # largest share of a GPU's free memory for a set of tokens; concatenation needs twice as much


class ProbeSettings(Settings):
    """Probes, and the number of labels for them."""

    probes: tuple[Probe, ...] = Field(("ridge", "attentive", "linear_mean", "knn"), min_length=1)
    labels: int | None = Field(160, ge=2, description="labeled training clips, equally many per class; null: all")
    draws: int = Field(3, ge=1, description="independent draws of the labeled clips; results are averaged")
    attentive_steps: int = Field(200, ge=1)
    attentive_lr: float = Field(1e-3, gt=0)


def extract_tokens(
    encoder: nn.Module, clips: Clips, rows: Sequence[int], model: ModelSettings, stride: int, pooled: bool = False,
    inference: Inference = DEFAULT,
) -> Tensor:  # fmt: skip
    """Return the tokens of the middle window of some clips: float32 `(n, N, D)`, or their mean `(n, 1, D)` if `pooled`.

    They are on the encoder's device if they fit (see `token_device`), else on the CPU. Raises MissingVideos.
    """
    encoder.eval()
    videos = evaluated_clips(clips, rows, model.frames, stride, model.side, load=inference.load)
    device = token_device(next(encoder.parameters()).device, token_bytes(model, len(rows), pooled))
    return torch.cat([tokens_of(encoder, video, pooled, inference.precision).to(device) for video in videos])


@torch.no_grad()
def tokens_of(encoder: nn.Module, video: Tensor, pooled: bool = False, precision: Precision = "auto") -> Tensor:
    """Return the tokens of uint8 clips `(B, C, T, H, W)`: float32 `(B, N, D)`, or their mean `(B, 1, D)` if `pooled`."""
    device = next(encoder.parameters()).device
    with autocast(precision, device):
        tokens = encoder(video.to(device))
    return (tokens.mean(1, keepdim=True) if pooled else tokens).to(torch.float32)


def token_bytes(model: ModelSettings, clips: int, pooled: bool = False) -> int:
    """Return the size of the float32 tokens of some clips in bytes."""
    return 4 * clips * model.dimensions.width * (1 if pooled else model.clip.tokens)


def token_device(device: torch.device, size: int) -> torch.device:
    """Return the device to store `size` bytes of tokens on: `device` if it is a GPU with enough memory, else the CPU."""
    if device.type == "cuda" and size <= TOKEN_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def draw_labelled(labels: np.ndarray, count: int, seed: int, draw: int) -> np.ndarray:
    """Draw the rows of `count` labeled clips, equally many per class, the same for every arm. Raises ValueError."""
    classes = np.unique(labels)
    each = count // len(classes)
    rng = numpy_generator(seed, "labelled clips", draw)
    rows = []
    for label in classes:
        available = np.flatnonzero(labels == label)
        if not 0 < each <= len(available):
            raise ValueError(
                f"{count} labels over {len(classes)} classes are {counted(each, 'clip')} per class (at least 1); class "
                f"{label} has {len(available)}. Reduce the number of labels (null: all), or add labeled clips"
            )
        rows.append(rng.choice(available, each, replace=False))
    return np.sort(np.concatenate(rows))


def labelled_draws(labels: np.ndarray, settings: ProbeSettings, seed: int) -> list[np.ndarray]:
    """Return the rows of each draw of labeled clips. There is a single draw if all labels are used."""
    if settings.labels is None:
        return [np.arange(len(labels))]
    return [draw_labelled(labels, settings.labels, seed, draw) for draw in range(settings.draws)]


def pooled_only(probes: Sequence[Probe]) -> bool:
    """Return whether these probes need only mean tokens."""
    return set(probes) <= {"linear_mean", "knn"}


def classical_answers(probe: Probe, features: Tensor, labels: np.ndarray, others: Tensor, grid: Grid) -> np.ndarray:
    """Fit a probe to labeled tokens `(n, N, D)`, and predict the classes of others `(m, N, D)`: `(m,)`.

    `grid` is `(T', H', W')` of the N tokens. The regularization strength is selected on the labeled clips.
    """
    train, test = arrange(probe, features, grid), arrange(probe, others, grid)
    if probe in ("ridge", "linear_2x2", "linear_mean"):
        return ridge_answers(train, labels, test, np.logspace(0, 6, 13))
    if probe == "knn":
        classifier = make_pipeline(Normalizer(), KNeighborsClassifier(n_neighbors=min(10, len(labels)), weights="distance"))
        return classifier.fit(train.cpu().numpy(), labels).predict(test.cpu().numpy())
    raise ValueError(f"the probe '{probe}' has no closed form")


def arrange(probe: Probe, features: Tensor, grid: Grid) -> Tensor:
    """Return the input of a probe from tokens `(n, N, D)`: concatenated (ridge), means of quarters of the frame, or mean."""
    if probe == "ridge":
        return features.flatten(1)
    if probe == "linear_2x2":
        over_time = rearrange(features, "n (t h w) d -> n t d h w", t=grid[0], h=grid[1]).mean(1)
        return functional.adaptive_avg_pool2d(over_time, 2).flatten(1)
    if features.device.type == "cpu":  # committed reports used NumPy, which sums in another order
        return torch.from_numpy(features.numpy().mean(1))
    return features.mean(1)


# --- Ridge classification, also with many more columns than rows ----------------------------------------------------------
BLOCK = 2**20  # values that are converted to float64 at a time: 8 MiB, which fit into the cache of a CPU
EPS = torch.finfo(torch.float64).eps


def ridge_answers(features: Tensor, labels: np.ndarray, others: Tensor, alphas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fit a ridge classifier to standardized features `(n, d)`, and predict the classes of others `(m, d)`: `(m,)`.

    The regularization strength is selected by leave-one-out validation. If n < d, the classifier is fitted to at most n
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
    """Fit a classifier to standardized features `(n, d)`, n < d, and return its decision values for others `(m, d)`.

    The result is float64 `(m, classes)`, or `(m, 1)` for two classes. Let X be the standardized features and U diag(s^2) U^T
    the eigendecomposition of X X^T. The coordinates of X in its own span are U s. The weights of a ridge regression are in the
    span of its rows, and a rotation does not change their norm. So the fit to U s equals the fit to X: weights w of the
    coordinates correspond to weights X^T U w / s of the columns. Columns are read in blocks, on the device of the features.
    """
    width = max(1, BLOCK // (len(features) + len(others)))
    gram = sum(block @ block.T for _, block, _, _ in _standardized(features, width))
    assert isinstance(gram, Tensor), "at least one column is needed"
    squares, vectors = torch.linalg.eigh(gram)
    kept = squares > EPS * squares[-1]  # the others are zero to rounding
    kept[-1] = True  # if all rows are equal, all are zero, and the fit has only an intercept
    lengths, basis = squares[kept].clamp(min=torch.finfo(torch.float64).tiny).sqrt(), vectors[:, kept]
    classifier.fit((basis * lengths).cpu().numpy(), labels)
    of_rows = basis / lengths @ torch.from_numpy(np.atleast_2d(classifier.coef_).T).to(basis)
    values = torch.from_numpy(np.atleast_1d(classifier.intercept_)).to(basis).repeat(len(others), 1)
    for columns, block, mean, scale in _standardized(features, width):
        weights = block.T @ of_rows / scale[:, None]
        values += others[:, columns].to(block) @ weights - mean @ weights
    return values.cpu().numpy()


def _standardized(features: Tensor, width: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield blocks of columns, float64, standardized like scikit-learn's StandardScaler, with mean and scale per column.

    The scale of columns that are constant up to rounding is 1.
    """
    for start in range(0, features.shape[1], width):
        columns = slice(start, start + width)
        block = features[:, columns].to(torch.float64)
        mean, variance = block.mean(0), block.var(0, correction=0)
        constant = variance <= len(block) * EPS * variance + (len(block) * EPS * mean) ** 2
        scale = variance.sqrt().masked_fill(constant, 1.0)
        yield columns, (block - mean) / scale, mean, scale
