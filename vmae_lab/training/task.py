"""What the training loop trains: settings, a model, batches and a loss. docs/extending.md shows how to add a task."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from vmae_lab.training.dataloader import Batch, RowSize
from vmae_lab.training.settings import TrainSettings

Model = TypeVar("Model", bound=nn.Module, covariant=True)


class Task(ABC, Generic[Model]):
    """The base class of what can be trained."""

    settings: TrainSettings
    seed: int

    @abstractmethod
    def build(self) -> Model:
        """Return the model with its initial weights."""

    @abstractmethod
    def batch(self, step: int, rows: range) -> Batch:
        """Return some rows of a step's global batch, on the CPU: a pure function of the seed and the arguments."""

    def training_batch(self, step: int, rows: range) -> Batch:
        """Return what `loss` takes, if it differs from what is drawn. The default is `batch`."""
        return self.batch(step, rows)

    @property
    def row_size(self) -> RowSize:
        """The size of a row, with which loader workers build parts of a batch. By default, each builds whole batches."""
        return RowSize()

    def weight(self, batch: Batch) -> float:
        """Return the number of terms in the batch's loss: its weight in the mean over micro-batches and processes.

        The default is the number of rows.
        """
        return float(len(next(iter(batch.values()))))

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """Return the mean loss of a batch: a scalar on the device."""
