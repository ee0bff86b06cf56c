"""Crops and augmentation: the same for all frames of a clip, determined by the seed. Boxes move with the pixels."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from vmae_lab.data import transforms
from vmae_lab.data.transforms import (
    BoxAugment,
    FinetuneAugment,
    augment_scene,
    centre_crop,
    crops_along,
    enlarged,
    finetune_augment,
    multi_scale_crop,
    to_short_side,
)

PLAIN = FinetuneAugment(rand_augment=None, scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0, erase=0.0)


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 255, (3, 1, height, width), dtype=np.uint8))


def still(frames: int = 6) -> torch.Tensor:
    return picture().expand(-1, frames, -1, -1).contiguous()


@pytest.mark.parametrize("seed", range(12))
def test_all_frames_are_transformed_alike(seed):
    """A clip of equal frames stays a clip of equal frames."""
    clip = finetune_augment(still(), 24, FinetuneAugment(erase=0.0), seed)
    assert clip.shape == (3, 6, 24, 24)
    assert clip.dtype == torch.uint8
    assert (clip == clip[:, :1]).all()


def test_draws_depend_only_on_the_seed_and_restore_generators():
    settings = FinetuneAugment()
    first = finetune_augment(still(), 24, settings, 5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert torch.equal(finetune_augment(still(), 24, settings, 5), first)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not all(torch.equal(finetune_augment(still(), 24, settings, seed), first) for seed in range(4))


def test_switching_off_a_step_does_not_change_others():
    """Without erasing, crop and flip are the same, so that ablations differ in one thing."""
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
        assert (inside > 0.9).all(), "a filled box in all frames"
        assert not torch.equal(clip[:, 0], clip[:, 1])
        assert 0.02 <= boxes.any(0).float().mean() < 0.45
    assert found == 6


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_all_frames_are_mirrored_or_none(flip):
    square = picture(40, 40)
    clip = finetune_augment(square, 40, PLAIN.model_copy(update={"flip": flip}), 0)
    assert torch.equal(clip, square.flip(-1) if flip else square)


def coordinates(height: int, width: int) -> torch.Tensor:
    """Return a picture with the row in the first color and the column in the second: uint8 `(3, 1, H, W)`."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows])[:, None].to(torch.uint8)


def test_multi_scale_crops_are_corners_and_centers_at_adjacent_scales(monkeypatch):
    """From 40 x 60 pixels at scales 1, 0.75 and 0.5: sides of 40, 30 or 20, at most one step apart, at five positions."""
    monkeypatch.setattr(transforms, "_resize", lambda video, side: video)
    met = set()
    for seed in range(600):
        crop = multi_scale_crop(coordinates(40, 60), 16, np.random.default_rng(seed), (1.0, 0.75, 0.5))
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


