"""RandAugment of whole clips equals timm's RandAugment of each frame."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment

from vmae_lab.data.rand_augment import FILL, Affine, Box, FrameByFrame, LookUp, Sharpen, draw_operations, rand_augment
from vmae_lab.data.transforms import FinetuneAugment, finetune_augment
from vmae_lab.utils.seeding import library_draws

RECIPE = "rand-m7-n4-mstd0.5-inc1"
HEIGHT, WIDTH = 48, 70
FRAME = Box(0, 0, HEIGHT, WIDTH)
CROP = Box(9, 17, 40, 60)
# Operations whose result equals Pillow's exactly. Others may round to the next level.
EXACT = set(auto_augment._RAND_INCREASING_TRANSFORMS) - {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


def smooth_clip(frames: int = 3) -> np.ndarray:
    """Return a clip with a black border, a flat area, gradients and noise: uint8 `(T, H, W, 3)`."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    clip = np.stack([rows * 4, columns * 3, rows + columns], -1)[None] + rng.integers(0, 40, (frames, HEIGHT, WIDTH, 3))
    clip[:, 20:30, 20:50] = 100
    clip[:, :3] = 0
    return clip.clip(0, 255).astype(np.uint8)


def frame_by_frame(clip: np.ndarray, configuration: str, seed: int) -> np.ndarray:
    """Apply timm's transform to each frame with the same seed."""
    options = {"translate_const": int(min(clip.shape[1:3]) * 0.45), "img_mean": FILL}
    transform = auto_augment.rand_augment_transform(configuration, options)
    frames = []
    for frame in clip:
        with library_draws(seed):
            frames.append(np.asarray(transform(Image.fromarray(frame))))
    return np.stack(frames)


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("name", sorted({*auto_augment.NAME_TO_OP} - {"GaussianBlurRand"}))
def test_each_operation_equals_pillow(name, resample, monkeypatch):
    """Also for a part of the frame only. Pillow 13 refuses strengths at which posterize keeps no bit."""
    clip = smooth_clip()
    monkeypatch.setattr(auto_augment, "_RAND_INCREASING_TRANSFORMS", [name])
    monkeypatch.setattr(auto_augment, "_RANDOM_INTERPOLATION", (resample,))
    for seed in range(12):
        configuration = f"rand-m{3 + seed % 7}-n1-p1-mstd0.1-inc1"
        expected = frame_by_frame(clip, configuration, seed)
        for part in (FRAME, CROP):
            found = rand_augment(clip, configuration, seed, part)
            off = differences(found, part.cut(expected, FRAME))
            assert off.max() <= (name not in EXACT), f"{configuration}, {part}"
            assert (off > 0).mean() < 5e-3


@pytest.mark.parametrize(
    "configuration", [RECIPE, "rand-m9-n3-mstd101-inc1", "rand-m5-n3-p1-t3a", "rand-m8-n2-p1-mstd0.5-tweights"]
)
def test_sequences_of_operations_equal_timm(configuration):
    """A difference of one level before posterize or solarize can become large, in very few pixels."""
    clip, share = smooth_clip(), []
    for seed in range(60):
        with library_draws(seed):
            top, left = random.randrange(0, 20), random.randrange(0, 40)
            part = Box(top, left, random.randrange(top + 5, HEIGHT + 1), random.randrange(left + 5, WIDTH + 1))
        expected = part.cut(frame_by_frame(clip, configuration, seed), FRAME)
        off = differences(rand_augment(clip, configuration, seed, part), expected)
        assert (off > 1).mean() < 5e-3, f"seed {seed}"
        share.append((off > 0).mean())
    assert np.mean(share) < 1e-3
    assert np.mean(np.equal(share, 0)) > 0.5


def test_the_draws_are_those_of_timm():
    """With the seed of a clip, timm draws the same operations in the same order. Fast versions replace all slow ones."""
    kinds = {type(operation) for seed in range(80) for operation in draw_operations(RECIPE, (WIDTH, HEIGHT), seed)}
    assert kinds == {Affine, FrameByFrame, LookUp, Sharpen}
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    draw_operations(RECIPE, (WIDTH, HEIGHT), 5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_translation_out_of_the_frame_gives_the_fill_color():
    outside = Affine((WIDTH, HEIGHT), (1, 0, 500, 0, 1, 0), Image.Resampling.BICUBIC, (1, 2, 3))
    source = outside.source(CROP, FRAME)
    assert source.area > 0
    assert (outside(source.cut(smooth_clip(), FRAME), source, CROP) == [1, 2, 3]).all()


@pytest.mark.parametrize("channels_last", [True, False])
def test_augmentation_does_not_change_its_input(channels_last):
    clip = torch.from_numpy(smooth_clip()).permute(3, 0, 1, 2)
    clip = clip if channels_last else clip.contiguous()
    before = clip.clone()
    for seed in range(12):
        whole = FinetuneAugment(erase=1.0, scale=(1.0, 1.0), aspect=(1.0, 1.0))
        finetune_augment(clip, HEIGHT, whole, seed)
        assert torch.equal(clip, before)
