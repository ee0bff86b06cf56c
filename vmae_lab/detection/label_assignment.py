"""Label assignment and loss of ActionFormer (section 3.3).

A point of the pyramid learns to predict a segment if it is near the middle of the segment, and if the distance to the farther
end is in the range of the point's level. Times are in time steps of the features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from vmae_lab.models.actionformer import pyramid_points

FIRST_RANGE = 4.0  # largest distance on the first level, in time steps; each level doubles it, the last one has no limit
ALIKE = 1e-3  # segments at a point whose lengths differ less (in time steps) count as one segment with all their classes


@dataclass(frozen=True)
class Targets:
    """Targets of the points of a video: classes, float `(P, classes)`, and distances to both ends in strides, `(P, 2)`.

    A point without a class is background, and its distances are not used.
    """

    labels: Tensor
    distances: Tensor

    @property
    def positive(self) -> Tensor:
        """Whether a point has a segment: bool `(P,)`."""
        return self.labels.any(1)


def assign(segments: Tensor, labels: Tensor, length: int, levels: int, classes: int, radius: float) -> Targets:
    """Return the targets of `length` time steps (with padding), given segments, float `(n, 2)`, and classes, int64 `(n,)`.

    A point is assigned to the shortest segment that contains it, has its middle at most `radius` strides away, and has its
    farther end in the range of the point's level.
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
    """Return whether a point has a segment, bool `(P,)`: `Targets.positive` without the other targets."""
    return _assigned(segments, *pyramid_points(length, levels), levels, radius)[1].any(1)


def _assigned(segments: Tensor, times: Tensor, strides: Tensor, levels: int, radius: float) -> tuple[Tensor, Tensor]:
    """Return the distances from points to the ends of segments, `(P, n, 2)`, and the allowed assignments, bool `(P, n)`."""
    to_ends = torch.stack([times[:, None] - segments[:, 0], segments[:, 1] - times[:, None]], dim=2)
    reach, farther = radius * strides[:, None], to_ends.amax(2)
    low = torch.where(strides > 1, strides * FIRST_RANGE / 2, 0.0)[:, None]
    high = torch.where(strides < 2 ** (levels - 1), strides * FIRST_RANGE, torch.inf)[:, None]
    near = (to_ends.amin(2) > 0) & ((times[:, None] - segments.mean(1)).abs() < reach)
    return to_ends, near & (farther >= low) & (farther <= high)


def localisation_loss(
    logits: Tensor, distances: Tensor, labels: Tensor, true_distances: Tensor, padding: Tensor
) -> Tensor:  # fmt: skip
    """Return the focal loss, summed over points, plus the DIoU loss, summed over points with a segment. Not normalized.

    Logits and labels `(B, P, classes)`, distances and true distances `(B, P, 2)`, padding bool `(B, P)` -> scalar. Padded
    points are skipped. Labels, true distances and padding are on the CPU, the predictions on any device.
    """
    device = logits.device
    valid, positive = (indices(mask, device) for mask in (~padding, ~padding & labels.any(2)))
    labels, true_distances = (targets.to(device, non_blocking=True).flatten(0, 1) for targets in (labels, true_distances))
    logits, distances = logits.flatten(0, 1), distances.flatten(0, 1)
    focal = sigmoid_focal_loss(logits[valid].float(), labels[valid], reduction="sum")
    return focal + diou_loss(distances[positive].float(), true_distances[positive]).sum()


def indices(mask: Tensor, device: torch.device) -> Tensor:
    """Return the positions of True in a flattened mask on the CPU: int64 `(n,)` on a device.

    To select by the mask on a GPU would wait for the GPU, because the number of values must be known.
    """
    positions = mask.flatten().nonzero().flatten()
    return (positions.pin_memory() if device.type == "cuda" else positions).to(device, non_blocking=True)


def diou_loss(distances: Tensor, true: Tensor) -> Tensor:
    """Return the DIoU loss of pairs of segments around a point: `(n,)`.

    It is 1 - IoU + (distance of the middles / length of the hull)^2 (Zheng et al., AAAI 2020, arXiv 1911.08287, in one
    dimension). Segments are given by the distances of the point to both ends, `(n, 2)`.
    """
    inner, hull = torch.minimum(distances, true).sum(1), torch.maximum(distances, true).sum(1)
    union = distances.sum(1) + true.sum(1) - inner
    apart = ((distances[:, 1] - distances[:, 0]) - (true[:, 1] - true[:, 0])) / 2
    tiny = torch.finfo(hull.dtype).eps
    return 1 - inner / union.clamp(min=tiny) + (apart / hull.clamp(min=tiny)) ** 2
