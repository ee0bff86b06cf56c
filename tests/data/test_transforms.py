"""Fine-tuning's augmentation: one draw for all frames of a clip, from a seed alone."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from vmae_lab.data import transforms
from vmae_lab.data.transforms import FinetuneAugment, centre_crop, finetune_augment, multi_scale_crop

PLAIN = FinetuneAugment(rand_augment=None, scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0, erase=0.0)


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 255, (3, 1, height, width), dtype=np.uint8))


def still(frames: int = 6) -> torch.Tensor:
    return picture().expand(-1, frames, -1, -1).contiguous()


@pytest.mark.parametrize("seed", range(12))
def test_all_frames_go_through_the_same(seed):
    """A clip that stands still comes out standing still, whatever was drawn."""
    clip = finetune_augment(still(), 24, FinetuneAugment(erase=0.0), seed)
    assert clip.shape == (3, 6, 24, 24)
    assert clip.dtype == torch.uint8
    assert (clip == clip[:, :1]).all()


def test_draws_are_of_the_seed_alone_and_leave_no_trace():
    settings = FinetuneAugment()
    first = finetune_augment(still(), 24, settings, 5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert torch.equal(finetune_augment(still(), 24, settings, 5), first)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not all(torch.equal(finetune_augment(still(), 24, settings, seed), first) for seed in range(4))


def test_a_part_drawn_more_or_less_moves_no_other():
    """Where erasing is switched off, crop and mirror image stay what they were: ablations differ in one thing."""
    for seed in range(8):
        on, off = (finetune_augment(still(), 24, FinetuneAugment(erase=erase), seed) for erase in (1.0, 0.0))
        same = (on == off).all(0).all(0)
        assert 0.3 < same.float().mean() < 1.0


def test_the_erased_box_is_the_same_in_every_frame_and_its_noise_is_not():
    black = torch.zeros(3, 5, 40, 40, dtype=torch.uint8)
    found = 0
    for seed in range(6):
        clip = finetune_augment(black, 40, PLAIN.model_copy(update={"erase": 1.0}), seed)
        boxes = (clip > 0).any(0)
        if not boxes.any():
            continue
        found += 1
        rows, columns = (torch.nonzero(boxes.any(0).any(axis)).flatten() for axis in (1, 0))
        inside = (clip[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 0).any(0).float().mean(dim=(1, 2))
        assert (inside > 0.9).all(), "a filled box, in all frames"
        assert not torch.equal(clip[:, 0], clip[:, 1])
        assert 0.02 <= boxes.any(0).float().mean() < 0.45
    assert found == 6


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_mirroring_is_all_or_nothing(flip):
    square = picture(40, 40)
    clip = finetune_augment(square, 40, PLAIN.model_copy(update={"flip": flip}), 0)
    assert torch.equal(clip, square.flip(-1) if flip else square)


def places(height: int, width: int) -> torch.Tensor:
    """A picture that tells its rows in the first colour and its columns in the second: uint8 `(3, 1, H, W)`."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows])[:, None].to(torch.uint8)


def test_multi_scale_crops_are_corners_and_centres_of_neighbouring_scales(monkeypatch):
    """Of 40 x 60 pixels at scales 1, .75 and .5 of the short side: 40, 30 or 20, at most one step apart, at five places."""
    monkeypatch.setattr(transforms, "_resize", lambda video, side: video)
    met = set()
    for seed in range(600):
        crop = multi_scale_crop(places(40, 60), 16, np.random.default_rng(seed), (1.0, 0.75, 0.5))
        met.add((*crop.shape[-2:], int(crop[0, 0, 0, 0]), int(crop[1, 0, 0, 0])))
    sizes = [(40, 40), (40, 30), (30, 40), (30, 30), (30, 20), (20, 30), (20, 20)]
    expected = {
        (tall, wide, top, left)
        for tall, wide in sizes
        for top, left in (
            (0, 0), (0, 60 - wide), (40 - tall, 0), (40 - tall, 60 - wide), ((40 - tall) // 2, (60 - wide) // 2)
        )
    }  # fmt: skip
    assert met == expected


def test_a_centre_crop_is_the_square_in_the_middle():
    for height, width in ((20, 30), (30, 20)):
        crop = centre_crop(places(height, width), 20)
        assert crop[0, 0, :, 0].tolist() == list(range((height - 20) // 2, (height - 20) // 2 + 20))
        assert crop[1, 0, 0].tolist() == list(range((width - 20) // 2, (width - 20) // 2 + 20))


@pytest.mark.parametrize(("height", "width", "side"), [(40, 40, 24), (64, 64, 40), (48, 70, 32), (33, 41, 48), (24, 24, 24)])
def test_crops_of_any_memory_layout_are_plain_resized_frames(monkeypatch, height, width, side):
    video = torch.randint(0, 256, (3, 4, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    innermost = video.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    resized, sizes = transforms._resize, set()

    def checked(crop: torch.Tensor, side: int) -> torch.Tensor:
        found = resized(crop, side)
        sizes.add(crop.shape[-2:])
        frames = [functional.resize(frame.contiguous(), [side, side], antialias=True) for frame in crop.unbind(1)]
        assert torch.equal(found, torch.stack(frames, 1))
        return found

    monkeypatch.setattr(transforms, "_resize", checked)
    for seed in range(60):
        one, other = (multi_scale_crop(v, side, np.random.default_rng(seed), (1.0, 0.9, 0.8)) for v in (video, innermost))
        assert torch.equal(one, other)
    assert len(sizes) == 7
