"""Crops, colors and augmentation of uint8 clips. All frames of a clip are transformed alike."""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import ColorJitter, functional
from torchvision.tv_tensors import BoundingBoxes

from vmae_lab.data.rand_augment import Box, rand_augment
from vmae_lab.utils.seeding import library_draws
from vmae_lab.utils.settings import Settings
from vmae_lab.utils.shapes import Side, height_width

SCALES = (1.0, 0.875, 0.75, 0.66)


def channels_first(frames: np.ndarray) -> Tensor:
    """Convert decoded frames to a clip: uint8 `(..., T, H, W, C)` -> `(..., C, T, H, W)`."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -4)))


# ----------------------------------------------------------------------------------------------------------------------
# Crops. `side` is a number of pixels for square crops, else (height, width). A crop has the aspect ratio of `side`: the frame
# is cut, never stretched, except by `multi_scale_crop` and `finetune_augment`, which draw it, and by `squash`.


def multi_scale_crop(video: Tensor, side: Side, rng: np.random.Generator, scales: Sequence[float] = SCALES) -> Tensor:
    """Return a multi-scale crop as in the official code, resized: uint8 `(..., H, W)` -> `(..., height, width)`.

    Height and width are drawn from `scales` of the largest crop (of the short side, for square crops), at most one step apart
    in the list. The position is one of the four corners or the center.
    """
    height, width = video.shape[-2:]
    first = int(rng.integers(len(scales)))
    second = min(max(first + int(rng.integers(-1, 2)), 0), len(scales) - 1)
    tall, wide = (max(1, round(full * scales[i])) for full, i in zip(_largest(video, side), (first, second), strict=True))
    down, right = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))[rng.integers(5)]
    top, left = int((height - tall) * down), int((width - wide) * right)
    return _resize(video[..., top : top + tall, left : left + wide], side)


def centre_crop(video: Tensor, side: Side) -> Tensor:
    """Return the largest crop in the middle, resized: uint8 `(..., H, W)` -> `(..., height, width)`.

    This is the frame, resized until it just covers the crop, then cut.
    """
    return _resize(functional.center_crop(video, list(_largest(video, side))), side)


def crops_along(video: Tensor, side: Side, count: int) -> list[Tensor]:
    """Return `count` largest crops, spread evenly along the frame, resized: uint8 `(..., height, width)` each.

    They are spread along the direction in which the frame is larger than the crop: the long side, for square crops. The first
    and the last touch the edges, as in the official test. A single crop is in the middle.
    """
    if count == 1:
        return [centre_crop(video, side)]
    height, width = video.shape[-2:]
    tall, wide = _largest(video, side)
    corners = [tuple(rest * crop // (count - 1) for rest in (height - tall, width - wide)) for crop in range(count)]
    return [_resize(video[..., top : top + tall, left : left + wide], side) for top, left in corners]


def squash(video: Tensor, side: Side) -> Tensor:
    """Resize the whole frame, ignoring its aspect ratio: uint8 `(..., H, W)` -> `(..., height, width)`."""
    return _resize(video, side)


def _largest(video: Tensor, side: Side) -> tuple[int, int]:
    """Return height and width of the largest crop of a frame `(..., H, W)` that has the aspect ratio of `side`."""
    (height, width), (tall, wide) = video.shape[-2:], height_width(side)
    if height * wide <= width * tall:
        return height, max(1, round(height * wide / tall))
    return max(1, round(width * tall / wide)), width


def _resize(video: Tensor, side: Side) -> Tensor:
    size = height_width(side)
    if video.shape[-2:] == size:
        return video
    if video.stride(-4) == 1:  # colors innermost, as decoded: PyTorch resizes this layout three times faster
        return functional.resize_image(video.transpose(-4, -3), list(size)).transpose(-4, -3)
    return functional.resize_image(video.contiguous(), list(size))


# ----------------------------------------------------------------------------------------------------------------------
# Augmentation for fine-tuning


class FinetuneAugment(Settings):
    """Augmentation of a clip in fine-tuning (VideoMAE V2's recipe, without mixup and cutmix, which take a batch)."""

    rand_augment: str | None = Field("rand-m7-n4-mstd0.5-inc1", description="timm's RandAugment configuration; none if null")
    scale: tuple[float, float] = Field((0.08, 1.0), description="area of a crop, relative to the frame")
    aspect: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="width over height of a crop; for clips that are not square, relative to the clip's"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored clip; 0 if left and right are classes (SSv2)")
    erase: float = Field(0.25, ge=0, le=1, description="probability of a box filled with noise")


def finetune_augment(video: Tensor, side: Side, settings: FinetuneAugment, seed: int) -> Tensor:
    """Apply RandAugment, random resized crop, flip and erasing: uint8 `(C, T, H, W)` -> `(C, T, height, width)`.

    Every frame gets the same operations, strengths, crop and erased box. The noise in the box is normal around the mean color,
    as in the official code after normalization, and clamped to uint8.
    """
    with library_draws(seed):
        operations, coin, filled = (int(value) for value in torch.randint(2**31, (3,)))
        tall, wide = height_width(side)
        aspects = [aspect * (wide / tall) for aspect in settings.aspect]
        top, left, height, width = RandomResizedCrop.get_params(video, list(settings.scale), aspects)
    if settings.rand_augment:
        crop = Box(top, left, top + height, left + width)
        frames = rand_augment(video.permute(1, 2, 3, 0).numpy(), settings.rand_augment, operations, crop)
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)
    else:
        video = video[..., top : top + height, left : left + width]
    video = _resize(video, side)
    if coin < settings.flip * 2**31:
        video = functional.horizontal_flip(video)
    return _erase(video, settings.erase, filled)


