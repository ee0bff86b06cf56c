"""The cost of a stage: its work by the resource that limits it, and counts that several kinds of stages share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.motionworld.writer import WorldSettings, cache_home
from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts, training_macs
from vmae_lab.models.sizes import ClipShape, ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.settings import TrainSettings
from vmae_lab.utils.shapes import height_width

BACKWARD = 3  # cost of forward and backward together, in forward passes
# CPU seconds on one idle core (AMD EPYC, November 2026).
CLIP_S = 2.5e-4  # reading a decoded clip of any size
CROP_PIXEL_S = 9e-9  # per pixel of a clip that a loader process crops, stacks and sends
RESIZE_PIXEL_S = 21e-9  # per pixel of a clip that is also resized
# Per pixel of a clip, for `finetune_augment`: 16 ms at 16 x 224 x 224, from frames of 256 x 340 pixels. Mean CPU time of 80
# clips in one thread. Unlike the others, this value was measured while other programs were running.
AUGMENT_PIXEL_S = 2.0e-8
FILE_PIXEL_BYTES = 0.05  # per pixel of an mp4 file of the embedded data at 64 pixels; less at larger sides
DECODE_S = 0.05  # decoding a clip from a file of 320 x 240 pixels (reports/LOG.md, 2026-11-23); 0.4 at 1280 x 720


@dataclass(frozen=True)
class Work:
    """What a stage computes.

    `training`, `prediction` and `readout` (closed form, float64) are multiply-accumulates. `layer_steps` is layers x optimizer
    steps. `loading_s`, `reading_s` and `own_s` are CPU seconds: of the loader processes in training and in evaluation, and of
    the stage's own process.
    """

    training: float = 0.0
    prediction: float = 0.0
    readout: float = 0.0
    layer_steps: int = 0
    loading_s: float = 0.0
    reading_s: float = 0.0
    own_s: float = 0.0


@dataclass(frozen=True)
class EmbeddedVideos:
    """Embedded videos that a stage reads. `decoded_side`: side of the pixels that are also kept decoded; 0 for none."""

    world: WorldSettings
    frames: int
    side: int
    decoded_side: int = 0

    @property
    def count(self) -> int:
        return len(self.world.jobs())

    @property
    def pixels(self) -> int:
        return self.count * self.frames * self.side**2

    @property
    def disk_bytes(self) -> float:
        """About how many bytes the files and the decoded pixels take."""
        return self.pixels * FILE_PIXEL_BYTES + 3 * self.count * self.frames * self.decoded_side**2

    @property
    def written(self) -> bool:
        folder = cache_home() / f"{self.world.prefix}-{self.world.fingerprint}"
        return (folder / f"decoded-{self.decoded_side}.npy" if self.decoded_side else folder).exists()


@cache
def token_counts(masks: MaskSettings, clip: ClipShape) -> TokenCounts:
    return TokenCounts.of(masks, clip)


def step_macs(model: ModelSettings, masks: MaskSettings, batch_size: int) -> float:
    """Return the multiply-accumulates of one pre-training step, forward and backward. Only visible patches are embedded."""
    counts = token_counts(masks, model.clip)
    return batch_size * training_macs(model.dimensions, model.clip, counts.visible, counts.decoded)


def ridge_macs(rows: int, columns: int, others: int, classes: int) -> float:
    """Return the multiply-accumulates of a ridge classifier: Gram or covariance matrix, eigenvectors, and predictions."""
    smaller = min(rows, columns)
    return rows * columns * smaller + 10 * smaller**3 + (rows + others) * columns * classes


def count_parameters(build: Callable[[], nn.Module]) -> int:
    """Return the number of parameters of a model. It is built without memory for its weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@cache
def parameter_count(model: ModelSettings) -> int:
    """Return the number of parameters of encoder and decoder. Unlike the official count, it includes a bias of the keys."""
    return count_parameters(lambda: VideoMAE(model.dimensions, model.clip))


def loading_seconds(training: TrainSettings, model: ModelSettings, data: DataSettings) -> float:
    """Return the CPU seconds that the batches of a whole training take."""
    sizes = {round(scale * data.resident_side) for scale in data.crop_scales}
    pixels = model.frames * math.prod(height_width(model.side))
    per_sample = CLIP_S + pixels * (RESIZE_PIXEL_S if data.lists or sizes != {model.side} else CROP_PIXEL_S)
    if data.lists:
        per_sample += DECODE_S / getattr(training, "repeats", 1)
    if getattr(training, "augment", None):
        per_sample += AUGMENT_PIXEL_S * pixels
    return training.steps * training.batch_size * per_sample


def reading_seconds(model: ModelSettings, data: DataSettings) -> float:
    """Return the CPU seconds to read one clip for evaluation."""
    resized = data.lists or data.resident_side != model.side
    return CLIP_S + (model.frames * math.prod(height_width(model.side)) * RESIZE_PIXEL_S if resized else 0.0)