def test_a_center_crop_is_the_square_in_the_middle():
    for height, width in ((20, 30), (30, 20)):
        crop = centre_crop(coordinates(height, width), 20)
        assert crop[0, 0, :, 0].tolist() == list(range((height - 20) // 2, (height - 20) // 2 + 20))
        assert crop[1, 0, 0].tolist() == list(range((width - 20) // 2, (width - 20) // 2 + 20))


@pytest.mark.parametrize(("height", "width", "side"), [(40, 40, 24), (64, 64, 40), (48, 70, 32), (33, 41, 48), (24, 24, 24)])
def test_crops_do_not_depend_on_the_memory_layout(monkeypatch, height, width, side):
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
        first, second = (multi_scale_crop(v, side, np.random.default_rng(seed), (1.0, 0.9, 0.8)) for v in (video, innermost))
        assert torch.equal(first, second)
    assert len(sizes) == 7


# ----------------------------------------------------------------------------------------------------------------------
# Clips with boxes: a box frames the same content before and after scale, crop and flip

STILL = {"flip": 0.0, "colour": (0, 0, 0, 0), "outward": (0, 0), "inward": (0, 0)}
BOXES = torch.tensor([[0.125, 0.25, 0.375, 0.5], [0.625, 0.5, 0.875, 0.75]])


def painted(height: int = 64, width: int = 96) -> torch.Tensor:
    """Return a black clip with the first box in red and the second in blue: uint8 `(3, 4, H, W)`."""
    video = torch.zeros(3, 4, height, width, dtype=torch.uint8)
    for colour, box in zip((0, 2), BOXES, strict=True):
        x1, y1, x2, y2 = (box * torch.tensor([width, height] * 2)).long().tolist()
        video[colour, :, y1:y2, x1:x2] = 255
    return video


def bright(video: torch.Tensor, colour: int) -> list[int]:
    """Return the box of bright pixels in the first frame."""
    rows, columns = torch.where(video[colour, 0] > 127)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("short_side", [(64, 64), (48, 56), (80, 100)])
def test_boxes_move_with_the_pixels(flip, short_side):
    settings, seen = BoxAugment(**{**STILL, "flip": flip}, short_side=short_side), set()
    for seed in range(30):
        video, boxes, kept = augment_scene(painted(), BOXES, 48, settings, seed)
        assert video.shape == (3, 4, 48, 48)
        assert len(kept) > 0, "the crop contains the middle of a box"
        assert boxes.min() >= 0
        assert boxes.max() <= 48
        for box, which in zip(boxes, kept.tolist(), strict=True):
            seen.add(which)
            # Resampling blurs edges by about a pixel. Very thin boxes are not bright.
            if min(box[2:] - box[:2]) > 3:
                assert torch.allclose(box, torch.tensor(bright(video, 2 * which)).float(), atol=1.01)
        for which in {0, 1} - set(kept.tolist()):
            assert (video[2 * which] > 127).sum() <= 2 * 4 * 48, "a removed box is outside, or less than a pixel wide"
    assert seen == {0, 1}


def test_scene_augmentation_depends_only_on_the_seed_and_restores_generators():
    settings = BoxAugment(short_side=(48, 80))
    state = torch.get_rng_state()
    first, second = (augment_scene(painted(), BOXES, 48, settings, 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], augment_scene(painted(), BOXES, 48, settings, 6)[0])


def test_edges_are_jittered_within_their_bounds():
    """Edges move out by at most 20% and 10% of width and height, in by 10% and 5%."""
    settings, moved = BoxAugment(**{**STILL, "outward": (0.2, 0.1), "inward": (0.1, 0.05)}, short_side=(64, 64)), []
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    for seed in range(200):
        _, boxes, _ = augment_scene(torch.zeros(3, 2, 64, 64, dtype=torch.uint8), box, 64, settings, seed)
        moved.append((boxes[0] - 16 - torch.tensor([0, 0, 32, 32])) / 32)
    low, high = torch.stack(moved).min(0).values, torch.stack(moved).max(0).values
    bounds = torch.tensor([[-0.2, -0.1, -0.1, -0.05], [0.1, 0.05, 0.2, 0.1]])
    assert (low >= bounds[0]).all()
    assert (high <= bounds[1]).all()
    assert torch.allclose(torch.stack([low, high]), bounds, atol=0.02), "200 draws are close to the bounds"


def test_colors_change_alike_in_all_frames():
    video = torch.full((3, 4, 64, 64), 100, dtype=torch.uint8)
    video[0] = 180
    changed, _, _ = augment_scene(video, BOXES, 64, BoxAugment(**{**STILL, "colour": (0, 0, 0.5, 0.3)}, short_side=(64, 64)), 1)
    assert not torch.equal(changed, video)
    assert all(torch.equal(changed[:, 0], changed[:, frame]) for frame in range(4))


def test_boxes_grow_around_their_middle_inside_the_frame():
    grown = enlarged(torch.tensor([[0.4, 0.4, 0.6, 0.8], [0.0, 0.0, 1.0, 0.5]]), 0.1, 0.05)
    assert torch.allclose(grown, torch.tensor([[0.39, 0.39, 0.61, 0.81], [0.0, 0.0, 1.0, 0.5125]]))


def test_a_clip_is_scaled_to_its_short_side():
    assert to_short_side(painted(64, 96), 32).shape == (3, 4, 32, 48)
    assert to_short_side(painted(64, 96), 128).shape == (3, 4, 128, 192)


# --- Clips that are not square ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 56), (56, 40), (48, 48), (24, 96)])
@pytest.mark.parametrize("side", [(24, 32), (32, 24), 24])
def test_a_crop_is_the_largest_part_with_the_aspect_of_the_clip(height, width, side):
    """The frame, resized until it just covers the clip, then cut in the middle: nothing is stretched."""
    tall, wide = side if isinstance(side, tuple) else (side, side)
    scale = max(tall / height, wide / width)
    crop = centre_crop(coordinates(height, width), side)
    assert crop.shape[-2:] == (tall, wide)
    steps = (crop[0, 0, 1:-1].float().diff(dim=0).mean(), crop[1, 0, :, 1:-1].float().diff(dim=1).mean())
    assert all(float(step) == pytest.approx(1 / scale, rel=0.06) for step in steps), "both directions are scaled alike"
    middle = (crop[0].float().mean().item(), crop[1].float().mean().item())
    assert middle == pytest.approx(((height - 1) / 2, (width - 1) / 2), abs=0.8)


@pytest.mark.parametrize(("height", "width", "axis"), [(40, 56, 1), (40, 44, 0), (56, 40, 0)])
def test_crops_touch_the_edges_in_the_direction_that_is_left_over(height, width, axis):
    """For 24 x 32 clips, a frame of 40 x 44 has rows left over, although it is wider than tall."""
    first, middle, last = crops_along(coordinates(height, width), (24, 32), 3)
    assert first.shape == (3, 1, 24, 32)
    low, high = first[axis].min(), last[axis].max()
    assert (int(low), int(high)) == pytest.approx((0, (height, width)[axis] - 1), abs=1)
    assert torch.equal(first[1 - axis], last[1 - axis]), "the other direction is whole"
    centered = centre_crop(coordinates(height, width), (24, 32))
    assert (middle.int() - centered.int()).abs().max() <= 1, "an odd number of pixels is left over at two sides"


def test_random_crops_of_wide_clips():
    for seed in range(20):
        crop = multi_scale_crop(picture(), (24, 32), np.random.default_rng(seed))
        assert crop.shape[-2:] == (24, 32)
    full = multi_scale_crop(picture(30, 40), (24, 32), np.random.default_rng(0), scales=(1.0,))
    assert torch.equal(full, centre_crop(picture(30, 40), (24, 32))), "the whole frame has the aspect of the clip"
    whole = finetune_augment(picture(30, 40), (24, 32), PLAIN, 0)
    assert torch.equal(whole, full), "aspect 1 is that of the clip"


def test_boxes_stay_inside_wide_crops():
    settings = BoxAugment(short_side=(40, 44), outward=(0.0, 0.0), inward=(0.0, 0.0))
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.6, 0.1, 0.95, 0.5]])
    for seed in range(20):
        clip, found, rows = augment_scene(still(), boxes, (24, 32), settings, seed)
        assert clip.shape == (3, 6, 24, 32)
        assert len(found) == len(rows) >= 1
        assert (found >= 0).all()
        assert (found <= torch.tensor([32, 24, 32, 24])).all()