def _erase(video: Tensor, probability: float, seed: int) -> Tensor:
    """Fill a box with noise, the same box in all frames. timm's random erasing draws the box."""
    kept = torch.ones(1, *video.shape[2:])
    with library_draws(seed):
        RandomErasing(probability, mode="const", device="cpu")(kept)
        erased = kept[0] == 0
        noise = torch.randn(*video.shape[:2], int(erased.sum()))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    pixels = 255 * (mean + deviation * noise)
    video = video.clone()
    video[..., erased] = pixels.round().clamp(0, 255).to(torch.uint8)
    return video


# ----------------------------------------------------------------------------------------------------------------------
# Clips with boxes (VideoMAE's recipe for AVA)


class BoxAugment(Settings):
    """Augmentation of a clip with boxes."""

    short_side: tuple[int, int] = Field((256, 256), description="range of the short side before the crop, in pixels")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a mirrored clip; 0 if left and right are classes")
    colour: tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.1, 0.055), description="strengths of brightness, contrast, saturation and hue"
    )
    outward: tuple[float, float] = Field(
        (0.2, 0.1), description="how far the edges of a box move out, relative to its width and height"
    )
    inward: tuple[float, float] = Field((0.1, 0.05), description="how far they move in")


def augment_scene(video: Tensor, boxes: Tensor, side: Side, settings: BoxAugment, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, crop, flip and color-jitter a clip with its boxes.

    Clip uint8 `(C, T, H, W)`, boxes `(n, 4)` in [0, 1] -> clip `(C, T, height, width)`, boxes `(m, 4)` in its pixels, and their
    rows in the input, int64 `(m,)`.

    The crop contains the middle of a random box, so a clip loses all its people only if that box is smaller than a pixel. Boxes
    are clipped to the crop. Those smaller than a pixel are removed, and the edges of the others are jittered.
    """
    with library_draws(seed):
        low, high = settings.short_side
        video = to_short_side(video, int(torch.randint(low, high + 1, ())))
        height, width = video.shape[-2:]
        size = torch.tensor([width, height] * 2)
        placed = BoundingBoxes(boxes * size, format="XYXY", canvas_size=(height, width))
        middle = placed[torch.randint(len(boxes), ())].view(2, 2).mean(0)
        tall, wide = height_width(side)
        left, top = (
            _crop_start(float(at), extent, length)
            for at, extent, length in zip(middle, (width, height), (wide, tall), strict=True)
        )
        video, placed = (functional.crop(value, top, left, tall, wide) for value in (video, placed))
        if torch.rand(()) < settings.flip:
            video, placed = (functional.horizontal_flip(value) for value in (video, placed))
        video = ColorJitter(*settings.colour)(video.transpose(0, 1)).transpose(0, 1)
        placed, kept = functional.sanitize_bounding_boxes(placed, min_size=1.0)
        boxes = placed.as_subclass(Tensor)
        sizes, outward, inward = boxes[:, 2:] - boxes[:, :2], torch.tensor(settings.outward), torch.tensor(settings.inward)
        first, last = (torch.rand(len(boxes), 2) * (outward + inward) for _ in range(2))
        boxes = torch.cat([boxes[:, :2] + (first - outward) * sizes, boxes[:, 2:] + (last - inward) * sizes], 1)
        return video, boxes.clamp(torch.zeros(4), torch.tensor([wide, tall] * 2, dtype=boxes.dtype)), kept.nonzero().flatten()


def to_short_side(video: Tensor, short_side: int) -> Tensor:
    """Resize a clip, uint8 `(C, T, H, W)`, to a short side, keeping the aspect ratio."""
    return functional.resize(video.transpose(0, 1), [short_side], antialias=True).transpose(0, 1)


def enlarged(boxes: Tensor, wider: float, taller: float) -> Tensor:
    """Grow boxes `(n, 4)` in [0, 1] by fractions of their width and height, clipped to the frame."""
    growth = (boxes[:, 2:] - boxes[:, :2]) * torch.tensor([wider, taller]) / 2
    return torch.cat([boxes[:, :2] - growth, boxes[:, 2:] + growth], 1).clamp(0, 1)


def _crop_start(middle: float, extent: int, length: int) -> int:
    """Draw the start of a crop of a length inside `extent` that contains `middle`."""
    low, high = max(0, int(middle) - length + 1), min(int(middle), extent - length)
    return low + int(torch.randint(max(1, high - low + 1), ()))
