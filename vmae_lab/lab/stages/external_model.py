"""The kind `opened`: a checkpoint from elsewhere, as a folder like that of a stage that trained it."""

import warnings
from dataclasses import replace
from typing import Any

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import parameter_count
from vmae_lab.lab.stages.stage import Job, Stage, build
from vmae_lab.models.checkpoints import Checkpoint, CheckpointError, weights_digest
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import SIZES, ClipShape, ModelSettings, Size
from vmae_lab.models.videomae import VideoMAE


class OpenedStage(Stage):
    """A checkpoint, named by its weights; `where` is its path or its name on the hub."""

    kind = "opened"

    weights: str
    config: ModelConfig
    model: ModelSettings

    def run(self, job: Job) -> dict[str, Any]:
        frames, side = self.model.frames, self.model.side
        if self.config.model == "VideoMAE":
            opened: Pretrained = VideoMAE.from_pretrained(self.where, frames=frames, side=side)
        else:
            with warnings.catch_warnings():  # about a head that does not fit: then only the encoder is loaded
                warnings.simplefilter("ignore")
                classes = self.config.classes or 1
                opened = VideoClassifier.from_pretrained(self.where, classes=classes, frames=frames, side=side)
        self.save(opened, job, f"opened from {self.where}")
        return {"metrics": {}, "opened": self.where}

    @property
    def disk_bytes(self) -> int:
        return 4 * parameter_count(self.model)


def opened_stage(recipe: Recipe, checkpoint: Checkpoint) -> Stage:
    """A checkpoint on the recipe's clips. Raises CheckpointError if its encoder does not fit `recipe.model`."""
    ours, theirs = recipe.model, checkpoint.config
    if _encoder(ours.dimensions, ours.clip) != _encoder(theirs.size, theirs.clip):
        raise CheckpointError(
            f"{checkpoint.where} is {_described(theirs.size, theirs.clip)}; the recipe's model is "
            f"{_described(ours.dimensions, ours.clip)}. Set model.size, model.patch, model.tubelet and model.layer_scale to "
            "the checkpoint's, or choose another checkpoint"
        )
    weights = weights_digest(dict(sorted(checkpoint.state.items())))  # files of one content order it differently
    return build(OpenedStage, recipe, weights=weights, config=theirs.hashed, where=checkpoint.where)


def opened_classifier_stage(recipe: Recipe, checkpoint: Checkpoint) -> Stage:
    """A checkpoint that is evaluated without training. Raises CheckpointError if it has no head for the recipe's data."""
    config, stage = checkpoint.config, opened_stage(recipe, checkpoint)
    if config.classes is None:
        raise CheckpointError(f"{checkpoint.where} has no class head: fine-tune it first, with `finetune --encoder`")
    if config.classes != recipe.data.classes:
        raise CheckpointError(
            f"{checkpoint.where} has a head for {config.classes} classes; the recipe's data has {recipe.data.classes}"
        )
    if config.readout == "flat" and config.clip.tokens != recipe.model.clip.tokens:
        raise CheckpointError(
            f"{checkpoint.where} has a flat head for {config.clip.tokens} tokens; clips of the recipe have "
            f"{recipe.model.clip.tokens}. Set model.frames {config.clip.frames} and model.side {config.clip.side}"
        )
    return stage


def _encoder(size: Size, clip: ClipShape) -> tuple[int, ...]:
    """The numbers that determine the shapes of an encoder's weights."""
    scaled = size.layer_scale is not None
    return size.width, size.depth, size.heads, size.mlp_hidden, scaled, clip.tubelet, clip.patch, clip.channels


def _described(size: Size, clip: ClipShape) -> str:
    plain = _encoder(replace(size, layer_scale=None), clip)
    name = next((name for name, known in SIZES.items() if _encoder(known, clip) == plain), "of no known size")
    scale = "" if size.layer_scale is None else f", layer_scale {size.layer_scale:g}"
    return f"{name} ({size.depth} blocks, {size.width} wide{scale}) on cubes of {clip.tubelet} x {clip.patch} x {clip.patch}"
