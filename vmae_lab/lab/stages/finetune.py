"""Stages `finetune` (supervised training with few labels) and `post_pretrain` (with all labels of the pre-training data)."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from vmae_lab.data.dataset import Clips
from vmae_lab.evaluation.classification import top1
from vmae_lab.evaluation.probes import draw_labelled
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import BACKWARD, Work, count_parameters, loading_seconds, reading_seconds
from vmae_lab.lab.stages.inputs import EvaluatedStage, corrupt_videos_in, inference, replaced_videos
from vmae_lab.lab.stages.stage import HELD_OUT, WEIGHTS, Job, Stage, build, input_encoder_state, training_cost
from vmae_lab.models.checkpoints import load_weights, read_weights
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.finetune import FinetuneSettings, FinetuneTask, predict
from vmae_lab.training.validation import Validation
from vmae_lab.utils.processes import process_state

VALIDATION = "validation"  # the split that a training is validated on


class SupervisedStage(EvaluatedStage):
    """Training of a classifier from the encoder of its input, or from scratch without an input. Evaluated by top-1 accuracy."""

    seed: int

    def labelled(self, compute: Compute) -> tuple[Clips, np.ndarray]:
        """Return clips, and which of their rows to train on."""
        raise NotImplementedError

    def run(self, job: Job) -> dict[str, Any]:
        clips, rows = self.labelled(job.compute)
        held_out, counts = self.held_out_clips(job.compute)
        validation, validation_counts = self.validation(job.compute)
        encoder = input_encoder_state(job.inputs[0]) if job.inputs else None
        corrupt = corrupt_videos_in(job.folder)
        task = FinetuneTask(self.model, self.section, self.data, clips, rows.tolist(), encoder, self.seed, corrupt)
        trained = train(task, job.folder, job.compute, job.progress, validation=validation)
        self.save_classifier(trained.model, job)
        scores = self.predict(trained.model, held_out, job.compute)
        return {
            "metrics": {self.kind: top1(scores.argmax(1).numpy(), held_out.labels)}, "training": training_cost(trained),
            "labelled_clips": len(rows), **counts, **validation_counts, **replaced_videos(corrupt),
            **({"best": trained.best} if trained.best else {}),
        }  # fmt: skip

    def validation(self, compute: Compute) -> tuple[Validation | None, dict[str, Any]]:
        """Return what the training is validated on, if it is, and what the result records about these clips."""
        settings: FinetuneSettings = self.section
        if not settings.validate_every:
            return None, {}
        clips, left_out = self.readable_clips(VALIDATION, compute)
        counts = {"validation_clips": len(clips), **({"left_out_of_validation": left_out} if left_out else {})}
        predict_clips = partial(self.predict, compute=compute)
        return Validation(clips, predict_clips, settings.validate_every, settings.keep == "best"), counts

    def predict(self, classifier: nn.Module, clips: Clips, compute: Compute) -> Tensor:
        """Class logits of each clip: `(n, classes)` on the CPU. Raises MissingVideos."""
        return predict(classifier, clips, self.model, self.data.stride, self.section.sampling, inference(compute))

    def save_classifier(self, classifier: VideoClassifier, job: Job) -> None:
        """Save the trained classifier with the names of its classes and the sampling of its clips, for predictions."""
        classifier.class_names = self.data.class_names
        classifier.stride, classifier.sampling = self.data.stride, self.section.sampling
        self.save(classifier, job)

    def build(self) -> VideoClassifier:
        """Build the classifier, with initial weights."""
        return VideoClassifier(self.model.dimensions, self.model.clip, self.data.classes, self.section.readout)

    def load(self, folder: Path) -> VideoClassifier:
        """Load the classifier of a finished stage on the device, for evaluation."""
        classifier = self.build()
        load_weights(classifier, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
        return classifier.to(process_state().device).eval()

    @property
    def parameters(self) -> int:
        return count_parameters(self.build)

    @property
    def splits(self) -> tuple[str, ...]:
        return (*self.reads, VALIDATION) if self.section.validate_every else self.reads

    @property
    def work(self) -> Work:
        evaluated = self.held_out_count + self.section.validations * self.clip_count(VALIDATION)
        return Work(
            self.clip_macs * BACKWARD * self.steps * self.section.batch_size, self.clip_macs * evaluated,
            layer_steps=self.model.dimensions.depth * self.steps,
            loading_s=loading_seconds(self.section, self.model, self.data),
            reading_s=evaluated * reading_seconds(self.model, self.data),
        )  # fmt: skip


class FinetuneStage(SupervisedStage):
    """Fine-tuning with some labels, or with all if `labels` is None."""

    kind = "finetune"
    reads = ("train", HELD_OUT)

    finetune: FinetuneSettings
    labels: int | None

    def labelled(self, compute: Compute) -> tuple[Clips, np.ndarray]:
        clips = self.clips("train", self.evaluated_sources, compute)
        if self.labels is None:
            return clips, np.arange(len(clips))
        return clips, draw_labelled(clips.labels, self.labels, self.data.seed, self.seed)

    @property
    def drawn_labels(self) -> dict[str, int | None]:
        return {"evaluate.finetune_labels": self.labels}


class PostPretrainStage(SupervisedStage):
    """Supervised training on all labels of the clips to pre-train on. Evaluated on held-out clips of the same sources."""

    kind = "post_pretrain"
    reads = ("pretrain", HELD_OUT)

    post_pretrain: FinetuneSettings

    def labelled(self, compute: Compute) -> tuple[Clips, np.ndarray]:
        clips = self.clips("pretrain", self.data.pretrain_sources, compute)
        return clips, np.arange(len(clips))

    @property
    def learns_pretraining_labels(self) -> bool:
        return True


def finetune_stage(recipe: Recipe, encoder: Stage | None, seed: int) -> Stage:
    """Build a fine-tuning stage, from an encoder or from scratch."""
    return build(FinetuneStage, recipe, encoder, seed=seed, labels=recipe.evaluate.finetune_labels)


def post_pretrain_stage(recipe: Recipe, encoder: Stage | None, seed: int) -> Stage:
    """Build a post-pre-training stage, from an encoder or from scratch."""
    return build(PostPretrainStage, recipe, encoder, seed=seed, sources=None)
