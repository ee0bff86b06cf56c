"""Soft-NMS of segments in time, class by class, and voting (Bodla et al., ICCV 2017, arXiv 1704.04503): PyTorch alone."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class SuppressSettings(BaseModel):
    """What becomes of the points' answers; the defaults are ActionFormer's on THUMOS14."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: int = Field(2000, ge=1, description="best answers of a level of the pyramid that are looked at")
    least_score: float = Field(0.001, ge=0, lt=1, description="answers below this score are not looked at, nor kept")
    least_length: float = Field(0.05, ge=0, description="nor such as are no longer than this, in time steps of the features")
    sigma: float = Field(0.5, gt=0, description="of Soft-NMS: scores are multiplied by exp(-IoU^2 / sigma)")
    # ActionFormer's settings name .7, but its code votes only where all classes are suppressed together, which they are not.
    voting: float | None = Field(
        None, gt=0, le=1, description="ends are the mean, by score x IoU, of all answers of the class with this IoU or more"
    )
    kept: int = Field(200, ge=1, description="segments of a video that are kept, at most")


def suppress(segments: Tensor, scores: Tensor, labels: Tensor, settings: SuppressSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Segments `(n, 2)`, scores `(n,)` and classes, int64 `(n,)` -> the same of those kept, best first; equal ones by place.

    The best of each class is taken, all that overlap with it lose score, and so on. All classes take their steps together;
    one step is linear in n, and there are `kept` of them at most: what a class would take later could not be among the best.
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
        mine = of_class[codes]
        decay = torch.exp(-(_overlap(segments, segments[mine]) ** 2) / settings.sigma)
        left = torch.where(mine >= 0, left * decay, left)
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


def overlaps(segments: Tensor, others: Tensor) -> Tensor:
    """IoU of each of `(n, 2)` with each of `(m, 2)`: `(n, m)`."""
    return _overlap(segments[:, None], others)


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of segments `(..., 2)`, broadcast; 0 for such as have no length."""
    inner = (torch.minimum(one[..., 1], other[..., 1]) - torch.maximum(one[..., 0], other[..., 0])).clamp(min=0)
    union = (one[..., 1] - one[..., 0]) + (other[..., 1] - other[..., 0]) - inner
    return inner / union.clamp(min=torch.finfo(union.dtype).eps)


def _best_of_each(scores: Tensor, codes: Tensor, classes: int) -> Tensor:
    """The first place of the highest score of each class: int64 `(classes,)`. Every class has a place."""
    highest = torch.full((classes,), -torch.inf, dtype=scores.dtype, device=scores.device)
    highest.scatter_reduce_(0, codes, scores, "amax")
    places = torch.where(scores == highest[codes], torch.arange(len(scores), device=scores.device), len(scores))
    first = torch.full((classes,), len(scores), dtype=torch.int64, device=scores.device)
    return first.scatter_reduce_(0, codes, places, "amin")


def _voted(ends: Tensor, classes: Tensor, segments: Tensor, scores: Tensor, labels: Tensor, least: float) -> Tensor:
    """Ends of the kept as the mean, by first scores x IoU, of all answers of the class that overlap with them by `least`.

    A block at a time, so that memory stays linear in the number of answers."""
    parts = []
    for some, kinds in zip(ends.split(16), classes.split(16), strict=True):
        shared = overlaps(some, segments)
        weights = ((shared >= least) & (kinds[:, None] == labels)) * scores * shared
        parts.append(weights @ segments / weights.sum(1, keepdim=True))
    return torch.cat(parts)
