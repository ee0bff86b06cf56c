"""Which points of the pyramid answer for which segment, and how wrong their answers are (ActionFormer, section 3.3).

Times are in time steps of the features. Points near a segment's middle answer for it, at the level whose range its farther end
lies in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from vmae_lab.models.actionformer import pyramid_points

FIRST_RANGE = (
    4.0  # farthest end that the first level answers for, in time steps; each level above doubles it, the last has no end
)
ALIKE = 1e-3  # segments of one point that differ less in length, in time steps, are one: it answers for the classes of all


@dataclass(frozen=True)
class Targets:
    """What the points of one video should say: classes, float `(P, classes)`, and distances to both ends in strides, `(P, 2)`.

    A point whose classes are all 0 is background, and its distances mean nothing.
    """

    labels: Tensor
    distances: Tensor

    @property
    def positive(self) -> Tensor:
        """Points that answer for a segment: bool `(P,)`."""
        return self.labels.any(1)


def assign(segments: Tensor, labels: Tensor, length: int, levels: int, classes: int, radius: float) -> Targets:
    """Targets of `length` time steps (those of a padded video too) from segments, float `(n, 2)`, and classes, int64 `(n,)`.

    A point answers for a segment that it lies in, at most `radius` strides from the segment's middle, where the farther end is
    in the range of the point's level; for the shortest of several.
    """
    times, strides = pyramid_points(length, levels)
    if not len(segments):
        return Targets(torch.zeros(len(times), classes), torch.zeros(len(times), 2))
    to_ends, answers = _answering(segments, times, strides, levels, radius)
    lengths = torch.where(answers, segments[:, 1] - segments[:, 0], torch.inf)
    shortest, chosen = lengths.min(1)
    shared = answers & (lengths <= shortest[:, None] + ALIKE)
    done = (shared.float() @ functional.one_hot(labels, classes).float()).clamp(max=1)
    distances = to_ends[torch.arange(len(times)), chosen] / strides[:, None]
    return Targets(done, distances)


def positive_points(segments: Tensor, length: int, levels: int, radius: float) -> Tensor:
    """The points that answer for a segment, bool `(P,)`: `Targets.positive` without the rest of what `assign` works out."""
    return _answering(segments, *pyramid_points(length, levels), levels, radius)[1].any(1)


def _answering(segments: Tensor, times: Tensor, strides: Tensor, levels: int, radius: float) -> tuple[Tensor, Tensor]:
    """How far each segment's ends are from each point, `(P, n, 2)`, and whether it answers for it, bool `(P, n)`."""
    to_ends = torch.stack([times[:, None] - segments[:, 0], segments[:, 1] - times[:, None]], dim=2)
    reach, farther = radius * strides[:, None], to_ends.amax(2)
    low = torch.where(strides > 1, strides * FIRST_RANGE / 2, 0.0)[:, None]
    high = torch.where(strides < 2 ** (levels - 1), strides * FIRST_RANGE, torch.inf)[:, None]
    near = (to_ends.amin(2) > 0) & ((times[:, None] - segments.mean(1)).abs() < reach)
    return to_ends, near & (farther >= low) & (farther <= high)


def localisation_loss(
    logits: Tensor, distances: Tensor, labels: Tensor, true_distances: Tensor, padding: Tensor
) -> Tensor:  # fmt: skip
    """Focal loss over all points that are no padding, and DIoU loss over those that answer for a segment: their sums, added.

    `(B, P, classes)`, `(B, P, 2)`, the same of the targets, bool `(B, P)` -> scalar. To be divided by a number of positives.
    """
    there = ~padding
    positive = there & labels.any(2)
    wrong = sigmoid_focal_loss(logits[there].float(), labels[there], reduction="sum")
    return wrong + diou_loss(distances[positive].float(), true_distances[positive]).sum()


def diou_loss(distances: Tensor, true: Tensor) -> Tensor:
    """1 - IoU + (distance of the middles / length of the hull)^2 of segments about one point, by their distances `(n, 2)` to
    both ends: `(n,)` (DIoU, Zheng et al., AAAI 2020, arXiv 1911.08287, in one dimension).
    """
    inner, hull = torch.minimum(distances, true).sum(1), torch.maximum(distances, true).sum(1)
    union = distances.sum(1) + true.sum(1) - inner
    apart = ((distances[:, 1] - distances[:, 0]) - (true[:, 1] - true[:, 0])) / 2
    tiny = torch.finfo(hull.dtype).eps
    return 1 - inner / union.clamp(min=tiny) + (apart / hull.clamp(min=tiny)) ** 2
