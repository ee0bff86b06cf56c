"""Stages `pretrain` (self-supervised pre-training) and `initial` (the untrained model that it starts from)."""

from typing import Any

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import Work, loading_seconds, parameter_count, step_macs
from vmae_lab.lab.stages.inputs import ClipStage, corrupt_videos_in, replaced_videos
from vmae_lab.lab.stages.stage import Job, Stage, build, training_cost
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import open_checkpoint
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.seeding import seeded


class PretrainStage(ClipStage):
    """Self-supervised pre-training of one model: from new weights, or from those of an opened checkpoint as its input."""

    kind = "pretrain"
    reads = ("pretrain",)

    seed: int
    mask: MaskSettings
    pretrain: PretrainSettings

    def run(self, job: Job) -> dict[str, Any]:
        clips = self.clips("pretrain", self.data.pretrain_sources, job.compute)
        corrupt = corrupt_videos_in(job.folder)
        initial = open_checkpoint(job.inputs[0]) if job.inputs else None
        task = PretrainTask(self.model, self.mask, self.pretrain, self.data, clips, self.seed, corrupt, initial)
        trained = train(task, job.folder, job.compute, job.progress, self.pretrain.kept_steps)
        trained.model.stride = self.data.stride
        self.save(trained.model, job)
        return {
            "metrics": {}, "training": training_cost(trained), "samples_by_source": task.samples_by_source(),
            **replaced_videos(corrupt),
        }  # fmt: skip

    @property
    def work(self) -> Work:
        layers = self.model.dimensions.depth + self.model.dimensions.decoder_depth
        macs = self.steps * step_macs(self.model, self.mask, self.pretrain.batch_size)
        loading_s = loading_seconds(self.pretrain, self.model, self.data)
        return Work(training=macs, layer_steps=layers * self.steps, loading_s=loading_s)

    @property
    def parameters(self) -> int:
        return parameter_count(self.model)

    @property
    def disk_bytes(self) -> int:
        return super().disk_bytes * (1 + len(self.pretrain.kept_steps))


class InitialStage(Stage):
    """The untrained model that pre-training with the same seed starts from: a baseline for frozen readouts."""

    kind = "initial"

    model: ModelSettings
    seed: int

    def run(self, job: Job) -> dict[str, Any]:
        with seeded(self.seed, "initial weights"):
            model = VideoMAE(self.model.dimensions, self.model.clip)
        self.save(model, job)
        return {"metrics": {}}

    @property
    def parameters(self) -> int:
        return parameter_count(self.model)


def pretrain_stage(recipe: Recipe, seed: int, encoder: Stage | None = None) -> Stage:
    """Build the stage that pre-trains one model, from new weights or from those of an opened checkpoint."""
    return build(PretrainStage, recipe, encoder, seed=seed)


def initial_stage(recipe: Recipe, seed: int) -> Stage:
    """Build the stage that writes the untrained model of a seed."""
    return build(InitialStage, recipe, seed=seed)
