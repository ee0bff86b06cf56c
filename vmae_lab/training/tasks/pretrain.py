"""Self-supervised pre-training with dual masking (VideoMAE V2, section 3)."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vmae_lab.data.corrupt_videos import CorruptVideos, read_or_replace
from vmae_lab.data.dataset import Clips, DataSettings
from vmae_lab.data.frame_sampling import Dense
from vmae_lab.data.samplers import sample_order
from vmae_lab.data.transforms import multi_scale_crop
from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.checkpoints import Checkpoint, load_weights
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import TARGET_EPS, VideoMAE
from vmae_lab.training.dataloader import TOTAL_WEIGHT, Batch, RowSize
from vmae_lab.training.distributed import unwrapped
from vmae_lab.training.settings import TrainSettings
from vmae_lab.training.task import Task
from vmae_lab.utils.seeding import numpy_generator, torch_generator
from vmae_lab.utils.shapes import short_side_for

Masks = tuple[Tensor, Tensor, Tensor]


class PretrainSettings(TrainSettings):
    """Settings of the paper's pre-training recipe."""

    normalise_target: bool = True
    target_eps: float = Field(TARGET_EPS, gt=0, description="added to a patch's standard deviation; 1e-6 for real videos")
    repeats: int = Field(1, ge=1, description="repeated augmentation: consecutive crops and masks of one decoded clip")
    keep_at: tuple[float, ...] = Field(
        (), description="fractions of the steps after which weights are kept too, e.g. [0.25, 0.5], for accuracy over compute"
    )
    target_from: Literal["clip", "other_clip"] = Field(
        "clip", description="other_clip: predict patches of the next clip instead, as a control"
    )

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if not all(low < high for low, high in pairwise((0.0, *self.keep_at, 1.0))):
            raise ValueError(f"keep_at {list(self.keep_at)} must be fractions between 0 and 1 in ascending order")

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps of `keep_at`, rounded, without duplicates, step 0 and the last step."""
        steps = dict.fromkeys(round(part * self.steps) for part in self.keep_at)
        return tuple(step for step in steps if 0 < step < self.steps)


def row_size(model: ModelSettings, settings: PretrainSettings) -> RowSize:
    """Return the size of a row: one or two clips. The samples of one decoded clip stay together."""
    clips = 2 if settings.target_from == "other_clip" else 1
    return RowSize(clips * model.clip.tokens * model.clip.patch_values, settings.repeats)


@dataclass(eq=False)
class PretrainTask(Task[VideoMAE]):
    """Reconstruct masked patches, from new weights or from those of a checkpoint (`initial`)."""

    model: ModelSettings
    masks: MaskSettings
    settings: PretrainSettings
    data: DataSettings
    clips: Clips
    seed: int
    corrupt_videos: CorruptVideos = field(default_factory=CorruptVideos)
    initial: Checkpoint | None = None

    def __post_init__(self) -> None:
        self.strides = {source: self.data.stride_of(source) for source in set(self.clips.sources)}
        self.order = sample_order(self.clips.sources, self.data.mixing, self.seed, self.data.weights)
        self._drawn: tuple[int, Masks] | None = None

    def build(self) -> VideoMAE:
        """Build the model. Weights that the checkpoint does not have are drawn from the seed. Raises CheckpointError."""
        settings, opened = self.settings, self.initial
        norm = opened is None or opened.config.model != "VideoMAE" or opened.config.encoder_norm
        model = VideoMAE(self.model.dimensions, self.model.clip, settings.normalise_target, settings.target_eps, norm)
        if opened:
            start_from(model, opened)
        return model

    def batch(self, step: int, rows: range) -> Batch:
        """Return `video`, uint8 `(B, C, T, H, W)`; `encoder_mask` and `decoder_mask`, bool `(B, N)`; `counted`, bool `(B, M)`,
        decoded tokens in the loss; `target`, uint8 `(B, C, T, H, W)`, if the target is another clip.
        """
        first = step * self.settings.batch_size
        positions = [first + row for row in rows]
        batch = {"video": torch.stack(list(self._clips(positions)))}
        if self.settings.target_from == "other_clip":  # the next in the stream, since a process may have one clip per batch
            batch["target"] = torch.stack(list(self._clips([position + self.settings.repeats for position in positions])))
        masks = zip(("encoder_mask", "decoder_mask", "counted"), self._masks(step), strict=True)
        return {**batch, **{name: mask[rows.start : rows.stop] for name, mask in masks}}

    def training_batch(self, step: int, rows: range) -> Batch:
        """Return the batch that training uses: `batch` with indices instead of masks, `visible`, int64 `(B, V)`, and `decoded`,
        int64 `(B, M)`; and the weight of the global batch.
        """
        batch = self.batch(step, rows)
        visible, decoded = (visible_index(batch.pop(name)) for name in ("encoder_mask", "decoder_mask"))
        _, _, counted = self._masks(step)
        return {**batch, "visible": visible, "decoded": decoded, TOTAL_WEIGHT: counted.sum().repeat(len(rows))}

    @property
    def row_size(self) -> RowSize:
        return row_size(self.model, self.settings)

    def _masks(self, step: int) -> Masks:
        """Return the encoder and decoder mask of the global batch, and which decoded tokens are counted.

        They are drawn for the global batch, so that they do not depend on the number of processes. Those of the last step are
        kept, because a loader worker builds several parts of a batch.
        """
        if self._drawn is None or self._drawn[0] != step:
            encoder_mask, decoder_mask = draw_masks(
                self.masks, self.model.clip.grid, self.settings.batch_size,
                torch_generator(self.seed, "encoder mask", step), torch_generator(self.seed, "decoder mask", step),
            )  # fmt: skip
            counted = loss_positions(encoder_mask, visible_index(decoder_mask), self.masks.loss_on)
            self._drawn = step, (encoder_mask, decoder_mask, counted)
        return self._drawn[1]

    def weight(self, batch: Batch) -> float:
        return float(batch["counted"].sum())

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        video = batch["video"].to(device, non_blocking=True)
        visible, decoded, counted = (batch[name].to(device, non_blocking=True) for name in ("visible", "decoded", "counted"))
        prediction, _ = model(video, visible, decoded)
        target_clip = batch["target"].to(device, non_blocking=True) if "target" in batch else video
        return unwrapped(model).forward_loss(target_clip, prediction, decoded, counted)

    def samples_by_source(self) -> dict[str, int]:
        """Return the number of samples of each source in the run. Repeats count once."""
        drawn, size = self.settings.steps * self.settings.batch_size // self.settings.repeats, len(self.clips.sources)
        rounds, rest = divmod(drawn, size)
        # Every round of the order has the same number of samples of each source, so one round is counted and not each sample.
        counts = Counter(self.clips.sources[self.order[position]] for position in range(min(drawn, size)))
        if rounds:
            last = Counter(self.clips.sources[self.order[rounds * size + position]] for position in range(rest))
            counts = Counter({source: rounds * count + last[source] for source, count in counts.items()})
        return dict(counts)

    def _clips(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """Yield a crop for each position in the stream of samples. Consecutive repeats share one decoded clip."""
        repeats, scales = self.settings.repeats, self.data.crop_scales
        short_side = short_side_for(self.model.side, min(scales))
        for number, repeated in groupby(positions, lambda position: position // repeats):
            where = numpy_generator(self.seed, "crop", number * repeats).random()  # of the window, for all repeats

            def read(index: int, where: float = where) -> Tensor:
                stride = self.strides[self.clips.sources[index]]
                return self.clips.video(index, Dense(self.model.frames, stride, where), short_side)

            _, video = read_or_replace(self.order, number, read, self.corrupt_videos)
            for position in repeated:
                rng = numpy_generator(self.seed, "crop", position)
                rng.random()  # the first draw selects the window
                yield multi_scale_crop(video, self.model.side, rng, scales)


def start_from(model: VideoMAE, opened: Checkpoint) -> None:
    """Load a checkpoint into a model. Weights that the checkpoint lacks stay as they are, with a warning.

    The decoder is loaded completely or not at all: classifiers and bare encoders have none, and a decoder of another size does
    not fit. A classifier's encoder has no final LayerNorm. Raises CheckpointError if the encoder does not fit.
    """
    own, where = model.state_dict(), opened.where
    pretrained = opened.config.model == "VideoMAE"
    found = {key: value for key, value in opened.state.items() if pretrained or key.startswith("encoder.")}
    decoder = [key for key in own if not key.startswith("encoder.")]
    theirs = {key: value.shape for key, value in found.items() if not key.startswith("encoder.")}
    whole = theirs == {key: own[key].shape for key in decoder}
    if not whole:
        found = {key: value for key, value in found.items() if key.startswith("encoder.")}
    new = [key for key in own if key not in found and (key in decoder or key.startswith("encoder.trunk.norm."))]
    load_weights(model, {**{key: own[key] for key in new}, **found}, where)
    if new:
        parts = [*([] if whole else ["decoder"]), *(key for key in new if key not in decoder)]
        warnings.warn(f"{where} has no {' and no '.join(parts)} that fits, so these weights start from the seed", stacklevel=2)
    elif opened.config.normalise_target is not None and opened.config.normalise_target != model.normalise_target:
        warnings.warn(
            f"{where} was trained with normalise_target {opened.config.normalise_target}, and is continued with "
            f"{model.normalise_target}, so its decoder has to learn another target",
            stacklevel=2,
        )
