"""Crops and colours of whole clips, as uint8: the same for all frames."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from vmae_lab.utils.seeding import library_draws

SCALES = (1.0, 0.875, 0.75, 0.66)


class FinetuneAugment(BaseModel):
    """What a clip goes through in fine-tuning (VideoMAE V2's recipe; mixup and cutmix are of a batch, not of a clip)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rand_augment: str | None = Field("rand-m7-n4-mstd0.5-inc1", description="timm's words for RandAugment; none if null")
    scale: tuple[float, float] = Field((0.08, 1.0), description="part of the frame's area that a crop keeps")
    aspect: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height of a crop")
    flip: float = Field(0.5, ge=0, le=1, description="how often a clip is mirrored; 0 where left and right are classes (SSv2)")
    erase: float = Field(0.25, ge=0, le=1, description="how often a box is filled with noise")


def finetune_augment(video: Tensor, side: int, settings: FinetuneAugment, seed: int) -> Tensor:
    """RandAugment, random resized crop, mirror image, erased box: uint8 `(C, T, H, W)` -> `(C, T, side, side)`.

    Every frame gets the same operations at the same strength, the same crop and box. The box's noise is normal around the
    mean colour, as the reference's is after normalisation, cut to what uint8 holds.
    """
    with library_draws(seed):
        operations, coin, filled = (int(value) for value in torch.randint(2**31, (3,)))
        if settings.rand_augment:
            video = _rand_augment(video, settings.rand_augment, operations)
        top, left, height, width = RandomResizedCrop.get_params(video, list(settings.scale), list(settings.aspect))
        video = _resize(video[..., top : top + height, left : left + width], side)
        if coin < settings.flip * 2**31:
            video = functional.horizontal_flip(video)
    return _erase(video, settings.erase, filled)


def _rand_augment(video: Tensor, words: str, seed: int) -> Tensor:
    """timm's RandAugment, drawn anew for every frame from the same seed, and so the same for all."""
    colour = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
    transform = rand_augment_transform(words, {"translate_const": int(min(video.shape[-2:]) * 0.45), "img_mean": colour})
    frames = []
    for frame in video.permute(1, 2, 3, 0).numpy():
        with library_draws(seed):
            frames.append(np.asarray(transform(Image.fromarray(frame))))
    return channels_first(np.stack(frames))


def _erase(video: Tensor, probability: float, seed: int) -> Tensor:
    """timm's random erasing in pixel mode; colours and frames are its channels, so that they share the box."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    marked = torch.full((video[:, :, 0, 0].numel(), *video.shape[-2:]), torch.nan)  # what is not erased stays unmarked
    with library_draws(seed):
        noise = RandomErasing(probability, mode="pixel", device="cpu")(marked).view(video.shape)
    pixels = (255 * (mean + deviation * noise)).round().clamp(0, 255)
    return torch.where(noise.isnan(), video, pixels.nan_to_num().to(torch.uint8))


def multi_scale_crop(video: Tensor, side: int, rng: np.random.Generator, scales: Sequence[float] = SCALES) -> Tensor:
    """One multi-scale corner or centre crop, resized: uint8 `(..., H, W)` -> `(..., side, side)`, as the official code crops.

    Height and width are drawn from `scales` of the short side, at most one step apart in the list; the place is one of
    the four corners and the centre.
    """
    height, width = video.shape[-2:]
    first = int(rng.integers(len(scales)))
    second = min(max(first + int(rng.integers(-1, 2)), 0), len(scales) - 1)
    tall, wide = (max(1, round(min(height, width) * scales[i])) for i in (first, second))
    down, right = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))[rng.integers(5)]
    top, left = int((height - tall) * down), int((width - wide) * right)
    return _resize(video[..., top : top + tall, left : left + wide], side)


def centre_crop(video: Tensor, side: int) -> Tensor:
    """The largest square in the middle, resized: uint8 `(..., H, W)` -> `(..., side, side)`."""
    short = min(video.shape[-2:])
    return _resize(functional.center_crop(video, [short, short]), side)


def crops_along(video: Tensor, side: int, count: int) -> list[Tensor]:
    """`count` squares of the short side, spread evenly along the long one, resized: uint8 `(..., side, side)` each.

    The first and the last touch the edges, as in the official test; one is the middle. Of a square picture all are the same.
    """
    if count == 1:
        return [centre_crop(video, side)]
    height, width = video.shape[-2:]
    short, room = min(height, width), abs(height - width)
    places = [room * crop // (count - 1) for crop in range(count)]
    corners = [(place, 0) if height > width else (0, place) for place in places]
    return [_resize(video[..., top : top + short, left : left + short], side) for top, left in corners]


def squash(video: Tensor, side: int) -> Tensor:
    """The whole frame, its shape given up for a square: uint8 `(..., H, W)` -> `(..., side, side)`."""
    return _resize(video, side)


def _resize(video: Tensor, side: int) -> Tensor:
    if video.shape[-2:] == (side, side):
        return video
    if video.stride(-4) == 1:  # colours innermost, as decoded: PyTorch resizes that three times as fast
        return functional.resize_image(video.transpose(-4, -3), [side, side]).transpose(-4, -3)
    return functional.resize_image(video.contiguous(), [side, side])


def channels_first(frames: np.ndarray) -> Tensor:
    """Decoded frames to a clip: uint8 `(..., T, H, W, C)` -> `(..., C, T, H, W)`."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -4)))
