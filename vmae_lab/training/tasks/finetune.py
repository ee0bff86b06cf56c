"""Supervised fine-tuning of the encoder with a class head (VideoMAE V2's recipe)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from pydantic import Field
from timm.data import FastCollateMixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from vmae_lab.data.corrupt_videos import CorruptVideos, read_or_replace
from vmae_lab.data.dataset import Clips, DataSettings
from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.eval_clips import BATCH, batches_of, evaluated_clips
from vmae_lab.data.frame_sampling import Dense, Sparse
from vmae_lab.data.samplers import EpochOrder
from vmae_lab.data.transforms import FinetuneAugment, finetune_augment, multi_scale_crop
from vmae_lab.evaluation.inference import DEFAULT, Inference, gathered
from vmae_lab.models.checkpoints import State, load_weights, part_of
from vmae_lab.models.classifier import Readout, VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import Batch, RowSize
from vmae_lab.training.settings import TrainSettings
from vmae_lab.training.task import Task
from vmae_lab.utils.counts import counted
from vmae_lab.utils.precision import autocast
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.seeding import derive, library_draws, numpy_generator
from vmae_lab.utils.settings import Settings
from vmae_lab.utils.shapes import short_side_for

Sampling = Literal["dense", "sparse"]
Keep = Literal["last", "best"]


class MixSettings(Settings):
    """Mixup or cutmix, one of them per batch: mixes pairs of clips and their labels (VideoMAE V2's recipe).

    mixup (arXiv 1710.09412) averages two clips with weights drawn from Beta(mixup, mixup). cutmix (arXiv 1905.04899) pastes a
    box of one clip, the same in all frames, into the other.
    """

    mixup: float = Field(0.8, ge=0, description="alpha of the Beta distribution; 0: no mixup")
    cutmix: float = Field(1.0, ge=0, description="alpha for the area of cutmix's box; 0: no cutmix")
    probability: float = Field(1.0, gt=0, le=1, description="probability of mixing a batch")
    switch: float = Field(0.5, ge=0, le=1, description="probability of cutmix instead of mixup if both are on")

    def model_post_init(self, _context: object) -> None:
        if not (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix are both 0: set mix to null for no mixing")


class FinetuneSettings(TrainSettings):
    """Settings of the paper's fine-tuning recipe."""

    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = Field(0.75, gt=0, le=1)
    readout: Readout = "mean"
    drop_path: float = Field(0.1, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the head's linear layer")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    head_init_scale: float = Field(0.001, gt=0)
    sampling: Sampling = Field("dense", description="dense: a window; sparse: one frame of each of equal segments (SSv2)")
    repeats: int = Field(1, ge=1, description="repeated augmentation: number of consecutive samples of one decoded clip")
    augment: FinetuneAugment | None = Field(None, description="VideoMAE V2's augmentation; null: only pre-training's crops")
    mix: MixSettings | None = Field(None, description="mixup and cutmix; null: none")
    validate_every: int = Field(0, ge=0, description="steps between two validations on the validation split; 0: none")
    keep: Keep = Field("last", description="weights to keep: the last, or those with the best validation accuracy")

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.mix and self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size} is odd: mixup and cutmix mix pairs of clips")
        if self.keep == "best" and not self.validate_every:
            raise ValueError("keep best needs validations: set validate_every to a number of steps, or keep to last")

    @property
    def validations(self) -> int:
        """Number of validations. The last step is always validated."""
        return math.ceil(self.steps / self.validate_every) if self.validate_every else 0


@dataclass(eq=False)
class FinetuneTask(Task[VideoClassifier]):
    """Predict the action of labeled clips. `encoder`: pre-trained weights, or None to train from scratch."""

    model: ModelSettings
    settings: FinetuneSettings
    data: DataSettings
    clips: Clips
    labelled: list[int]
    encoder: State | None
    seed: int
    corrupt_videos: CorruptVideos = field(default_factory=CorruptVideos)

    def __post_init__(self) -> None:
        settings, mix = self.settings, self.settings.mix
        self.order = EpochOrder(len(self.labelled), self.seed, "fine-tuning order")
        # With mixing, labels are smoothed by `mixing`.
        self.criterion = SoftTargetCrossEntropy() if mix else LabelSmoothingCrossEntropy(settings.label_smoothing)
        self.mixing = None if mix is None else FastCollateMixup(
            mixup_alpha=mix.mixup, cutmix_alpha=mix.cutmix, prob=mix.probability, switch_prob=mix.switch,
            label_smoothing=settings.label_smoothing, num_classes=self.data.classes,
        )  # fmt: skip

    def build(self) -> VideoClassifier:
        settings = self.settings
        model = VideoClassifier(
            self.model.dimensions, self.model.clip, self.data.classes, settings.readout, settings.drop_path,
            settings.head_init_scale, settings.dropout,
        )  # fmt: skip
        if self.encoder is not None:
            # Drop the encoder's final LayerNorm: the head has a new one, as in the official code.
            state = {key: value for key, value in self.encoder.items() if not key.startswith("trunk.norm.")}
            load_weights(model.encoder, state, "the pre-trained encoder")
        return model

    def batch(self, step: int, rows: range) -> Batch:
        """Return `video`, uint8 `(B, C, T, H, W)`; `label`, int64 `(B,)` or, with mixing, float `(B, classes)`.

        Each process mixes its own rows, as in the official code.
        """
        if self.mixing and len(rows) % 2:
            raise ValueError(f"{counted(len(rows), 'clip')} per process and step is odd: mixup and cutmix mix pairs of clips")
        chosen, videos = zip(*self._clips([step * self.settings.batch_size + row for row in rows]), strict=True)
        labels = self.labels(chosen)
        if not self.mixing:
            return {"video": torch.stack(videos), "label": labels}
        # timm mixes images. Pass colors and frames as channels, so that all frames share the box.
        images = [(video.flatten(0, 1).numpy(), label) for video, label in zip(videos, labels.tolist(), strict=True)]
        with library_draws(derive(self.seed, "mixup and cutmix", step, rows.start)):
            mixed, targets = self.mixing(images)
        return {"video": mixed.unflatten(1, videos[0].shape[:2]), "label": targets}

    @property
    def row_size(self) -> RowSize:
        together = None if self.mixing else self.settings.repeats  # of one decoded clip; mixing needs all rows
        return RowSize(self.model.clip.tokens * self.model.clip.patch_values, together)

    def labels(self, chosen: Sequence[int]) -> Tensor:
        """Return the labels of chosen labeled clips: int64 `(B,)`."""
        return torch.from_numpy(self.clips.labels[[self.labelled[row] for row in chosen]])

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        scores = model(batch["video"].to(device, non_blocking=True))
        return self.criterion(scores.float(), batch["label"].to(device, non_blocking=True))

    def _clips(self, positions: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield a labeled clip's row and a crop of it for each position. Consecutive repeats share one decoded clip."""
        short_side = short_side_for(self.model.side, min(self.data.crop_scales))
        for number, repeated in groupby(positions, lambda position: position // self.settings.repeats):
            choose = self._choose(number)

            def read(row: int, choose: Choose = choose) -> Tensor:
                return self.clips.video(self.labelled[row], choose, short_side)

            row, video = read_or_replace(self.order, number, read, self.corrupt_videos)
            for position in repeated:
                yield row, self._crop(video, position)

    def _choose(self, number: int) -> Choose:
        """Return the frame sampling of the clip at a number in the order of clips."""
        if self.settings.sampling == "sparse":
            places = numpy_generator(self.seed, "fine-tuning segments", number).random(self.model.frames)
            return Sparse(tuple(places.tolist()))
        where = numpy_generator(self.seed, "fine-tuning crop", number * self.settings.repeats).random()
        return Dense(self.model.frames, self.data.stride, where)

    def _crop(self, video: Tensor, position: int) -> Tensor:
        """Return one sample of a clip: uint8 `(C, T, height, width)`."""
        side, augment = self.model.side, self.settings.augment
        if augment:
            return finetune_augment(video, side, augment, derive(self.seed, "fine-tuning augmentation", position))
        rng = numpy_generator(self.seed, "fine-tuning crop", position)
        rng.random()  # the first draw selects the window
        return multi_scale_crop(video, side, rng, self.data.crop_scales)


@torch.no_grad()
def predict(
    model: nn.Module, clips: Clips, settings: ModelSettings, stride: int, sampling: Sampling = "dense",
    inference: Inference = DEFAULT,
) -> Tensor:  # fmt: skip
    """Return the class logits of each clip, from whole frames: float32 `(n, classes)` on the CPU. Raises MissingVideos.

    Uses the middle window or, with sparse sampling, the middle frame of each segment. Processes share the batches, which are
    those of one process, and all return the complete result.
    """
    device, state = next(model.parameters()).device, process_state()
    model.eval()
    choose = Sparse((0.5,) * settings.frames) if sampling == "sparse" else None
    batches = list(enumerate(batches_of(range(len(clips)), BATCH)))[state.process_index :: state.num_processes]
    rows = [row for _, batch in batches for row in batch]
    videos = evaluated_clips(clips, rows, settings.frames, stride, settings.side, choose=choose, load=inference.load)

    def scores() -> Iterator[tuple[int, Tensor]]:
        for video, (number, _) in zip(videos, batches, strict=True):
            with autocast(inference.precision, device):
                logits = model(video.to(device)).float()
            yield number, logits

    return torch.cat(gathered(scores(), len(clips)))


def encoder_state(state: State) -> State:
    """Return the encoder's weights in a state of a VideoMAE or VideoClassifier."""
    return part_of(state, "encoder.")
