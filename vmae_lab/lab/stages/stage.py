"""The base class of all stages: key, cost, and checks.

A stage reads its settings and the folders of its input stages, and writes a folder. Its key is a hash of what decides the
result, so arms and notebooks share stages. How it is computed (`Compute`) is not part of the key.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import EmbeddedVideos, Work
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import State, read_weights
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.checkpoint import Checkpoints
from vmae_lab.training.divergence import Divergence
from vmae_lab.training.loop import Trained
from vmae_lab.training.settings import Compute, TrainSettings
from vmae_lab.training.tasks.finetune import FinetuneSettings, encoder_state
from vmae_lab.training.tasks.pretrain import PretrainSettings
from vmae_lab.utils.atomic_io import fingerprint
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.settings import Settings

# Files of a stage's folder.
WEIGHTS, PREDICTIONS, DETECTIONS = "model.safetensors", "predictions.parquet", "detections.csv"
FEATURES, SEGMENTS = "features", "segments.json"
HELD_OUT = "held out"  # in `Stage.reads`: the split that the recipe evaluates on


@dataclass
class Job:
    """How to run a stage: its folder, the folders of its inputs, and how to compute. `result`: what `Stage.run` returned."""

    folder: Path
    inputs: tuple[Path, ...]
    compute: Compute
    progress: bool = True
    result: dict[str, Any] = field(default_factory=dict)


class Stage(Settings):
    """A unit of computation, named by a hash of what determines its result. Each kind is a subclass in its own file.

    The fields of a kind are the settings in its key. A field with its default value is left out of the key, so that a new field
    does not rename finished stages. `inputs` are the stages that must be finished first. `where` is the path of an external
    file: the key depends on the content of the file, not on its path.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1  # increase it when a change of the code changes results
    reads: ClassVar[tuple[str, ...]] = ()  # splits of the recipe's data that it reads, or HELD_OUT

    inputs: tuple["Stage", ...] = ()
    where: str = ""

    def run(self, job: Job) -> dict[str, Any]:
        """Write the files of the stage to `job.folder`. Return its result, which has at least `metrics`."""
        raise NotImplementedError

    def remove_checkpoints(self, folder: Path) -> None:
        """Remove the files that only an unfinished run needs."""
        for name in ("checkpoint", "turning_point"):
            Checkpoints(folder, name).drop()

    # ---------------------------------------------------------------- the key

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings in the key, as JSON values."""
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

    # ---------------------------------------------------------------- the cost

    @property
    def section(self) -> Any:
        """The settings that have the name of the kind, such as `pretrain`; None if there are none."""
        return getattr(self, self.kind, None)

    @property
    def steps(self) -> int:
        """Number of optimizer steps; 0 if the stage does not train."""
        return getattr(self.section, "steps", 0)

    @property
    def work(self) -> Work:
        """The work of the stage, by the resource that limits it."""
        return Work()

    @property
    def macs(self) -> float:
        """Multiply-accumulates of training (forward and backward) and of the forward passes of evaluation."""
        return self.work.training + self.work.prediction

    @property
    def parameters(self) -> int:
        """Number of parameters of the model that the stage writes."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """About how many bytes the finished stage takes on disk: its float32 weights."""
        return 4 * self.parameters

    @property
    def embedded_videos(self) -> EmbeddedVideos | None:
        """The embedded videos that the stage reads. They are written at first use."""
        return None

    # ---------------------------------------------------------------- checks before a plan runs

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the stage reads: `reads`, and those that it reads because of its settings."""
        return self.reads

    @property
    def drawn_labels(self) -> dict[str, int | None]:
        """How many labeled clips are drawn, by the name of the setting; None means all."""
        return {}

    @property
    def learns_pretraining_labels(self) -> bool:
        """Whether the stage needs labels of the videos to pre-train on."""
        return False

    # ---------------------------------------------------------------- the model

    def save(self, model: Pretrained, job: Job, origin: str = "") -> None:
        """Write the model of the stage for `from_pretrained`. Only the first process writes."""
        if process_state().is_main_process:
            origin = origin or f"{self.kind}, seed {self.settings['seed']}"
            model.save_pretrained(job.folder, story=f"Stage `{self.key}` of a run of vmae_lab: {origin}.")


def build(kind: type[Stage], recipe: Recipe, *inputs: Stage | None, **own: Any) -> Stage:
    """Build a stage from the recipe's settings with the names of its fields, and from `own`. Inputs of None are left out.

    Its model keeps the positions of its first input's model, which may be interpolated from those of an opened checkpoint.
    """
    settings = {**dict(recipe), "model": positioned(recipe.model, *inputs[:1]), **dict(recipe.evaluate), **own}
    if "data_fingerprint" in kind.model_fields:
        settings["data_fingerprint"] = recipe.data.fingerprint
    fields = {name: value for name, value in settings.items() if name in own or name in kind.model_fields}
    return kind(**fields, inputs=tuple(stage for stage in inputs if stage is not None))


def positioned(model: ModelSettings, source: Stage | None = None) -> ModelSettings:
    """Return the model with the positions that it takes over from a stage whose weights it starts from, or that it evaluates.

    Both are equal unless the stage's model, or the checkpoint that it started from, has another grid of tokens.
    """
    origin = getattr(source, "model", None)
    if not isinstance(origin, ModelSettings) or (origin.tubelet, origin.clip.patch) != (model.tubelet, model.clip.patch):
        return model
    clip = origin.clip.reshaped(model.frames, model.side, model.positions)
    return model.model_copy(update={"positions_from": clip.positions_from})


def input_encoder_state(folder: Path) -> State:
    """Read the encoder's weights from the folder of a pre-training or of a classifier, which has no final LayerNorm."""
    return encoder_state(read_weights(folder / WEIGHTS))


def training_cost(trained: Trained) -> dict[str, Any]:
    """Return what the result of a stage records about its training."""
    return {
        "seconds_per_step": trained.seconds_per_step, "device": trained.device, "precision": trained.precision,
        "peak_memory_mib": trained.peak_memory_mib,
        **({} if trained.first_step_seconds is None else {"first_step_seconds": trained.first_step_seconds}),
        **({"processes": trained.processes} if trained.processes > 1 else {}),
        **({"rolled_back": trained.rolled_back} if trained.rolled_back else {}),
    }  # fmt: skip


# ---------------------------------------------------------------- settings as JSON values

# Fields that were added after stages had been run, with the value that means "not used". Unused ones stay out of keys.
ADDED: dict[type[BaseModel], dict[str, Any]] = {
    MaskSettings: {"prune": False},
    ModelSettings: {"layer_scale": None, "positions": "interpolate", "positions_from": None},
    TrainSettings: {"ema": None, "divergence": Divergence().model_dump(), "scale_min_lr": False},
    PretrainSettings: {"keep_at": [], "target_from": "clip"},
    FinetuneSettings: {
        "augment": None,
        "dropout": 0.0,
        "sampling": "dense",
        "repeats": 1,
        "mix": None,
        "validate_every": 0,
        "keep": "last",
    },
}


def plain_section(value: Any) -> Any:
    """Return a setting as JSON values. Fields in ADDED are left out if they are not used."""
    plain = to_jsonable_python(value)
    for kind, unused in ADDED.items():
        if not isinstance(value, kind):
            continue
        for name in unused:
            # Only if it is also the default: `ema: null` in temporal detection is not the default, so it must be in the key.
            default = to_jsonable_python(type(value).model_fields[name].get_default())
            if plain[name] == unused[name] == default:
                del plain[name]
    return plain
