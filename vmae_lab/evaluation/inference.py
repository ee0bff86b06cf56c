"""How models are evaluated: precision, loader workers, and processes that share the clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object

from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import Load
from vmae_lab.utils.precision import Precision, autocast

Value = TypeVar("Value")


@dataclass(frozen=True)
class Inference:
    """The precision of forward passes, and how clips are loaded (see `read_videos`). Loading does not change results."""

    precision: Precision = "auto"
    load: Load | None = None

    def autocast(self, device: torch.device) -> Any:
        """Return a context in which forward passes are computed in this precision."""
        return autocast(self.precision, device)


DEFAULT = Inference()


def gathered(found: Mapping[int, Value], failed: Mapping[int, VideoError]) -> tuple[list[Value], dict[int, VideoError]]:
    """Return what all processes have found, in the order of the numbers, and the errors of unreadable videos, by row.

    Every process must call it, and gets the same.
    """
    everything, errors = (dict(gather_object(list(part.items()))) for part in (found, failed))
    return [everything[number] for number in sorted(everything)], dict(sorted(errors.items()))
