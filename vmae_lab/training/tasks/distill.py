"""Distillation: a student learns to match the predictions of a frozen teacher (VideoMAE V2, section 3)."""

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
from vmae_lab.training.tasks.finetune import FinetuneSettings, FinetuneTask
from vmae_lab.utils.seeding import seeded


class DistillSettings(FinetuneSettings):
    """Fine-tuning with a teacher's predictions as targets, in addition to labels or instead of them.

    The teacher sees the same augmented and mixed clips as the student, in the same precision.
    """

    temperature: float = Field(1.0, gt=0, description="divides the logits of teacher and student")
    hard_weight: float = Field(0.0, ge=0, description="weight of the cross-entropy with labels; 0 needs no labels")
    feature_weight: float = Field(0.0, ge=0, description="weight of the distance between mean tokens")
    feature_loss: Literal["mse", "cosine"] = Field("mse", description="this distance; cosine is 1 - cosine similarity")

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.validate_every:
            raise ValueError("validate_every is only for fine-tuning and post-pre-training: remove it from distill")


@dataclass(frozen=True)
class Teacher:
    """Weights of a trained `VideoClassifier`, and what is needed to build it."""

    state: State
    model: ModelSettings
    readout: Readout = "mean"


class Student(nn.Module):
    """A classifier and, if `teacher_width` is given, a linear layer from its mean token to the teacher's.

    forward: `(B, C, T, H, W)` -> logits `(B, classes)`, and projected mean tokens `(B, teacher_width)` or None.
    """

    def __init__(self, classifier: VideoClassifier, teacher_width: int | None):
        super().__init__()
        self.classifier = classifier
        self.to_teacher = nn.Linear(classifier.encoder.width, teacher_width) if teacher_width else None

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = self.classifier.encoder(video)
        return self.classifier.head(tokens), self.to_teacher(tokens.mean(1)) if self.to_teacher else None

    def group_matcher(self, coarse: bool = False) -> dict:
        """Group the classifier's layers for layer decay. The linear layer to the teacher is in the group of the head."""
        return {"stem": r"^classifier\.encoder\.embed", "blocks": [(r"^classifier\.encoder\.trunk\.blocks\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        return {f"classifier.{name}" for name in self.classifier.no_weight_decay()}


class DistillTask(FinetuneTask):
    """Match a teacher's predictions. `encoder`: pre-trained weights of the student, or None to train from scratch.

    The teacher is a part of the task, not of the trained model: it is never updated, saved or in training mode. Raises
    CheckpointError if its weights do not fit, ValueError if teacher and student take different clips, or if `hard_weight` needs
    labels that are missing.
    """

    settings: DistillSettings

    def __init__(
        self, model: ModelSettings, settings: DistillSettings, data: DataSettings, clips: Clips, rows: list[int],
        encoder: State | None, teacher: Teacher, seed: int, corrupt_videos: CorruptVideos | None = None,
    ):  # fmt: skip
        super().__init__(
            model, settings, data, clips, rows, encoder, seed, CorruptVideos() if corrupt_videos is None else corrupt_videos
        )
        if (teacher.model.frames, teacher.model.side) != (model.frames, model.side):
            raise ValueError(
                f"the teacher takes clips of {teacher.model.clip.pixels}, the student of {model.clip.pixels}; both must take "
                "the same clips"
            )
        if settings.hard_weight and (clips.labels[rows] < 0).any():
            raise ValueError(f"hard_weight {settings.hard_weight:g} needs labels, but some clips have none; set it to 0")
        with seeded(0, "weights that the teacher's replace"):
            self.teacher = VideoClassifier(teacher.model.dimensions, teacher.model.clip, data.classes, teacher.readout)
        load_weights(self.teacher, teacher.state, "the teacher")
        self.teacher.eval().requires_grad_(False)
        self.teacher_is_ready = False  # whether it is on the device of the training, in its precision

    def build(self) -> Student:  # type: ignore[override]  # the student wraps the classifier
        return Student(super().build(), self.teacher.encoder.width if self.settings.feature_weight else None)

    def batch(self, step: int, rows: range) -> Batch:
        """Return the batch of fine-tuning, without `label` if `hard_weight` is 0."""
        batch = super().batch(step, rows)
        return batch if self.settings.hard_weight else {"video": batch["video"]}

    def labels(self, chosen: Sequence[int]) -> Tensor:
        # Clips without labels can be mixed too. The label 0 is not used then.
        return super().labels(chosen) if self.settings.hard_weight else torch.zeros(len(chosen), dtype=torch.int64)

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        settings = self.settings
        video = batch["video"].to(device, non_blocking=True)
        if not self.teacher_is_ready:
            self.prepare_teacher(device)
        with torch.no_grad():
            tokens = self.teacher.encoder(video)
            target_scores, target_features = self.teacher.head(tokens), tokens.mean(1)
        scores, features = model(video)
        total = soft_loss(scores, target_scores, settings.temperature)
        if settings.hard_weight:
            total = total + settings.hard_weight * self.criterion(scores.float(), batch["label"].to(device, non_blocking=True))
        if settings.feature_weight:
            total = total + settings.feature_weight * feature_loss(features, target_features, settings.feature_loss)
        return total

    def prepare_teacher(self, device: torch.device) -> None:
        """Move the teacher to the device, with the weights of its linear layers in the precision of autocast if that is on.

        Otherwise autocast would cast these weights in every step. The result is the same.
        """
        self.teacher.to(device)
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            for part in self.teacher.modules():
                if isinstance(part, nn.Linear):
                    part.to(torch.get_autocast_dtype(device.type))
        self.teacher_is_ready = True


def soft_loss(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the KL divergence of predictions softened by the temperature, averaged over clips: two `(B, classes)` -> scalar.

    It is multiplied by the squared temperature, so that the magnitude of its gradient does not depend on the temperature
    (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    ours, theirs = (functional.log_softmax(logits.float() / temperature, dim=1) for logits in (scores, target))
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def feature_loss(features: Tensor, target: Tensor, kind: Literal["mse", "cosine"]) -> Tensor:
    """Return the distance between features, averaged over clips (`mse`: also over values): two `(B, D)` -> scalar."""
    features, target = features.float(), target.float()
    if kind == "mse":
        return functional.mse_loss(features, target)
    return 1 - functional.cosine_similarity(features, target, dim=1).mean()
