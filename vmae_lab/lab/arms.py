"""The arms of the ablations: what each changes in the recipe, how it is called and drawn everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One arm: dotted overrides of the recipe, its name in tables, and its colour and marker in every figure.

    `pretrained` False: the arm stops at the untrained encoder. Colours are Okabe and Ito's, told apart by colour-blind
    readers; markers differ too, for print.
    """

    label: str
    colour: str
    marker: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = True


def _decoder(kind: str, ratio: float, loss_on: str = "invisible") -> dict[str, Any]:
    return {"mask.decoder": kind, "mask.decoder_ratio": ratio, "mask.loss_on": loss_on}


DECODER_MASKS: dict[str, Arm] = {
    "scratch": Arm("no pre-training", "#777777", "X", pretrained=False),
    "none": Arm("none (V1)", "#000000", "o", _decoder("none", 0.0)),
    "frame_50": Arm("frame 50 %", "#E69F00", "s", _decoder("frame", 0.5)),
    "random_50": Arm("random 50 %", "#D55E00", "^", _decoder("random", 0.5)),
    "running_cell_50_all": Arm("cell 50 %, loss on all", "#CC79A7", "v", _decoder("running_cell", 0.5, "all_decoded")),
    "running_cell_25": Arm("cell 25 %", "#56B4E9", "P", _decoder("running_cell", 0.25)),
    "running_cell_50": Arm("cell 50 %", "#0072B2", "D", _decoder("running_cell", 0.5)),
    "running_cell_75": Arm("cell 75 %", "#009E73", "*", _decoder("running_cell", 0.75)),
}

ABLATIONS: dict[str, dict[str, Arm]] = {"ablation_decoder_mask": DECODER_MASKS}
