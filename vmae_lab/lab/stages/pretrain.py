"""Self-supervised pre-training, and the untrained model that it starts from."""

from typing import Any

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import Work, loading_seconds, parameter_count, step_macs
from vmae_lab.lab.stages.inputs import ClipStage, clip_settings, corrupt_videos_in, replaced_videos
from vmae_lab.lab.stages.stage import Job, Stage, training_cost
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.seeding import seeded


class PretrainStage(ClipStage):
    """Self-supervised pre-training of one model."""

    kind = "pretrain"
    reads = ("pretrain",)

    seed: int
    mask: MaskSettings
    pretrain: PretrainSettings

    def run(self, job: Job) -> dict[str, Any]:
        clips = self.clips("pretrain", self.data.pretrain_sources, job.compute)
        task = PretrainTask(
            self.model, self.mask, self.pretrain, self.data, clips, self.seed, corrupt_videos_in(job.folder)
        )  # fmt: skip
        trained = train(task, job.folder, job.compute, job.progress, self.pretrain.kept_steps)
        self.save(trained.model, job)
        return {
            "metrics": {}, "training": training_cost(trained), "samples_by_source": task.samples_by_source(),
            **replaced_videos(task.corrupt_videos),
        }  # fmt: skip

    @property
    def macs(self) -> float:
        return self.steps * step_macs(self.model, self.mask, self.pretrain.batch_size)

    @property
    def work(self) -> Work:
        layers = self.model.dimensions.depth + self.model.dimensions.decoder_depth
        loading_s = loading_seconds(self.pretrain, self.model, self.data)
        return Work(training=self.macs, layer_steps=layers * self.steps, loading_s=loading_s)

    @property
    def disk_bytes(self) -> int:
        return 4 * parameter_count(self.model) * (1 + len(self.pretrain.kept_steps))


class InitialStage(Stage):
    """The untrained model that pre-training with the same seed starts from: the lower bound of every frozen readout."""

    kind = "initial"

    model: ModelSettings
    seed: int

    def run(self, job: Job) -> dict[str, Any]:
        with seeded(self.seed, "initial weights"):
            model = VideoMAE(self.model.dimensions, self.model.clip)
        self.save(model, job)
        return {"metrics": {}}

    @property
    def disk_bytes(self) -> int:
        return 4 * parameter_count(self.model)


def pretrain_stage(recipe: Recipe, seed: int) -> PretrainStage:
    """Self-supervised pre-training of one model."""
    return PretrainStage(**clip_settings(recipe), seed=seed, mask=recipe.mask, pretrain=recipe.pretrain)


def initial_stage(recipe: Recipe, seed: int) -> InitialStage:
    """The untrained model that pre-training with this seed starts from."""
    return InitialStage(model=recipe.model, seed=seed)
