"""When a training counts as diverged, and what happens then: it stops, or it rolls back and skips the samples."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.utils.errors import UserError

RECENT = 100  # losses that a spike is compared with
ENOUGH = 20  # so many of them are needed before a loss can count as a spike


class TrainingDiverged(UserError, RuntimeError):
    """The loss or the weights are no longer finite, or the loss has a spike."""

    exit_status = 1


class Divergence(BaseModel):
    """What counts as diverged besides numbers that are not finite, and what happens. Part of a stage's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spike: float | None = Field(None, gt=1, description="a loss of more than this many times the median of the last 100")
    roll_back: int | None = Field(
        None, ge=1, description="steps: roll back to the last multiple of it and skip the samples of as many steps; else stop"
    )
    at_most: int = Field(3, ge=1, description="roll-backs; then the training stops")


class Bad(NamedTuple):
    """A step (from 0) that went wrong, and how."""

    step: int
    what: str


def first_bad(losses: Sequence[float], recent: list[float], spike: float | None, first_step: int) -> Bad | None:
    """The first of some losses, from `first_step` on, that is not finite or a spike. Those before it are added to `recent`."""
    for step, value in enumerate(losses, first_step):
        if not math.isfinite(value):
            return Bad(step, f"the loss is {value}")
        if spike and len(recent) >= ENOUGH and value > spike * statistics.median(recent):
            return Bad(step, f"the loss is {value:.4g}, over {spike:g} times the {statistics.median(recent):.4g} before")
        recent.append(value)
        del recent[:-RECENT]
    return None
