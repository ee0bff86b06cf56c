"""Validation of a classifier during its training: loss and accuracy on clips that it is not trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.data.dataset import Clips

LOSS, ACCURACY = "validation_loss", "validation_accuracy"  # names in the log


@dataclass(frozen=True)
class Validation:
    """What a training is validated on, and when.

    `predict`: returns the class logits of clips, `(n, classes)` on the CPU, or raises MissingVideos; the same in every process.
    `every`: number of steps between two validations. `keep_best`: the result is the weights with the best accuracy, not the
    last ones.
    """

    score: ClassVar[str] = ACCURACY  # the best weights have the highest value of it

    clips: Clips
    predict: Callable[[nn.Module, Clips], Tensor]
    every: int
    keep_best: bool = False

    def due(self, step: int, steps: int) -> bool:
        """Return whether to validate after a step. The last step is always validated."""
        return step % self.every == 0 or step == steps

    def text(self, scores: dict[str, float]) -> str:
        """Return the text that the progress bar shows."""
        return f"validation accuracy {scores[ACCURACY]:.1f}%"

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return the mean cross-entropy, without label smoothing, and the top-1 accuracy in percent. Raises MissingVideos."""
        total = len(self.clips)
        scores, labels = self.predict(model, self.clips), torch.from_numpy(self.clips.labels)
        loss = functional.cross_entropy(scores.double(), labels, reduction="sum").item()
        right = int((scores.argmax(1) == labels).sum())
        return {LOSS: loss / total, ACCURACY: 100 * right / total}
