"""How models are evaluated: precision, loader workers, and processes that share the clips."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils import gather_object, send_to_device

from vmae_lab.data.eval_clips import Load, MissingVideos
from vmae_lab.utils.precision import Precision

Value = TypeVar("Value")


@dataclass(frozen=True)
class Inference:
    """The precision of forward passes, and how clips are loaded (see `read_videos`). Loading does not change results."""

    precision: Precision = "auto"
    load: Load | None = None


DEFAULT = Inference()


def gathered(found: Iterable[tuple[int, Value]], total: int) -> list[Value]:
    """Return the values that all processes find, in the order of their numbers. Tensors are moved to the CPU at the end.

    Every process must call it, and gets the same. If `found` raises MissingVideos in a process, this raises it in all of them,
    with the unreadable videos of all. `total`: the number of evaluated items.
    """
    mine: dict[int, Value] = {}
    missing: list[MissingVideos] = []
    try:
        mine.update(found)
    except MissingVideos as error:
        missing.append(error)
    values, missing = dict(gather_object(list(send_to_device(mine, "cpu").items()))), gather_object(missing)
    if missing:
        failed = dict(sorted(item for error in missing for item in error.failed.items()))
        raise MissingVideos(failed, total, missing[0].remedy, missing[0].what)
    return [values[number] for number in sorted(values)]
