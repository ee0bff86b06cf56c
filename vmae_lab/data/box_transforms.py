"""Scale, crop, mirror image and colours of a clip whose boxes move along (VideoMAE's recipe for AVA)."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter, functional
from torchvision.tv_tensors import BoundingBoxes

from vmae_lab.utils.seeding import library_draws


class BoxAugment(BaseModel):
    """What a clip with boxes goes through in training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    short_side: tuple[int, int] = Field((256, 256), description="the short side before the crop, drawn between these, pixels")
    flip: float = Field(0.5, ge=0, le=1, description="how often a clip is mirrored; 0 where left and right are classes")
    colour: tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.1, 0.055), description="strengths of brightness, contrast, saturation and hue"
    )
    outward: tuple[float, float] = Field((0.2, 0.1), description="how far a box's edges move out, in its width and height")
    inward: tuple[float, float] = Field((0.1, 0.05), description="how far they move in")


def augment_scene(video: Tensor, boxes: Tensor, side: int, settings: BoxAugment, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A square crop of a scaled clip: uint8 `(C, T, H, W)`, boxes `(n, 4)` in [0, 1] -> `(C, T, side, side)`, boxes `(m, 4)` in
    its pixels, and which of the n they are, int64 `(m,)`.

    The crop's place is drawn among those that show the middle of one box, drawn too: so a clip loses all of its people only if
    that box has less than a pixel. Boxes are cut at the crop's edges, and those under a pixel left out; those that stay are
    jittered, edge by edge.
    """
    with library_draws(seed):
        low, high = settings.short_side
        video = to_short_side(video, int(torch.randint(low, high + 1, ())))
        height, width = video.shape[-2:]
        size = torch.tensor([width, height] * 2)
        placed = BoundingBoxes(boxes * size, format="XYXY", canvas_size=(height, width))
        middle = placed[torch.randint(len(boxes), ())].view(2, 2).mean(0)
        left, top = (_start(float(at), extent, side) for at, extent in zip(middle, (width, height), strict=True))
        video, placed = (functional.crop(one, top, left, side, side) for one in (video, placed))
        if torch.rand(()) < settings.flip:
            video, placed = (functional.horizontal_flip(one) for one in (video, placed))
        video = ColorJitter(*settings.colour)(video.transpose(0, 1)).transpose(0, 1)
        placed, kept = functional.sanitize_bounding_boxes(placed, min_size=1.0)
        return video, _jittered(placed.as_subclass(Tensor), settings).clamp(0, side), kept.nonzero().flatten()


def to_short_side(video: Tensor, short_side: int) -> Tensor:
    """A clip scaled to a short side, its shape kept: uint8 `(C, T, H, W)`."""
    if min(video.shape[-2:]) == short_side:
        return video
    return functional.resize(video.transpose(0, 1), [short_side], antialias=True).transpose(0, 1)


def enlarged(boxes: Tensor, wider: float, taller: float) -> Tensor:
    """Boxes `(n, 4)` in [0, 1] grown about their middles by parts of their width and height, cut at the frame's edges."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    out = torch.stack([wider * width, taller * height], 1) / 2
    return torch.cat([boxes[:, :2] - out, boxes[:, 2:] + out], 1).clamp(0, 1)


def _start(middle: float, extent: int, side: int) -> int:
    """A random start of a crop inside `extent` that shows `middle`."""
    low, high = max(0, int(middle) - side + 1), min(int(middle), extent - side)
    return low + int(torch.randint(max(1, high - low + 1), ()))


def _jittered(boxes: Tensor, settings: BoxAugment) -> Tensor:
    width_height = boxes[:, 2:] - boxes[:, :2]
    outward, inward = torch.tensor(settings.outward), torch.tensor(settings.inward)
    first, last = (torch.rand(len(boxes), 2) * (outward + inward) for _ in range(2))
    return torch.cat([boxes[:, :2] + (first - outward) * width_height, boxes[:, 2:] + (last - inward) * width_height], 1)
