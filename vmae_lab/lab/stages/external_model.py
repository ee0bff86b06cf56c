"""Stage `opened`: a checkpoint from elsewhere, copied into a folder like that of a stage that trains."""

import warnings
from typing import Any

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import parameter_count
from vmae_lab.lab.stages.stage import Job, Stage, build
from vmae_lab.models.checkpoints import Checkpoint, CheckpointError, weights_digest
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ClipShape, ModelSettings, Size, size_name
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.counts import counted


class OpenedStage(Stage):
    """A checkpoint, named by its weights. `where` is its path or its name on the hub."""

    kind = "opened"

    weights: str
    config: ModelConfig
    model: ModelSettings

    def run(self, job: Job) -> dict[str, Any]:
        shape: dict[str, Any] = {name: getattr(self.model, name) for name in ("frames", "side", "positions")}
        if self.config.model == "VideoMAE":
            opened: Pretrained = VideoMAE.from_pretrained(self.where, **shape)
        else:
            with warnings.catch_warnings():  # if the head does not fit, only the encoder is loaded, with a warning
                warnings.simplefilter("ignore")
                classes = self.config.classes or 1
                opened = VideoClassifier.from_pretrained(self.where, classes=classes, **shape)
        self.save(opened, job, f"opened from {self.where}")
        return {"metrics": {}, "opened": self.where}

    @property
    def parameters(self) -> int:
        return parameter_count(self.model)


def opened_stage(recipe: Recipe, checkpoint: Checkpoint) -> Stage:
    """Build the stage of a checkpoint. Raises CheckpointError if it is a detector or does not fit `recipe.model`."""
    checkpoint.refuse_detector()
    ours = recipe.model
    theirs = checkpoint.config
    if _encoder(ours.dimensions, ours.clip) != _encoder(theirs.size, theirs.clip):
        raise CheckpointError(
            f"{checkpoint.where} is {_described(theirs.size, theirs.clip)}; the recipe's model is "
            f"{_described(ours.dimensions, ours.clip)}. Set model.size, model.patch, model.tubelet and model.layer_scale to "
            "those of the checkpoint, or choose another checkpoint"
        )
    weights = weights_digest(dict(sorted(checkpoint.state.items())))  # equal weights can be in a different order
    positions_from = checkpoint.reshaped(ours.frames, ours.side, ours.positions).positions_from
    model = ours.model_copy(update={"positions_from": positions_from})
    return build(OpenedStage, recipe, weights=weights, config=theirs.hashed, where=checkpoint.where, model=model)


def opened_classifier_stage(recipe: Recipe, checkpoint: Checkpoint) -> Stage:
    """Build the stage of a checkpoint to evaluate without training. Raises CheckpointError if its head does not fit."""
    config = checkpoint.config
    stage = opened_stage(recipe, checkpoint)
    if config.classes is None:
        raise CheckpointError(f"{checkpoint.where} has no classification head. Fine-tune it first with `finetune --encoder`")
    if config.classes != recipe.data.classes:
        raise CheckpointError(
            f"{checkpoint.where} has a head for {counted(config.classes, 'class')}, but the recipe's data has "
            f"{recipe.data.classes}"
        )
    if config.readout == "flat" and config.clip.tokens != recipe.model.clip.tokens:
        raise CheckpointError(
            f"{checkpoint.where} has a flat head for {config.clip.tokens} tokens, but clips of the recipe have "
            f"{recipe.model.clip.tokens}. Set model.frames to {config.clip.frames} and model.side to "
            f"{config.clip.as_json['side']}"
        )
    return stage


def _encoder(size: Size, clip: ClipShape) -> tuple[int, ...]:
    """Return the numbers that decide the shapes of an encoder's weights."""
    scaled = size.layer_scale is not None
    return size.width, size.depth, size.heads, size.mlp_hidden, scaled, clip.tubelet, clip.patch, clip.channels


def _described(size: Size, clip: ClipShape) -> str:
    name = size_name(size.width, size.depth, size.mlp_hidden, size.heads) or "of unknown size"
    scale = "" if size.layer_scale is None else f", layer_scale {size.layer_scale:g}"
    patch = f"{clip.tubelet} x {clip.patch} x {clip.patch}"
    return f"{name} ({size.depth} blocks, width {size.width}{scale}) on patches of {patch}"
