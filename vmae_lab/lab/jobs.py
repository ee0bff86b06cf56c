"""What a stage is carried out with, and what the rooms that carry stages out share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae_lab.lab.stages import WEIGHTS, Stage
from vmae_lab.models.checkpoints import State, read_weights
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.training.loop import Trained
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.finetune import encoder_state
from vmae_lab.utils.processes import process_state


@dataclass(frozen=True)
class Job:
    """What a stage is carried out with: its own folder, its inputs' folders, and the computing settings."""

    stage: Stage
    folder: Path
    input_folders: tuple[Path, ...]
    compute: Compute
    progress: bool

    def section(self, name: str) -> Any:
        return self.stage.settings[name]


def save_model(job: Job, model: Pretrained) -> None:
    """The stage's model as a folder that `from_pretrained` opens, written by the first process."""
    if not process_state().is_main_process:
        return
    kind, seed = job.stage.kind, job.section("seed")
    model.save_pretrained(job.folder, story=f"Stage `{job.stage.key}` of a run of vmae_lab: {kind}, seed {seed}.")


def input_encoder_state(folder: Path) -> State:
    """An input stage's encoder weights, of a pre-training or of a classifier (which has no final LayerNorm)."""
    return encoder_state(read_weights(folder / WEIGHTS))


def training_cost(trained: Trained) -> dict[str, Any]:
    """What a training took, for its stage's result."""
    return {
        "seconds_per_step": trained.seconds_per_step, "device": trained.device, "precision": trained.precision,
        "peak_memory_mib": trained.peak_memory_mib,
        **({"processes": trained.processes} if trained.processes > 1 else {}),
        **({"rolled_back": trained.rolled_back} if trained.rolled_back else {}),
    }  # fmt: skip
