"""Soft-NMS of temporal segments per class (Bodla et al., ICCV 2017, arXiv 1704.04503), and score voting, in PyTorch."""

import torch
from pydantic import Field
from torch import Tensor

from vmae_lab.data.activitynet import segment_iou
from vmae_lab.utils.settings import Settings


class SuppressSettings(Settings):
    """Post-processing of predictions. The defaults are those of ActionFormer on THUMOS14."""

    candidates: int = Field(2000, ge=1, description="number of best predictions per level of the pyramid")
    least_score: float = Field(0.001, ge=0, lt=1, description="lowest score of a prediction, before and after suppression")
    least_length: float = Field(0.05, ge=0, description="shorter predictions are removed; in time steps of the features")
    sigma: float = Field(0.5, gt=0, description="of Soft-NMS: scores are multiplied by exp(-IoU^2 / sigma)")
    # ActionFormer's config has 0.7, but its code votes only if all classes are suppressed together, which is off by default.
    voting: float | None = Field(
        None,
        gt=0,
        le=1,
        description="start and end become the mean, weighted by score x IoU, of predictions of the class with this IoU or more",
    )
    kept: int = Field(200, ge=1, description="largest number of segments per video")


def suppress(segments: Tensor, scores: Tensor, labels: Tensor, settings: SuppressSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Apply Soft-NMS: segments `(n, 2)`, scores `(n,)`, classes int64 `(n,)` -> the kept ones, best first (stable). On the CPU.

    A step takes the best segment of every class and lowers the scores of overlapping segments of that class. A step is linear
    in n, and `kept` steps suffice: segments that a class would take later cannot be among the best.
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
        of_class = torch.full((len(names),), -1, dtype=torch.int64)
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
    """Return the index of the first highest score per class: int64 `(classes,)`. Every class must occur in `codes`."""
    highest = torch.full((classes,), -torch.inf, dtype=scores.dtype)
    highest.scatter_reduce_(0, codes, scores, "amax")
    index = torch.where(scores == highest[codes], torch.arange(len(scores)), len(scores))
    first = torch.full((classes,), len(scores), dtype=torch.int64)
    return first.scatter_reduce_(0, codes, index, "amin")


def _voted(ends: Tensor, classes: Tensor, segments: Tensor, scores: Tensor, labels: Tensor, least: float) -> Tensor:
    """Return starts and ends as the mean, weighted by original score x IoU, of predictions with an IoU of at least `least`.

    Only predictions of the same class count. Blocks keep the memory linear in the number of predictions.
    """
    parts = []
    for block, block_classes in zip(ends.split(16), classes.split(16), strict=True):
        iou = segment_iou(block[:, None], segments)
        weights = ((iou >= least) & (block_classes[:, None] == labels)) * scores * iou
        parts.append(weights @ segments / weights.sum(1, keepdim=True))
    return torch.cat(parts)
