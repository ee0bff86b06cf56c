"""The attentive probe: a classifier with one learned query on frozen tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmae_lab.data.samplers import EpochOrder
from vmae_lab.models.classifier import ClassHead
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.settings import TrainSettings
from vmae_lab.training.task import Task


@dataclass(eq=False)
class AttentiveProbeTask(Task[nn.Module]):
    """Predict classes from features `(n, N, D)`, which stay in memory on any device. Batches contain only row numbers."""

    features: Tensor
    labels: Tensor
    heads: int
    classes: int
    settings: TrainSettings
    seed: int

    def __post_init__(self) -> None:
        self.order = EpochOrder(len(self.labels), self.seed, "probe order")

    def build(self) -> nn.Module:
        _, tokens, width = self.features.shape
        return ClassHead(tokens, width, self.heads, self.classes, "attentive", init_scale=1.0)

    def batch(self, step: int, rows: range) -> Batch:
        """Return `row`, int64 `(B,)`, of the features, and `label`, int64 `(B,)`."""
        chosen = torch.tensor([self.order[step * self.settings.batch_size + row] for row in rows])
        return {"row": chosen, "label": self.labels[chosen]}

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        tokens = self.features[batch["row"].to(self.features.device, non_blocking=True)].to(device, non_blocking=True)
        return nn.functional.cross_entropy(model(tokens), batch["label"].to(device, non_blocking=True))
