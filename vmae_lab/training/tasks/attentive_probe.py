"""The attentive probe: one learned query over frozen tokens, trained through the one loop."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vmae_lab.data.samplers import EpochOrder
from vmae_lab.models.classifier import ClassHead
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.settings import TrainSettings


class AttentiveProbeTask:
    """Class scores from features `(n, N, D)` kept in memory, on any device; batches hold their rows alone."""

    def __init__(self, features: Tensor, labels: Tensor, heads: int, classes: int, settings: TrainSettings, seed: int):
        self.features, self.labels, self.heads, self.classes = features, labels, heads, classes
        self.settings, self.seed = settings, seed

    def build(self) -> nn.Module:
        _, tokens, width = self.features.shape
        return ClassHead(tokens, width, self.heads, self.classes, "attentive", init_scale=1.0)

    def batches(self, rows: range) -> "ProbeBatches":
        return ProbeBatches(self, rows)

    def weight(self, batch: Batch) -> float:
        return float(len(batch["label"]))

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        tokens = self.features[batch["row"].to(self.features.device)].to(device)
        return nn.functional.cross_entropy(model(tokens), batch["label"].to(device))


class ProbeBatches(Dataset):
    """Step -> `row (B,)` of the features, `label (B,)`."""

    def __init__(self, task: AttentiveProbeTask, rows: range):
        self.task, self.rows = task, rows
        self.order = EpochOrder(len(task.labels), task.seed, "probe order")

    def __getitem__(self, step: int) -> Batch:
        first = step * self.task.settings.batch_size
        chosen = torch.tensor([self.order[first + row] for row in self.rows])
        return {"row": chosen, "label": self.task.labels[chosen]}
