"""When a run counts as diverged, and what happens then: it stops, or it rolls back and skips samples."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from vmae_lab.utils.errors import UserError
from vmae_lab.utils.settings import Settings

RECENT = 100  # number of last losses, to whose median a loss is compared
ENOUGH = 20  # number of losses needed before one can count as a spike


class TrainingDiverged(UserError, RuntimeError):
    """The loss or the weights are not finite, or the loss has a spike."""

    exit_status = 1


class Divergence(Settings):
    """What counts as diverged in addition to non-finite numbers, and what happens then. Part of a stage's key."""

    spike: float | None = Field(None, gt=1, description="a loss above this many times the median of the last 100 is a spike")
    roll_back: int | None = Field(
        None, ge=1, description="roll back to the last multiple of this many steps and skip as many steps' samples; else stop"
    )
    at_most: int = Field(3, ge=1, description="number of roll-backs after which the run stops")


class Bad(NamedTuple):
    """A diverged step (from 0), and what is wrong with it."""

    step: int
    what: str


def first_bad(losses: Sequence[float], recent: list[float], spike: float | None, first_step: int) -> Bad | None:
    """Return the first loss that is not finite or is a spike, or None. Losses before it are added to `recent`.

    `losses` are those of the steps from `first_step` on.
    """
    for step, value in enumerate(losses, first_step):
        if not math.isfinite(value):
            return Bad(step, f"the loss is {value}")
        if spike and len(recent) >= ENOUGH and value > spike * statistics.median(recent):
            return Bad(step, f"the loss is {value:.4g}, over {spike:g} times the median {statistics.median(recent):.4g}")
        recent.append(value)
        del recent[:-RECENT]
    return None
