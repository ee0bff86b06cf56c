"""Soft-NMS of segments in time, per class, and voting (Bodla et al., ICCV 2017, arXiv 1704.04503), in PyTorch only."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vmae_lab.data.activitynet import segment_iou


class SuppressSettings(BaseModel):
    """Post-processing of predictions; the defaults are ActionFormer's on THUMOS14."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: int = Field(2000, ge=1, description="best predictions per level of the pyramid")
    least_score: float = Field(0.001, ge=0, lt=1, description="lowest score of a prediction, before and after suppression")
    least_length: float = Field(0.05, ge=0, description="predictions must be longer than this, in time steps of the features")
    sigma: float = Field(0.5, gt=0, description="of Soft-NMS: scores are multiplied by exp(-IoU^2 / sigma)")
    # ActionFormer's settings name 0.7, but its code votes only if all classes are suppressed together, which they are not.
    voting: float | None = Field(
        None,
        gt=0,
        le=1,
        description="ends are the mean, by score x IoU, of all predictions of the class with at least this IoU",
    )
    kept: int = Field(200, ge=1, description="largest number of segments per video")


def suppress(segments: Tensor, scores: Tensor, labels: Tensor, settings: SuppressSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Soft-NMS: segments `(n, 2)`, scores `(n,)`, classes int64 `(n,)` -> the same of those kept, best first (stable).

    Each step takes the best of every class and lowers the scores of what overlaps with it. A step is linear in n, and `kept`
    steps suffice: what a class would take later could not be among the best.
    """
    if not len(segments):
        return segments, scores, labels
    names, codes = labels.unique(return_inverse=True)
    left, taken, taken_scores = scores.clone(), [], []
    for _ in range(settings.kept):
        best = _best_of_each(left, codes, len(names))
        best = best[left[best] >= settings.least_score]
        if not len(best):
            break
        taken.append(best)
        taken_scores.append(left[best])
        of_class = torch.full((len(names),), -1, dtype=torch.int64, device=best.device)
        of_class[codes[best]] = best
        rival = of_class[codes]
        decay = torch.exp(-(segment_iou(segments, segments[rival]) ** 2) / settings.sigma)
        left = torch.where(rival >= 0, left * decay, left)
        left[best] = -1.0
    if not taken:
        return segments[:0], scores[:0], labels[:0]
    index, kept_scores = torch.cat(taken), torch.cat(taken_scores)
    order = torch.argsort(kept_scores, descending=True, stable=True)[: settings.kept]
    index, kept_scores = index[order], kept_scores[order]
    ends = segments[index]
    if settings.voting:
        ends = _voted(ends, labels[index], segments, scores, labels, settings.voting)
    return ends, kept_scores, labels[index]


def _best_of_each(scores: Tensor, codes: Tensor, classes: int) -> Tensor:
    """Index of the first highest score of each class: int64 `(classes,)`. Every class occurs in `codes`."""
    highest = torch.full((classes,), -torch.inf, dtype=scores.dtype, device=scores.device)
    highest.scatter_reduce_(0, codes, scores, "amax")
    index = torch.where(scores == highest[codes], torch.arange(len(scores), device=scores.device), len(scores))
    first = torch.full((classes,), len(scores), dtype=torch.int64, device=scores.device)
    return first.scatter_reduce_(0, codes, index, "amin")


def _voted(ends: Tensor, classes: Tensor, segments: Tensor, scores: Tensor, labels: Tensor, least: float) -> Tensor:
    """Ends as the mean, by original score x IoU, of all predictions of the class that overlap by at least `least`.

    In blocks, so that memory is linear in the number of predictions.
    """
    parts = []
    for some, kinds in zip(ends.split(16), classes.split(16), strict=True):
        shared = segment_iou(some[:, None], segments)
        weights = ((shared >= least) & (kinds[:, None] == labels)) * scores * shared
        parts.append(weights @ segments / weights.sum(1, keepdim=True))
    return torch.cat(parts)
