"""Self-supervised pre-training with dual masking (VideoMAE V2, section 3)."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from vmae_lab.data.corrupt_videos import CorruptVideos, read_or_replace
from vmae_lab.data.dataset import Clips, DataSettings
from vmae_lab.data.frame_sampling import Dense
from vmae_lab.data.samplers import sample_order
from vmae_lab.data.transforms import multi_scale_crop
from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import TARGET_EPS, VideoMAE
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.distributed import unwrapped
from vmae_lab.training.settings import TrainSettings
from vmae_lab.utils.seeding import numpy_generator, torch_generator


class PretrainSettings(TrainSettings):
    """The paper's pre-training recipe, to be scaled down by steps and batch."""

    normalise_target: bool = True
    target_eps: float = Field(TARGET_EPS, gt=0, description="added to a cube's deviation; 1e-6 on real videos")
    repeats: int = Field(1, ge=1, description="repeated augmentation: crops and masks drawn in a row from one decoded clip")
    keep_at: tuple[float, ...] = Field(
        (),
        description="parts of the steps after which the weights are kept too, such as [0.25, 0.5], for accuracy over compute",
    )
    target_from: Literal["clip", "other_clip"] = Field(
        "clip", description="other_clip: predict the cubes of the next clip instead, as a control"
    )

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if not all(low < high for low, high in pairwise((0.0, *self.keep_at, 1.0))):
            raise ValueError(f"keep_at {list(self.keep_at)}: expected parts of the steps between 0 and 1, in ascending order")

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps of `keep_at`, rounded, each once; those that round to no step or to the last are left out."""
        steps = dict.fromkeys(round(part * self.steps) for part in self.keep_at)
        return tuple(step for step in steps if 0 < step < self.steps)


class PretrainTask:
    """Rebuild masked cubes."""

    def __init__(
        self,
        model: ModelSettings,
        masks: MaskSettings,
        settings: PretrainSettings,
        data: DataSettings,
        clips: Clips,
        seed: int,
        corrupt_videos: CorruptVideos | None = None,
    ):
        self.model, self.masks, self.settings, self.data, self.clips, self.seed = model, masks, settings, data, clips, seed
        self.corrupt_videos = CorruptVideos() if corrupt_videos is None else corrupt_videos
        self.strides = {source: data.stride_of(source) for source in set(clips.sources)}
        self.order = sample_order(clips.sources, data.mixing, seed, data.weights)

    def build(self) -> VideoMAE:
        return VideoMAE(self.model.dimensions, self.model.clip, self.settings.normalise_target, self.settings.target_eps)

    def batches(self, rows: range) -> "PretrainBatches":
        return PretrainBatches(self, rows)

    def samples_by_source(self) -> dict[str, int]:
        """How many samples of each source the whole training draws, repeats counted once."""
        sources, drawn = self.clips.sources, self.settings.steps * self.settings.batch_size // self.settings.repeats
        return dict(Counter(sources[self.order[position]] for position in range(drawn)))

    def weight(self, batch: Batch) -> float:
        return float(batch["counted"].sum())

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        video = batch["video"].to(device, non_blocking=True)
        prediction, decoded = model(video, batch["encoder_mask"], batch["decoder_mask"])
        rebuilt = batch["target"].to(device, non_blocking=True) if "target" in batch else video
        counted = batch["counted"].to(device, non_blocking=True)
        return unwrapped(model).forward_loss(rebuilt, prediction, decoded, counted)


class PretrainBatches(Dataset):
    """Step -> a process's rows of that step's batch: uint8 `video (B, C, T, H, W)`, bool masks `(B, N)`, bool `counted (B, M)`;
    uint8 `target (B, C, T, H, W)` if the target is another clip.

    A pure function of (seed, step): masks are drawn for the global batch and cut, crops by position in the stream.
    """

    def __init__(self, task: PretrainTask, rows: range):
        self.task, self.rows = task, rows

    def __getitem__(self, step: int) -> Batch:
        task, batch_size = self.task, self.task.settings.batch_size
        positions = [step * batch_size + row for row in self.rows]
        videos = {"video": torch.stack(list(self._clips(positions)))}
        if task.settings.target_from == "other_clip":  # of the stream, since a process may hold one clip of the batch
            videos["target"] = torch.stack(list(self._clips([place + task.settings.repeats for place in positions])))
        encoder_mask, decoder_mask = draw_masks(
            task.masks,
            task.model.clip.grid,
            batch_size,
            torch_generator(task.seed, "encoder mask", step),
            torch_generator(task.seed, "decoder mask", step),
        )
        counted = loss_positions(encoder_mask, visible_index(decoder_mask), task.masks.loss_on)
        masks = {"encoder_mask": encoder_mask, "decoder_mask": decoder_mask, "counted": counted}
        return {**videos, **{name: mask[self.rows.start : self.rows.stop] for name, mask in masks.items()}}

    def _clips(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """A crop for each position of the stream; neighbours that repeat one clip share its decoding."""
        task = self.task
        for place, repeated in groupby(positions, lambda position: position // task.settings.repeats):
            first = place * task.settings.repeats
            rng = numpy_generator(task.seed, "crop", first)
            video = self._video(place, rng.random())  # the first draw places the window for all repeats
            for position in repeated:
                if position != first:
                    rng = numpy_generator(task.seed, "crop", position)
                    rng.random()  # places no window
                yield multi_scale_crop(video, task.model.side, rng, task.data.crop_scales)

    def _video(self, place: int, where: float) -> Tensor:
        """The window of frames at a place of the order of clips: uint8 `(C, T, H, W)`, no larger than its crops need."""
        task = self.task
        short_side = math.ceil(task.model.side / min(task.data.crop_scales))

        def read(index: int) -> Tensor:
            stride = task.strides[task.clips.sources[index]]
            return task.clips.video(index, Dense(task.model.frames, stride, where), short_side)

        return read_or_replace(task.order, place, read, task.corrupt_videos)[1]
