"""The stages of a plan: what each is decided by.

A stage is settings and input stages in, a folder out. Its key is a hash of just what decides its result, so arms and
notebooks share work; how it is computed (`Compute`) is not part of it. `execution` carries them out.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from vmae_lab.data.activitynet import Split
from vmae_lab.evaluation.probes import pooled_only
from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.report.provenance import provenance
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import Checkpoint, CheckpointError, weights_digest
from vmae_lab.models.sizes import SIZES, ClipShape, Size
from vmae_lab.training.divergence import Divergence
from vmae_lab.training.settings import TrainSettings
from vmae_lab.training.tasks.finetune import FinetuneSettings
from vmae_lab.training.tasks.pretrain import PretrainSettings
from vmae_lab.utils.atomic_io import fingerprint

WEIGHTS, PREDICTIONS, DETECTIONS = "model.safetensors", "predictions.parquet", "detections.csv"
FEATURES, SEGMENTS = "features", "segments.json"
# By kind; to be raised when a change to the code changes results.
VERSIONS = {
    "pretrain": 1,
    "initial": 1,
    "probe": 1,
    "post_pretrain": 1,
    "finetune": 1,
    "views": 2,  # 2: dense windows where the official test protocol places them
    "distill": 1,
    "controls": 1,
    "measure": 1,
    "opened": 1,
    "detect": 1,
    "features": 1,
    "localise": 1,
}


@dataclass(frozen=True)
class Stage:
    """One piece of work, named by what decides its result. `settings` are plain values; `inputs` are stages it needs done.

    `where` is the place of what is read from outside, or the settings that tell it: its content is in the stage's settings, so
    the same elsewhere is the same stage.
    """

    kind: str
    settings: dict[str, Any]
    inputs: tuple["Stage", ...] = field(default=())
    where: str = ""

    @cached_property
    def key(self) -> str:
        parts = {"settings": self.settings, "inputs": [stage.key for stage in self.inputs], "version": VERSIONS[self.kind]}
        return f"{self.kind}-{fingerprint(parts)}"

    @property
    def steps(self) -> int:
        """Optimiser steps, where it is trained; else 0."""
        return self.settings.get(self.kind, {}).get("steps", 0)

    def plain(self) -> dict[str, Any]:
        """As plain values, for another process."""
        inputs = [stage.plain() for stage in self.inputs]
        return {"kind": self.kind, "settings": self.settings, "inputs": inputs, "where": self.where}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Stage":
        """The same stage again."""
        inputs = tuple(cls.from_plain(stage) for stage in values["inputs"])
        return cls(values["kind"], values["settings"], inputs, values["where"])


def pretrain_stage(recipe: Recipe, seed: int) -> Stage:
    """Self-supervised pre-training of one model."""
    return Stage("pretrain", {**_base(recipe, seed), "mask": _plain(recipe.mask), "pretrain": _plain(recipe.pretrain)})


def initial_stage(recipe: Recipe, seed: int) -> Stage:
    """The model that pre-training with this seed starts from: the untrained encoder, the floor of every frozen readout."""
    return Stage("initial", {"model": _plain(recipe.model), "seed": seed})


def probe_stage(recipe: Recipe, encoder: Stage, seed: int) -> Stage:
    """Frozen readouts of an encoder, and its reconstruction error where it was pre-trained."""
    return Stage("probe", {**_base(recipe, seed), **_evaluated(recipe), "probe": _plain(recipe.evaluate.probe)}, (encoder,))


def kept_probe_stage(recipe: Recipe, encoder: Stage, seed: int, step: int) -> Stage:
    """Frozen readouts of the weights that a pre-training kept after a step: the main one, and those of mean tokens."""
    probes = recipe.evaluate.probe.probes
    cheap = [probe for probe in probes if probe == probes[0] or pooled_only([probe])]
    stage = probe_stage(recipe.with_overrides({"evaluate.probe.probes": cheap}), encoder, seed)
    return replace(stage, settings={**stage.settings, "step": step})


def shuffled_probe_stage(recipe: Recipe, encoder: Stage, seed: int) -> Stage:
    """A control: the main frozen readout of an encoder, fitted to labels that are shuffled between the labelled clips."""
    stage = probe_stage(recipe.with_overrides({"evaluate.probe.probes": recipe.evaluate.probe.probes[:1]}), encoder, seed)
    return replace(stage, settings={**stage.settings, "labels_shuffled": True})


def finetune_stage(recipe: Recipe, encoder: Stage | None, seed: int) -> Stage:
    """Fine-tuning with few labels, from an encoder or from scratch."""
    settings = {
        **_base(recipe, seed), **_evaluated(recipe), "finetune": _plain(recipe.evaluate.finetune),
        "labels": recipe.evaluate.finetune_labels,
    }  # fmt: skip
    return Stage("finetune", settings, () if encoder is None else (encoder,))


def views_stage(recipe: Recipe, classifier: Stage, seed: int) -> Stage:
    """A fine-tuned classifier on several views of each held-out video."""
    return Stage("views", {**_base(recipe, seed), **_evaluated(recipe), "views": _plain(recipe.evaluate.views)}, (classifier,))


def post_pretrain_stage(recipe: Recipe, encoder: Stage | None, seed: int) -> Stage:
    """Supervised training on all labels of the sources that are pre-trained on, from an encoder or from scratch."""
    settings = {**_base(recipe, seed), **_held_out_of_the_pool(recipe), "post_pretrain": _plain(recipe.post_pretrain)}
    return Stage("post_pretrain", settings, () if encoder is None else (encoder,))


def distill_stage(recipe: Recipe, teacher: Stage, encoder: Stage | None, seed: int) -> Stage:
    """Teach `recipe.model`, from an encoder or from scratch, to answer as a supervised stage's model does (VideoMAE V2).

    On the clips that are pre-trained on. Raises RecipeError.
    """
    wanted = require(recipe.distill, "distill", "the plan teaches a student")
    settings = {**_base(recipe, seed), **_held_out_of_the_pool(recipe), "distill": _plain(wanted)}
    return Stage("distill", settings, (teacher,) if encoder is None else (teacher, encoder))


def detect_stage(recipe: Recipe, encoder: Stage | None, seed: int) -> Stage:
    """Spatial detection, from an encoder or from scratch. Raises RecipeError."""
    wanted = require(recipe.detect, "detect", "the plan detects actions")
    settings = {
        "model": _plain(recipe.model), "seed": seed, "split": recipe.evaluate.split, "detect": _plain(wanted),
        "scenes_fingerprint": wanted.scenes.fingerprint,
    }  # fmt: skip
    return Stage("detect", settings, () if encoder is None else (encoder,))


def features_stage(recipe: Recipe, encoder: Stage, split: Split) -> Stage:
    """Features of windows along a split's untrimmed videos, whatever is annotated in them. Raises RecipeError."""
    wanted = require(recipe.localise, "localise", "the plan extracts features")
    settings = {
        "model": _plain(recipe.model), "split": split, "features": _plain(wanted.features), "films": wanted.videos.films(split),
    }  # fmt: skip
    return Stage("features", settings, (encoder,), where=wanted.videos.model_dump_json())


