"""Supervised fine-tuning of the whole encoder under a class head (VideoMAE V2's recipe)."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.data import FastCollateMixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.data import Dataset

from vmae_lab.data.corrupt_videos import CorruptVideos, read_or_replace
from vmae_lab.data.dataset import Clips, DataSettings
from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.eval_clips import evaluated_clips
from vmae_lab.data.frame_sampling import Dense, Sparse
from vmae_lab.data.samplers import EpochOrder
from vmae_lab.data.transforms import FinetuneAugment, finetune_augment, multi_scale_crop
from vmae_lab.models.checkpoints import State, load_weights, part_of
from vmae_lab.models.classifier import Readout, VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.settings import TrainSettings
from vmae_lab.utils.seeding import derive, library_draws, numpy_generator

Sampling = Literal["dense", "sparse"]


class MixSettings(BaseModel):
    """Clips of a batch mixed in pairs, with their labels: mixup or cutmix, one of the two a batch (VideoMAE V2's recipe).

    mixup (arXiv 1710.09412) adds two clips in shares drawn from Beta(mixup, mixup); cutmix (arXiv 1905.04899) puts a box of
    one, the same in all frames, into the other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixup: float = Field(0.8, ge=0, description="alpha of the Beta distribution; none where 0")
    cutmix: float = Field(1.0, ge=0, description="the same of the box's area; none where 0")
    probability: float = Field(1.0, gt=0, le=1, description="how often a batch is mixed")
    switch: float = Field(0.5, ge=0, le=1, description="how often that is by cutmix, where both are on")

    def model_post_init(self, _context: object) -> None:
        if not (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix are both 0: leave mix out (null) to mix nothing")


class FinetuneSettings(TrainSettings):
    """The paper's fine-tuning recipe, to be scaled down."""

    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = Field(0.75, gt=0, le=1)
    readout: Readout = "mean"
    drop_path: float = Field(0.1, ge=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1, description="part of the linear layer's inputs that is left out in training")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    head_init_scale: float = Field(0.001, gt=0)
    sampling: Sampling = Field("dense", description="a window, or one frame of each equal segment (SSv2)")
    repeats: int = Field(1, ge=1, description="repeated augmentation: samples drawn in a row from one decoded clip")
    augment: FinetuneAugment | None = Field(None, description="VideoMAE V2's augmentation; pre-training's crops alone if null")
    mix: MixSettings | None = Field(None, description="mixup and cutmix; none if null")

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.mix and self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size} is odd: mixup and cutmix mix the clips of a batch in pairs")


class FinetuneTask:
    """Name the action of labelled clips, from a pre-trained encoder's weights or from scratch (`encoder` None)."""

    def __init__(
        self,
        model: ModelSettings,
        settings: FinetuneSettings,
        data: DataSettings,
        clips: Clips,
        labelled: list[int],
        encoder: State | None,
        seed: int,
        corrupt_videos: CorruptVideos | None = None,
    ):
        self.model, self.settings, self.data, self.clips = model, settings, data, clips
        self.labelled, self.encoder, self.seed = labelled, encoder, seed
        self.corrupt_videos = CorruptVideos() if corrupt_videos is None else corrupt_videos
        # What is mixed has its smoothing in its targets.
        self.criterion = SoftTargetCrossEntropy() if settings.mix else LabelSmoothingCrossEntropy(settings.label_smoothing)

    def build(self) -> VideoClassifier:
        return self.classifier()

    def classifier(self) -> VideoClassifier:
        """The classifier before its training."""
        settings = self.settings
        model = VideoClassifier(
            self.model.dimensions, self.model.clip, self.data.classes, settings.readout, settings.drop_path,
            settings.head_init_scale, settings.dropout,
        )  # fmt: skip
        if self.encoder is not None:
            # The encoder's final LayerNorm is dropped: the head has a fresh one (as in the reference).
            state = {key: value for key, value in self.encoder.items() if not key.startswith("trunk.norm.")}
            load_weights(model.encoder, state, "the pre-trained encoder")
        return model

    def batches(self, rows: range) -> "FinetuneBatches":
        return FinetuneBatches(self, rows)

    def weight(self, batch: Batch) -> float:
        return float(len(batch["video"]))

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        scores = model(batch["video"].to(device, non_blocking=True))
        return self.criterion(scores.float(), batch["label"].to(device, non_blocking=True))


class FinetuneBatches(Dataset):
    """Step -> a process's rows: uint8 `video (B, C, T, H, W)`, and `label`, int64 `(B,)` or where mixed float `(B, classes)`.

    A pure function of (seed, step). Clips are mixed inside a process's rows, as in the reference.
    """

    def __init__(self, task: FinetuneTask, rows: range):
        self.task, self.rows = task, rows
        self.order = EpochOrder(len(task.labelled), task.seed, "fine-tuning order")
        settings = task.settings
        if settings.mix and len(rows) % 2:
            raise ValueError(f"{len(rows)} clips a process and step are odd: mixup and cutmix mix them in pairs")
        mix, self.mixing = settings.mix, None
        if mix:
            self.mixing = FastCollateMixup(
                mixup_alpha=mix.mixup, cutmix_alpha=mix.cutmix, prob=mix.probability, switch_prob=mix.switch,
                label_smoothing=settings.label_smoothing, num_classes=task.data.classes,
            )  # fmt: skip

    def __getitem__(self, step: int) -> Batch:
        positions = [step * self.task.settings.batch_size + row for row in self.rows]
        rows, videos = zip(*self._clips(positions), strict=True)
        labels = self.labels(rows)
        if self.mixing:
            return self._mixed(self.mixing, videos, labels, step)
        return {"video": torch.stack(videos), "label": labels}

    def labels(self, rows: Sequence[int]) -> Tensor:
        """int64 `(B,)` of some of the labelled clips."""
        return torch.from_numpy(self.task.clips.labels[[self.task.labelled[row] for row in rows]])

    def _mixed(self, mixing: FastCollateMixup, videos: Sequence[Tensor], labels: Tensor, step: int) -> Batch:
        """timm's mixing of uint8 pixels, colours and frames as its channels, so that all frames share the box."""
        flat = [video.flatten(0, 1).numpy() for video in videos]
        with library_draws(derive(self.task.seed, "mixup and cutmix", step, self.rows.start)):
            mixed, targets = mixing(list(zip(flat, labels.tolist(), strict=True)))
        return {"video": mixed.unflatten(1, videos[0].shape[:2]), "label": targets}

    def _clips(self, positions: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """A labelled clip's row and a crop of it for each position; neighbours that repeat one clip share its decoding."""
        for place, repeated in groupby(positions, lambda position: position // self.task.settings.repeats):
            row, video = self._video(place)
            for position in repeated:
                yield row, self._crop(video, position)

    def _video(self, place: int) -> tuple[int, Tensor]:
        """Which labelled clip stands at a place of the order of clips, and its frames, no smaller than its crops need."""
        task = self.task
        choose = self._choose(place)
        short_side = math.ceil(task.model.side / min(task.data.crop_scales))

        def read(row: int) -> Tensor:
            return task.clips.video(task.labelled[row], choose, short_side)

        return read_or_replace(self.order, place, read, task.corrupt_videos)

    def _choose(self, place: int) -> Choose:
        """The frames of the clip at a place of the order."""
        task = self.task
        if task.settings.sampling == "sparse":
            places = numpy_generator(task.seed, "fine-tuning segments", place).random(task.model.frames)
            return Sparse(tuple(places.tolist()))
        where = numpy_generator(task.seed, "fine-tuning crop", place * task.settings.repeats).random()
        return Dense(task.model.frames, task.data.stride, where)

    def _crop(self, video: Tensor, position: int) -> Tensor:
        """What one sample sees of a clip: uint8 `(C, T, side, side)`."""
        task = self.task
        if task.settings.augment:
            seed = derive(task.seed, "fine-tuning augmentation", position)
            return finetune_augment(video, task.model.side, task.settings.augment, seed)
        rng = numpy_generator(task.seed, "fine-tuning crop", position)
        rng.random()  # the first draw places the window, of the first of the repeats
        return multi_scale_crop(video, task.model.side, rng, task.data.crop_scales)


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, settings: ModelSettings, stride: int, sampling: Sampling = "dense") -> Tensor:
    """Class scores of each clip, whole frame: `(n, classes)` on the CPU. Raises MissingVideos.

    Of its middle window or, where it was trained on sparse clips, of the middles of its segments.
    """
    device = next(model.parameters()).device
    model.eval()
    choose = Sparse((0.5,) * settings.frames) if sampling == "sparse" else None
    batches = evaluated_clips(clips, range(len(clips)), settings.frames, stride, settings.side, choose=choose)
    return torch.cat([model(video.to(device)).float().cpu() for video in batches])


def encoder_state(state: State) -> State:
    """The encoder's tensors of a pre-training model's state."""
    return part_of(state, "encoder.")
