"""Weights kept along a training, for readouts at several of its steps."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vmae_lab.models.checkpoints.save import write_weights
from vmae_lab.training.distributed import gathered_state_dict
from vmae_lab.utils.processes import process_state


def kept_file(step: int) -> str:
    """The name of the file with the weights after a step, in the folder of the training."""
    return f"model-step-{step:06d}.safetensors"


class KeptWeights:
    """The files of one training: weights after each of `steps`, in the format of `model.safetensors`."""

    def __init__(self, folder: Path, steps: Sequence[int]):
        self.folder, self.steps = folder, frozenset(steps)

    def save(self, step: int, model: nn.Module) -> None:
        """Write a model's weights. All processes call it together, and the first writes. Raises StorageError."""
        weights = gathered_state_dict(model)
        if process_state().is_main_process:
            write_weights(self.folder / kept_file(step), weights)

    def drop_after(self, step: int) -> None:
        """Remove the weights of steps that a run which continues from `step` will repeat."""
        for later in self.steps:
            if later > step:
                (self.folder / kept_file(later)).unlink(missing_ok=True)
