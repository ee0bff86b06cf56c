"""Units of a stage's cost: the work by the resource that limits it, and counts that several kinds of stages share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from vmae_lab.data.dataset import DataSettings
from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts, training_macs
from vmae_lab.models.sizes import ClipShape, ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.settings import TrainSettings

BACKWARD = 3  # forward and backward together, in forward passes
# Seconds of one quiet core (AMD EPYC, November 2026).
CLIP_S = 2.5e-4  # to read a decoded clip, whatever its size
CROP_PIXEL_S = 9e-9  # per pixel of a clip that a loader process crops, stacks and sends
RESIZE_PIXEL_S = 21e-9  # per pixel of a clip that is also resized
AUGMENT_PIXEL_S = 1.1e-7  # per pixel of a clip that RandAugment changes frame by frame: 85 ms at 16 x 224 x 224
DECODE_S = 0.05  # to decode a file of 320 x 240 pixels and cut it (reports/LOG.md, 2026-11-23); 0.4 at 1280 x 720


@dataclass(frozen=True)
class Work:
    """What a stage computes: multiply-accumulates of training, of predictions (float32) and of closed-form readouts (float64),
    layers x optimiser steps, and seconds of CPU work in loader processes and in the stage's own process.
    """

    training: float = 0.0
    prediction: float = 0.0
    readout: float = 0.0
    layer_steps: int = 0
    loading_s: float = 0.0
    own_s: float = 0.0


@cache
def token_counts(masks: MaskSettings, clip: ClipShape) -> TokenCounts:
    return TokenCounts.of(masks, clip)


def step_macs(model: ModelSettings, masks: MaskSettings, batch_size: int) -> float:
    """Multiply-accumulates of one pre-training step, forward and backward, with only the visible cubes embedded."""
    counts = token_counts(masks, model.clip)
    return batch_size * training_macs(model.dimensions, model.clip, counts.visible, counts.decoded)


def ridge_macs(rows: int, columns: int, others: int, classes: int) -> float:
    """Multiply-accumulates of a ridge classifier: its Gram or covariance matrix, eigenvectors, and predictions."""
    least = min(rows, columns)
    return rows * columns * least + 10 * least**3 + (rows + others) * columns * classes


def count_parameters(build: Callable[[], nn.Module]) -> int:
    """Parameters of a model, which is built without memory for its weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@cache
def parameter_count(model: ModelSettings) -> int:
    """Parameters of the whole autoencoder. Its fused qkv bias has a part for k that the official layout leaves out."""
    return count_parameters(lambda: VideoMAE(model.dimensions, model.clip))


def loading_seconds(training: TrainSettings, model: ModelSettings, data: DataSettings) -> float:
    """CPU seconds of the batches of a whole training."""
    sizes = {round(scale * data.resident_side) for scale in data.crop_scales}
    pixels = model.frames * model.side**2
    per_sample = CLIP_S + pixels * (RESIZE_PIXEL_S if data.lists or sizes != {model.side} else CROP_PIXEL_S)
    if data.lists:
        per_sample += DECODE_S / getattr(training, "repeats", 1)
    if getattr(training, "augment", None):
        per_sample += AUGMENT_PIXEL_S * pixels
    return training.steps * training.batch_size * per_sample


def reading_seconds(model: ModelSettings, data: DataSettings) -> float:
    """CPU seconds of one clip of an evaluation, which its own process reads."""
    resized = data.lists or data.resident_side != model.side
    return CLIP_S + (model.frames * model.side**2 * RESIZE_PIXEL_S if resized else 0.0)
