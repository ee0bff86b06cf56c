"""Distillation: a student learns to answer as a frozen teacher does (VideoMAE V2, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.data.corrupt_videos import CorruptVideos
from vmae_lab.data.dataset import Clips, DataSettings
from vmae_lab.models.checkpoints import State, load_weights
from vmae_lab.models.classifier import Readout, VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.tasks.finetune import FinetuneBatches, FinetuneSettings, FinetuneTask
from vmae_lab.utils.seeding import seeded


class DistillSettings(FinetuneSettings):
    """Fine-tuning's recipe with a teacher's answers to learn from, beside the labels or in their place.

    The teacher sees the clips that the student sees, augmented and mixed, and runs in the stage's own precision.
    """

    temperature: float = Field(1.0, gt=0, description="both answers' logits are divided by it")
    hard_weight: float = Field(0.0, ge=0, description="of the labels' cross-entropy; 0 reads no labels")
    feature_weight: float = Field(0.0, ge=0, description="of the distance between the two encoders' mean tokens")
    feature_loss: Literal["mse", "cosine"] = Field("mse", description="that distance; cosine is 1 - cosine similarity")


@dataclass(frozen=True)
class Teacher:
    """A trained `VideoClassifier`: its weights, and what it is built from."""

    state: State
    model: ModelSettings
    readout: Readout = "mean"


class Student(nn.Module):
    """A classifier, and the linear map from its mean token to a teacher's, where features are learned too.

    forward: `(B, C, T, H, W)` -> scores `(B, classes)`, and mean tokens `(B, teacher's width)` or None.
    """

    def __init__(self, classifier: VideoClassifier, teacher_width: int | None):
        super().__init__()
        self.classifier = classifier
        self.to_teacher = nn.Linear(classifier.encoder.width, teacher_width) if teacher_width else None

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = self.classifier.encoder(video)
        return self.classifier.head(tokens), self.to_teacher(tokens.mean(1)) if self.to_teacher else None

    def group_matcher(self, coarse: bool = False) -> dict:
        """The classifier's layers for layer decay; the map is with the head."""
        return {"stem": r"^classifier\.encoder\.embed", "blocks": [(r"^classifier\.encoder\.trunk\.blocks\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        return {f"classifier.{name}" for name in self.classifier.no_weight_decay()}


class DistillTask(FinetuneTask):
    """Answer as the teacher does, from a pre-trained encoder's weights or from scratch (`encoder` None).

    With `hard_weight` 0 clips need no labels. The teacher is part of the task, not of what is trained: no optimiser,
    gradient, training mode or checkpoint touches it. Raises CheckpointError where its weights do not fit, ValueError where
    the two cannot see the same clips or labels are wanted that are not there.
    """

    settings: DistillSettings

    def __init__(
        self,
        model: ModelSettings,
        settings: DistillSettings,
        data: DataSettings,
        clips: Clips,
        rows: list[int],
        encoder: State | None,
        teacher: Teacher,
        seed: int,
        corrupt_videos: CorruptVideos | None = None,
    ):
        super().__init__(model, settings, data, clips, rows, encoder, seed, corrupt_videos)
        seen, shown = ((one.clip.frames, one.clip.side) for one in (teacher.model, model))
        if seen != shown:
            raise ValueError(
                f"the teacher sees clips of {seen[0]} frames of {seen[1]} pixels, the student of {shown[0]} of {shown[1]}: "
                "one clip is shown to both"
            )
        if settings.hard_weight and (clips.labels[rows] < 0).any():
            raise ValueError(f"hard_weight {settings.hard_weight:g} learns from labels, and some clips have none; 0 needs none")
        self.teacher = _frozen(teacher, data.classes)

    def build(self) -> Student:  # type: ignore[override]  # what is trained wraps the classifier
        return Student(self.classifier(), self.teacher.encoder.width if self.settings.feature_weight else None)

    def batches(self, rows: range) -> "DistillBatches":
        return DistillBatches(self, rows)

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        settings = self.settings
        video = batch["video"].to(device, non_blocking=True)
        wanted, wanted_features = self._taught(video)
        scores, features = model(video)
        total = soft_loss(scores, wanted, settings.temperature)
        if settings.hard_weight:
            total = total + settings.hard_weight * self.criterion(scores.float(), batch["label"].to(device, non_blocking=True))
        if settings.feature_weight:
            total = total + settings.feature_weight * feature_loss(features, wanted_features, settings.feature_loss)
        return total

    @torch.no_grad()
    def _taught(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's scores `(B, classes)` and mean tokens `(B, D)`."""
        tokens = self.teacher.to(video.device).encoder(video)
        return self.teacher.head(tokens), tokens.mean(1)


class DistillBatches(FinetuneBatches):
    """Fine-tuning's batches; without `label` where no label is learned from."""

    task: DistillTask

    def __getitem__(self, step: int) -> Batch:
        batch = super().__getitem__(step)
        return batch if self.task.settings.hard_weight else {"video": batch["video"]}

    def labels(self, rows: Sequence[int]) -> Tensor:
        # Clips without labels are mixed too; what comes of these is not looked at.
        return super().labels(rows) if self.task.settings.hard_weight else torch.zeros(len(rows), dtype=torch.int64)


def soft_loss(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened answers, mean over clips: `(B, classes)` twice -> a number.

    Times the squared temperature, so that its gradient's size stays while the temperature varies (Hinton et al.,
    arXiv 1503.02531, section 2.1).
    """
    ours, theirs = (functional.log_softmax(logits.float() / temperature, dim=1) for logits in (scores, wanted))
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def feature_loss(features: Tensor, wanted: Tensor, kind: Literal["mse", "cosine"]) -> Tensor:
    """Distance of features, mean over clips (and for `mse` over their values): `(B, D)` twice -> a number."""
    features, wanted = features.float(), wanted.float()
    if kind == "mse":
        return functional.mse_loss(features, wanted)
    return 1 - functional.cosine_similarity(features, wanted, dim=1).mean()


def _frozen(teacher: Teacher, classes: int) -> VideoClassifier:
    """The teacher in evaluation mode, without gradients."""
    with seeded(0, "weights that the teacher's replace"):
        model = VideoClassifier(teacher.model.dimensions, teacher.model.clip, classes, teacher.readout)
    load_weights(model, teacher.state, "the teacher")
    return model.eval().requires_grad_(False)
