"""Supervised fine-tuning of the whole encoder under a class head (METHOD: fine-tuning)."""

import math

import torch
from pydantic import Field
from timm.loss import LabelSmoothingCrossEntropy
from torch import Tensor, nn
from torch.utils.data import Dataset

from vmae_lab.data.augment import FinetuneAugment, finetune_augment, multi_scale_crop
from vmae_lab.data.clips import Clips, DataSettings
from vmae_lab.data.evaluated import evaluated_clips
from vmae_lab.data.mixture import EpochOrder
from vmae_lab.data.quarantine import Quarantine, read_or_replace
from vmae_lab.data.sampling import Dense
from vmae_lab.models.checkpoints import State, load_weights, part_of
from vmae_lab.models.classifier import Readout, VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.randomness import derive, numpy_generator
from vmae_lab.training.loop import Batch, TrainSettings


class FinetuneSettings(TrainSettings):
    """The paper's fine-tuning recipe, to be scaled down."""

    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = Field(0.75, gt=0, le=1)
    readout: Readout = "mean"
    drop_path: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    head_init_scale: float = Field(0.001, gt=0)
    augment: FinetuneAugment | None = Field(None, description="METHOD 4's augmentation; pre-training's crops alone if null")


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
        quarantine: Quarantine | None = None,
    ):
        self.model, self.settings, self.data, self.clips = model, settings, data, clips
        self.labelled, self.encoder, self.seed = labelled, encoder, seed
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self.criterion = LabelSmoothingCrossEntropy(settings.label_smoothing)

    def build(self) -> VideoClassifier:
        settings = self.settings
        model = VideoClassifier(
            self.model.dimensions, self.model.clip, self.data.classes, settings.readout, settings.drop_path,
            settings.head_init_scale,
        )  # fmt: skip
        if self.encoder is not None:
            # The encoder's final LayerNorm is dropped: the head has a fresh one (as in the reference).
            state = {key: value for key, value in self.encoder.items() if not key.startswith("trunk.norm.")}
            load_weights(model.encoder, state, "the pre-trained encoder")
        return model

    def batches(self, rows: range) -> "FinetuneBatches":
        return FinetuneBatches(self, rows)

    def weight(self, batch: Batch) -> float:
        return float(len(batch["label"]))

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        scores = model(batch["video"].to(device, non_blocking=True))
        return self.criterion(scores.float(), batch["label"].to(device, non_blocking=True))


class FinetuneBatches(Dataset):
    """Step -> a process's rows of uint8 `video (B, C, T, H, W)` and int64 `label (B,)`."""

    def __init__(self, task: FinetuneTask, rows: range):
        self.task, self.rows = task, rows
        self.order = EpochOrder(len(task.labelled), task.seed, "fine-tuning order")

    def __getitem__(self, step: int) -> Batch:
        positions = [step * self.task.settings.batch_size + row for row in self.rows]
        labelled, videos = zip(*(self._clip(position) for position in positions), strict=True)
        labels = self.task.clips.labels[[self.task.labelled[row] for row in labelled]]
        return {"video": torch.stack(videos), "label": torch.from_numpy(labels)}

    def _clip(self, position: int) -> tuple[int, Tensor]:
        """Which labelled clip it is, and its crop."""
        task = self.task
        rng = numpy_generator(task.seed, "fine-tuning crop", position)
        choose = Dense(task.model.frames, task.data.stride, rng.random())
        short_side = math.ceil(task.model.side / min(task.data.crop_scales))

        def read(row: int) -> Tensor:
            return task.clips.video(task.labelled[row], choose, short_side)

        row, video = read_or_replace(self.order, position, read, task.quarantine)
        if task.settings.augment:
            seed = derive(task.seed, "fine-tuning augmentation", position)
            return row, finetune_augment(video, task.model.side, task.settings.augment, seed)
        return row, multi_scale_crop(video, task.model.side, rng, task.data.crop_scales)


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, settings: ModelSettings, stride: int) -> Tensor:
    """Class scores of each clip's middle window, whole frame: `(n, classes)` on the CPU. Raises MissingVideos."""
    device = next(model.parameters()).device
    model.eval()
    batches = evaluated_clips(clips, range(len(clips)), settings.frames, stride, settings.side)
    return torch.cat([model(video.to(device)).float().cpu() for video in batches])


def encoder_state(state: State) -> State:
    """The encoder's tensors of a pre-training model's state."""
    return part_of(state, "encoder.")
