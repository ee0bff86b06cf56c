"""Which points of ActionFormer's pyramid are trained to predict which segment, and the loss (ActionFormer, section 3.3).

Times are in time steps of the features. Points near a segment's middle are assigned to it, on the level whose range contains
the distance to its farther end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from vmae_lab.models.actionformer import pyramid_points

FIRST_RANGE = 4.0  # farthest end on the first level, in time steps. Each level doubles it; the last one has no limit
ALIKE = 1e-3  # segments at one point whose lengths differ less, in time steps, are one segment with the classes of all


@dataclass(frozen=True)
class Targets:
    """Targets of the points of one video: classes, float `(P, classes)`, and distances to both ends in strides, `(P, 2)`.

    A point without a class is background; its distances mean nothing.
    """

    labels: Tensor
    distances: Tensor

    @property
    def positive(self) -> Tensor:
        """Points with a segment: bool `(P,)`."""
        return self.labels.any(1)


def assign(segments: Tensor, labels: Tensor, length: int, levels: int, classes: int, radius: float) -> Targets:
    """Targets of `length` time steps (with padding) from segments, float `(n, 2)`, and classes, int64 `(n,)`.

    A point is assigned to the shortest segment that contains it, whose middle is at most `radius` strides away, and whose
    farther end is in the range of the point's level.
    """
    times, strides = pyramid_points(length, levels)
    if not len(segments):
        return Targets(torch.zeros(len(times), classes), torch.zeros(len(times), 2))
    to_ends, assigned = _assigned(segments, times, strides, levels, radius)
    lengths = torch.where(assigned, segments[:, 1] - segments[:, 0], torch.inf)
    shortest, chosen = lengths.min(1)
    shared = assigned & (lengths <= shortest[:, None] + ALIKE)
    point_labels = (shared.float() @ functional.one_hot(labels, classes).float()).clamp(max=1)
    return Targets(point_labels, to_ends[torch.arange(len(times)), chosen] / strides[:, None])


def positive_points(segments: Tensor, length: int, levels: int, radius: float) -> Tensor:
    """The points with a segment, bool `(P,)`: `Targets.positive` without computing the rest."""
    return _assigned(segments, *pyramid_points(length, levels), levels, radius)[1].any(1)


def _assigned(segments: Tensor, times: Tensor, strides: Tensor, levels: int, radius: float) -> tuple[Tensor, Tensor]:
    """Distances from each point to each segment's ends, `(P, n, 2)`, and whether it may be assigned to it, bool `(P, n)`."""
    to_ends = torch.stack([times[:, None] - segments[:, 0], segments[:, 1] - times[:, None]], dim=2)
    reach, farther = radius * strides[:, None], to_ends.amax(2)
    low = torch.where(strides > 1, strides * FIRST_RANGE / 2, 0.0)[:, None]
    high = torch.where(strides < 2 ** (levels - 1), strides * FIRST_RANGE, torch.inf)[:, None]
    near = (to_ends.amin(2) > 0) & ((times[:, None] - segments.mean(1)).abs() < reach)
    return to_ends, near & (farther >= low) & (farther <= high)


def localisation_loss(
    logits: Tensor, distances: Tensor, labels: Tensor, true_distances: Tensor, padding: Tensor
) -> Tensor:  # fmt: skip
    """Sum of the focal loss over points without padding and of the DIoU loss over points with a segment; not yet normalised.

    `(B, P, classes)`, `(B, P, 2)`, the same of the targets, bool `(B, P)` -> scalar.
    """
    valid = ~padding
    positive = valid & labels.any(2)
    focal = sigmoid_focal_loss(logits[valid].float(), labels[valid], reduction="sum")
    return focal + diou_loss(distances[positive].float(), true_distances[positive]).sum()


def diou_loss(distances: Tensor, true: Tensor) -> Tensor:
    """1 - IoU + (distance of the middles / length of the hull)^2 of pairs of segments around one point: `(n,)`.

    From the point's distances to both ends, `(n, 2)` (DIoU, Zheng et al., AAAI 2020, arXiv 1911.08287, in one dimension).
    """
    inner, hull = torch.minimum(distances, true).sum(1), torch.maximum(distances, true).sum(1)
    union = distances.sum(1) + true.sum(1) - inner
    apart = ((distances[:, 1] - distances[:, 0]) - (true[:, 1] - true[:, 0])) / 2
    tiny = torch.finfo(hull.dtype).eps
    return 1 - inner / union.clamp(min=tiny) + (apart / hull.clamp(min=tiny)) ** 2
