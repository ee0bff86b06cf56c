"""When a training has gone wrong, and what is done then: stop, or go back and leave out the samples it went wrong on."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.utils.errors import UserError

RECENT = 100  # losses that a spike is measured against
ENOUGH = 20  # of them before anything counts as one


class TrainingDiverged(UserError, RuntimeError):
    """The loss or the weights are no longer finite numbers, or the loss has sprung up."""

    exit_status = 1


class Divergence(BaseModel):
    """What counts as diverged besides numbers that are not finite, and what is done. It names the stage: it changes results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spike: float | None = Field(None, gt=1, description="a loss of more than so many times the median of the last 100")
    roll_back: int | None = Field(
        None, ge=1, description="steps: go back to the last multiple of so many, and skip as many steps' samples; else stop"
    )
    at_most: int = Field(3, ge=1, description="times; then it stops")


class Bad(NamedTuple):
    """A step (from 0) that went wrong, and how."""

    step: int
    what: str


def first_bad(losses: Sequence[float], recent: list[float], spike: float | None, first_step: int) -> Bad | None:
    """The first of some losses in a row, `first_step` on, that is not finite or a spike; those before it go into `recent`."""
    for step, value in enumerate(losses, first_step):
        if not math.isfinite(value):
            return Bad(step, f"the loss is {value}")
        if spike and len(recent) >= ENOUGH and value > spike * statistics.median(recent):
            return Bad(step, f"the loss is {value:.4g}, over {spike:g} times the {statistics.median(recent):.4g} before")
        recent.append(value)
        del recent[:-RECENT]
    return None
