"""Frozen readouts: what an encoder's features hold, read with few labels and without changing the encoder.

Motion direction is a difference between places and times, which a mean over tokens loses; so the readouts that count
here keep each token's place: exactly (`ridge` on tokens side by side, `attentive`) or coarsely (`linear_2x2`, means of the
four quarters of the frame, as one level of spatial pyramid pooling, He et al. 2015). `linear_mean` and `knn` do not.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from pydantic import BaseModel, ConfigDict, Field
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from torch import nn
from torch.nn import functional

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import evaluated_clips
from vmae_lab.evaluation.ridge import ridge_answers
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
TOKEN_SHARE = 0.25  # of a GPU's free memory that one set of tokens may take; while it is put together it takes twice that


class ProbeSettings(BaseModel):
    """Which frozen readouts, and how many labels they are given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probes: tuple[Probe, ...] = Field(("ridge", "attentive", "linear_mean", "knn"), min_length=1)
    labels: int | None = Field(160, ge=2, description="labelled training clips, equally many a class; all of them if null")
    draws: int = Field(3, ge=1, description="independent draws of the labelled clips, averaged")
    attentive_steps: int = Field(200, ge=1)
    attentive_lr: float = Field(1e-3, gt=0)


def extract_tokens(
    encoder: nn.Module, clips: Clips, rows: Sequence[int], model: ModelSettings, stride: int, pooled: bool = False
) -> torch.Tensor:
    """Tokens of some clips' middle window, whole frame: float32 `(n, N, D)`; their mean `(n, 1, D)` if `pooled`.

    On the encoder's device if they fit there (see `token_device`), else on the CPU. Raises MissingVideos.
    """
    encoder.eval()
    videos = evaluated_clips(clips, rows, model.frames, stride, model.side)
    place = token_device(next(encoder.parameters()).device, token_bytes(model, len(rows), pooled))
    return torch.cat([tokens_of(encoder, video, pooled).to(place) for video in videos])


@torch.no_grad()
def tokens_of(encoder: nn.Module, video: torch.Tensor, pooled: bool = False) -> torch.Tensor:
    """Tokens of uint8 clips `(B, C, T, H, W)`: float32 `(B, N, D)` on the encoder's device; `(B, 1, D)` means if `pooled`."""
    tokens = encoder(video.to(next(encoder.parameters()).device))
    return (tokens.mean(1, keepdim=True) if pooled else tokens).to(torch.float32)


def token_bytes(model: ModelSettings, clips: int, pooled: bool = False) -> int:
    """Bytes of the float32 tokens of some clips."""
    return 4 * clips * model.dimensions.width * (1 if pooled else model.clip.tokens)


def token_device(device: torch.device, size: int) -> torch.device:
    """Where to keep `size` bytes of tokens that are computed on a device: there if it is a GPU with enough free memory."""
    if device.type == "cuda" and size <= TOKEN_SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu")


def draw_labelled(labels: np.ndarray, count: int, seed: int, draw: int) -> np.ndarray:
    """Rows of `count` labelled clips, equally many a class, the same for every arm. Raises ValueError where there are fewer."""
    classes = np.unique(labels)
    each = count // len(classes)
    rng = numpy_generator(seed, "labelled clips", draw)
    rows = []
    for label in classes:
        there = np.flatnonzero(labels == label)
        if not 0 < each <= len(there):
            raise ValueError(
                f"{count} labels over {len(classes)} classes need {each} clips of each (at least 1); there are {len(there)} "
                f"of class {label}: lower the number of labels (null: all), or have more labelled clips"
            )
        rows.append(rng.choice(there, each, replace=False))
    return np.sort(np.concatenate(rows))


def labelled_draws(labels: np.ndarray, settings: ProbeSettings, seed: int) -> list[np.ndarray]:
    """The rows of each draw of labelled clips; where all labels are used there is one draw to make."""
    if settings.labels is None:
        return [np.arange(len(labels))]
    return [draw_labelled(labels, settings.labels, seed, draw) for draw in range(settings.draws)]


def pooled_only(probes: Sequence[Probe]) -> bool:
    """Whether mean tokens are all that these readouts need."""
    return set(probes) <= {"linear_mean", "knn"}


def classical_answers(probe: Probe, features: torch.Tensor, labels: np.ndarray, others: torch.Tensor, grid: Grid) -> np.ndarray:
    """Fit a readout to labelled token features `(n, N, D)` and predict the classes of others `(m, N, D)`: `(m,)`.

    `grid`: of the N tokens, `(T', H', W')`. Its regularisation strength is chosen within the labelled clips.
    """
    fitted, judged = arrange(probe, features, grid), arrange(probe, others, grid)
    if probe in ("ridge", "linear_2x2", "linear_mean"):
        return ridge_answers(fitted, labels, judged, np.logspace(0, 6, 13))
    if probe == "knn":
        readout = make_pipeline(Normalizer(), KNeighborsClassifier(n_neighbors=min(10, len(labels)), weights="distance"))
        return readout.fit(fitted.cpu().numpy(), labels).predict(judged.cpu().numpy())
    raise ValueError(f"'{probe}' is not fitted in closed form")


def arrange(probe: Probe, features: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Tokens `(n, N, D)` as a readout's columns: side by side for ridge, means over the frame's quarters, or their mean."""
    if probe == "ridge":
        return features.flatten(1)
    if probe == "linear_2x2":
        over_time = rearrange(features, "n (t h w) d -> n t d h w", t=grid[0], h=grid[1]).mean(1)
        return functional.adaptive_avg_pool2d(over_time, 2).flatten(1)
    if features.device.type == "cpu":  # NumPy adds in another order than PyTorch, and committed reports used NumPy
        return torch.from_numpy(features.numpy().mean(1))
    return features.mean(1)
