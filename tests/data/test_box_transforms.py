"""Clips whose boxes move along: what a box frames before scale, crop and mirror image, it frames after."""

import pytest
import torch

from vmae_lab.data.transforms import BoxAugment, augment_scene, enlarged, to_short_side

STILL = {"flip": 0.0, "colour": (0, 0, 0, 0), "outward": (0, 0), "inward": (0, 0)}
BOXES = torch.tensor([[0.125, 0.25, 0.375, 0.5], [0.625, 0.5, 0.875, 0.75]])


def painted(height: int = 64, width: int = 96) -> torch.Tensor:
    """A clip, black, with the first box in red and the second in blue: uint8 `(3, 4, H, W)`."""
    video = torch.zeros(3, 4, height, width, dtype=torch.uint8)
    for colour, box in zip((0, 2), BOXES, strict=True):
        x1, y1, x2, y2 = (box * torch.tensor([width, height] * 2)).long().tolist()
        video[colour, :, y1:y2, x1:x2] = 255
    return video


def bright(video: torch.Tensor, colour: int) -> list[int]:
    """The box of what is bright in the first frame, in pixels."""
    rows, columns = torch.where(video[colour, 0] > 127)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("short_side", [(64, 64), (48, 56), (80, 100)])
def test_boxes_frame_what_they_framed_before(flip, short_side):
    settings, seen = BoxAugment(**{**STILL, "flip": flip}, short_side=short_side), set()
    for seed in range(30):
        video, boxes, kept = augment_scene(painted(), BOXES, 48, settings, seed)
        assert video.shape == (3, 4, 48, 48)
        assert len(kept) > 0, "the crop shows the middle of one"
        assert boxes.min() >= 0
        assert boxes.max() <= 48
        for box, which in zip(boxes, kept.tolist(), strict=True):
            seen.add(which)
            # Resampling blurs an edge, so that half its brightness may lie a pixel away; slivers are too thin to be bright.
            if min(box[2:] - box[:2]) > 3:
                assert torch.allclose(box, torch.tensor(bright(video, 2 * which)).float(), atol=1.01)
        for which in {0, 1} - set(kept.tolist()):
            assert (video[2 * which] > 127).sum() <= 2 * 4 * 48, "what is left out is not there, or less than a pixel wide"
    assert seen == {0, 1}


def test_the_same_seed_gives_the_same_sample_and_no_generator_is_moved():
    settings = BoxAugment(short_side=(48, 80))
    state = torch.get_rng_state()
    one, other = (augment_scene(painted(), BOXES, 48, settings, 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one[0], augment_scene(painted(), BOXES, 48, settings, 6)[0])


def test_edges_are_jittered_within_their_bounds():
    """Out by at most 20 and 10 % of width and height, in by 10 and 5 %."""
    settings, moved = BoxAugment(**{**STILL, "outward": (0.2, 0.1), "inward": (0.1, 0.05)}, short_side=(64, 64)), []
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    for seed in range(200):
        _, boxes, _ = augment_scene(torch.zeros(3, 2, 64, 64, dtype=torch.uint8), box, 64, settings, seed)
        moved.append((boxes[0] - 16 - torch.tensor([0, 0, 32, 32])) / 32)
    low, high = torch.stack(moved).min(0).values, torch.stack(moved).max(0).values
    bounds = torch.tensor([[-0.2, -0.1, -0.1, -0.05], [0.1, 0.05, 0.2, 0.1]])
    assert (low >= bounds[0]).all()
    assert (high <= bounds[1]).all()
    assert torch.allclose(torch.stack([low, high]), bounds, atol=0.02), "200 draws come near to the bounds"


def test_colours_change_alike_in_all_frames():
    video = torch.full((3, 4, 64, 64), 100, dtype=torch.uint8)
    video[0] = 180
    changed, _, _ = augment_scene(video, BOXES, 64, BoxAugment(**{**STILL, "colour": (0, 0, 0.5, 0.3)}, short_side=(64, 64)), 1)
    assert not torch.equal(changed, video)
    assert all(torch.equal(changed[:, 0], changed[:, frame]) for frame in range(4))


def test_boxes_grow_about_their_middles_and_end_at_the_frame():
    grown = enlarged(torch.tensor([[0.4, 0.4, 0.6, 0.8], [0.0, 0.0, 1.0, 0.5]]), 0.1, 0.05)
    assert torch.allclose(grown, torch.tensor([[0.39, 0.39, 0.61, 0.81], [0.0, 0.0, 1.0, 0.5125]]))


def test_a_clip_is_scaled_to_its_short_side_with_its_shape_kept():
    assert to_short_side(painted(64, 96), 32).shape == (3, 4, 32, 48)
    assert to_short_side(painted(64, 96), 128).shape == (3, 4, 128, 192)