def localise_stage(recipe: Recipe, encoder: Stage, seed: int) -> Stage:
    """Temporal detection, from an encoder's features or, where the recipe names such, from features that are there already.

    Raises RecipeError.
    """
    wanted, split = require(recipe.localise, "localise", "the plan detects actions in time"), recipe.evaluate.split
    inputs = (
        (features_stage(recipe, encoder, "train"), features_stage(recipe, encoder, split)) if wanted.videos.extracted else ()
    )
    settings: dict[str, Any] = {
        "seed": seed, "split": split, "localise": _plain(wanted), "videos_fingerprint": wanted.videos.fingerprint,
    }  # fmt: skip
    if not inputs:  # features that are there already say themselves how they were made
        settings["localise"].pop("features")
    return Stage("localise", settings, inputs)


def measure_stage(recipe: Recipe, batch_size: int) -> Stage:
    """Seconds and memory of a pre-training step on this device, at `recipe.measure.size`."""
    settings = {
        "model": _plain(recipe.measure.model_of(recipe.measure.size)), "mask": _plain(recipe.mask), "batch_size": batch_size,
        "steps": recipe.measure.steps, "device": provenance()["device"],
    }  # fmt: skip
    return Stage("measure", settings)


def controls_stage(recipe: Recipe) -> Stage:
    """What can be had without an encoder, and so without a seed: raw pixels, and each single frame."""
    probe = recipe.evaluate.probe
    return Stage("controls", {**_data(recipe), **_evaluated(recipe), "labels": probe.labels, "draws": probe.draws})


