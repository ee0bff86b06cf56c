"""What all kinds of stages share: how a stage is named, its way to another process, and what it is run with.

A stage is settings and input stages in, a folder out. Its key is a hash of what decides its result and of nothing else, so arms
and notebooks share stages. How it is computed (`Compute`) is not part of the key.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import Work
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import State, read_weights
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.divergence import Divergence
from vmae_lab.training.loop import Trained
from vmae_lab.training.settings import Compute, TrainSettings
from vmae_lab.training.tasks.finetune import FinetuneSettings, encoder_state
from vmae_lab.training.tasks.pretrain import PretrainSettings
from vmae_lab.utils.atomic_io import fingerprint
from vmae_lab.utils.processes import process_state

# Files of a stage's folder.
WEIGHTS, PREDICTIONS, DETECTIONS = "model.safetensors", "predictions.parquet", "detections.csv"
FEATURES, SEGMENTS = "features", "segments.json"
KINDS: dict[str, type["Stage"]] = {}  # by name: each kind is added when its file is imported (lab/stages/__init__.py)
HELD_OUT = "held out"  # in `Stage.reads`: the split that the recipe evaluates on


@dataclass(frozen=True)
class Job:
    """What a stage is run with: its folder, the folders of its inputs, and how to compute."""

    folder: Path
    inputs: tuple[Path, ...]
    compute: Compute
    progress: bool = True
    started: float = field(default_factory=time.perf_counter)


class Stage(BaseModel):
    """One piece of work, named by what decides its result. Each kind is a subclass in a file of its own.

    The fields of a kind are the settings in its key. A field that has a default is left out of the key while it has this value:
    a field that is added later then renames no finished stage. `inputs` are the stages that have to be finished before; `where`
    is the path of what is read from outside, whose content is in the key and whose place is not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when a change to the code changes results
    reads: ClassVar[tuple[str, ...]] = ()  # splits of the recipe's data, with HELD_OUT; none if only the inputs are read

    inputs: tuple["Stage", ...] = ()
    where: str = ""

    def run(self, job: Job) -> dict[str, Any]:
        """Write the files of the stage into `job.folder` and return its result, which has at least `metrics`."""
        raise NotImplementedError

    # ---------------------------------------------------------------- what names it

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings in the key, as plain values."""
        values = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in Stage.model_fields and (info.is_required() or value != info.default):
                values[info.alias or name] = plain_section(value)
        return values

    @cached_property
    def key(self) -> str:
        parts = {"settings": self.settings, "inputs": [stage.key for stage in self.inputs], "version": self.version}
        return f"{self.kind}-{fingerprint(parts)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def plain(self) -> dict[str, Any]:
        """The stage as plain values, for another process."""
        inputs = [stage.plain() for stage in self.inputs]
        return {"kind": self.kind, "settings": self.settings, "inputs": inputs, "where": self.where}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> "Stage":
        """The stage that `plain` described."""
        inputs = tuple(map(Stage.from_plain, values["inputs"]))
        return KINDS[values["kind"]](**values["settings"], inputs=inputs, where=values["where"])

    # ---------------------------------------------------------------- what it costs

    @property
    def section(self) -> Any:
        """The settings that are called as the kind is, such as `pretrain`; None if there are none."""
        return getattr(self, self.kind, None)

    @property
    def steps(self) -> int:
        """Optimiser steps of a stage that trains; else 0."""
        return getattr(self.section, "steps", 0)

    @property
    def work(self) -> Work:
        """All the work, by the resource that limits it."""
        return Work()

    @property
    def macs(self) -> float:
        """Multiply-accumulates: forward and backward of every step, and the forward passes of evaluation."""
        return self.work.training + self.work.prediction

    @property
    def disk_bytes(self) -> int:
        """Bytes that the finished stage leaves on disk, about."""
        return 0

    # ---------------------------------------------------------------- what a plan checks before it runs

    @property
    def drawn_labels(self) -> dict[str, int | None]:
        """Numbers of labelled clips that are drawn, by the recipe's setting; None for all."""
        return {}

    @property
    def learns_pretraining_labels(self) -> bool:
        """Whether it needs labels of the videos to pre-train on."""
        return False

    # ---------------------------------------------------------------- what it writes

    def save(self, model: Pretrained, job: Job, origin: str = "") -> None:
        """Write the stage's model as a folder for `from_pretrained`; of several processes the first one writes."""
        if process_state().is_main_process:
            origin = origin or f"{self.kind}, seed {self.settings['seed']}"
            model.save_pretrained(job.folder, story=f"Stage `{self.key}` of a run of vmae_lab: {origin}.")


def build(kind: type[Stage], recipe: Recipe, *inputs: Stage | None, **own: Any) -> Stage:
    """A stage whose fields are the recipe's settings of the same names, and `own`. Inputs that are None are left out."""
    settings = {**dict(recipe), **dict(recipe.evaluate), **own}
    if "data_fingerprint" in kind.model_fields:
        settings["data_fingerprint"] = recipe.data.fingerprint
    fields = {name: value for name, value in settings.items() if name in own or name in kind.model_fields}
    return kind(**fields, inputs=tuple(stage for stage in inputs if stage is not None))


def input_encoder_state(folder: Path) -> State:
    """The encoder's weights in the folder of a pre-training or of a classifier (which has no final LayerNorm)."""
    return encoder_state(read_weights(folder / WEIGHTS))


def training_cost(trained: Trained) -> dict[str, Any]:
    """What a training took, for the stage's result."""
    return {
        "seconds_per_step": trained.seconds_per_step, "device": trained.device, "precision": trained.precision,
        "peak_memory_mib": trained.peak_memory_mib,
        **({"processes": trained.processes} if trained.processes > 1 else {}),
        **({"rolled_back": trained.rolled_back} if trained.rolled_back else {}),
    }  # fmt: skip


# ---------------------------------------------------------------- plain values of settings

# Fields that sections got after stages had been run, with the value that means "not used".
ADDED: dict[type, dict[str, Any]] = {
    MaskSettings: {"prune": False},
    ModelSettings: {"layer_scale": None},
    TrainSettings: {"ema": None, "divergence": Divergence().model_dump(), "scale_min_lr": False},
    PretrainSettings: {"keep_at": [], "target_from": "clip"},
    FinetuneSettings: {"augment": None, "dropout": 0.0, "sampling": "dense", "repeats": 1, "mix": None},
}


def plain_section(value: Any) -> Any:
    """A setting as plain values. Fields of a section that were added later are left out while they are not used."""
    plain = to_jsonable_python(value)
    for kind, unused in ADDED.items():
        for name in unused if isinstance(value, kind) else ():
            # Only if reading the section again gives the same value: temporal detection averages weights unless it is null.
            default = to_jsonable_python(type(value).model_fields[name].get_default())
            if plain[name] == unused[name] == default:
                del plain[name]
    return plain