def opened_stage(recipe: Recipe, checkpoint: Checkpoint) -> Stage:
    """A checkpoint from outside, on the recipe's clips. Raises CheckpointError where its encoder is not of `recipe.model`."""
    ours, theirs = recipe.model, checkpoint.config
    if _encoder(ours.dimensions, ours.clip) != _encoder(theirs.size, theirs.clip):
        raise CheckpointError(
            f"{checkpoint.where} is {_in_words(theirs.size, theirs.clip)}; the recipe's model is "
            f"{_in_words(ours.dimensions, ours.clip)}. Set model.size, model.patch and model.tubelet to the checkpoint's, or "
            "choose another"
        )
    weights = weights_digest(dict(sorted(checkpoint.state.items())))  # files of one content order it differently
    settings = {"weights": weights, "config": theirs.model_dump(mode="json"), "model": _plain(ours)}
    return Stage("opened", settings, where=checkpoint.where)


def opened_classifier_stage(recipe: Recipe, checkpoint: Checkpoint) -> Stage:
    """The same of one that is judged as it is. Raises CheckpointError where it has not a head for the recipe's data."""
    config, stage = checkpoint.config, opened_stage(recipe, checkpoint)
    if config.classes is None:
        raise CheckpointError(f"{checkpoint.where} holds no class head: fine-tune it first, with `finetune --encoder`")
    if config.classes != recipe.data.classes:
        raise CheckpointError(
            f"{checkpoint.where} tells {config.classes} classes apart; the recipe's data has {recipe.data.classes}"
        )
    if config.readout == "flat" and config.clip.tokens != recipe.model.clip.tokens:
        raise CheckpointError(
            f"{checkpoint.where} reads {config.clip.tokens} tokens by a flat head; clips of the recipe have "
            f"{recipe.model.clip.tokens}. Set model.frames {config.clip.frames} and model.side {config.clip.side}"
        )
    return stage


def _encoder(size: Size, clip: ClipShape) -> tuple[int, ...]:
    """The numbers that decide the shapes of an encoder's weights."""
    return size.width, size.depth, size.heads, size.mlp_hidden, clip.tubelet, clip.patch, clip.channels


def _in_words(size: Size, clip: ClipShape) -> str:
    name = next((name for name, one in SIZES.items() if _encoder(one, clip) == _encoder(size, clip)), "of no known size")
    return f"{name} ({size.depth} blocks, {size.width} wide) on cubes of {clip.tubelet} x {clip.patch} x {clip.patch}"


# What sections got after stages had been run, and the value that means it is not used.
_ADDED: dict[type, dict[str, Any]] = {
    MaskSettings: {"prune": False},
    TrainSettings: {"ema": None, "divergence": Divergence().model_dump(), "scale_min_lr": False},
    PretrainSettings: {"keep_at": [], "target_from": "clip"},
    FinetuneSettings: {"augment": None, "dropout": 0.0, "sampling": "dense", "repeats": 1, "mix": None},
}


def _plain(section: Any) -> dict[str, Any]:
    """A section's values. What was added later and is not used does not rename the stages that were run before."""
    added = {name: unused for kind, names in _ADDED.items() if isinstance(section, kind) for name, unused in names.items()}
    plain = section.model_dump(mode="json")
    # Left out only where the section takes it up again when it is read: temporal detection averages weights unless told not to.
    left_out = [name for name, unused in added.items() if plain[name] == unused == _default(type(section), name)]
    return {name: value for name, value in plain.items() if name not in left_out}


def _default(section: type[BaseModel], name: str) -> Any:
    value = section.model_fields[name].get_default()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _base(recipe: Recipe, seed: int) -> dict[str, Any]:
    return {**_data(recipe), "seed": seed}


def _data(recipe: Recipe) -> dict[str, Any]:
    return {"data": _plain(recipe.data), "data_fingerprint": recipe.data.fingerprint, "model": _plain(recipe.model)}


def _evaluated(recipe: Recipe) -> dict[str, Any]:
    skipping = {"missing": "skip"} if recipe.evaluate.missing == "skip" else {}
    return {"split": recipe.evaluate.split, "sources": list(recipe.evaluate.sources), **skipping}


def _held_out_of_the_pool(recipe: Recipe) -> dict[str, Any]:
    """For what learns from the pool that is pre-trained on: held-out clips of the same sources."""
    return {name: value for name, value in _evaluated(recipe).items() if name != "sources"}
