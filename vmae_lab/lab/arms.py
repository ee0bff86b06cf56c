"""The arms of the ablations: what each changes in the recipe, how it is called and drawn everywhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from vmae_lab.lab.config import Recipe, RecipeError, require
from vmae_lab.models.sizes import SIZES
from vmae_lab.training.tasks.finetune import FinetuneSettings

Overrides = Mapping[str, Any]
# Okabe and Ito's colours, told apart by colour-blind readers, without their yellow, which is faint on white, and with a grey.
GREY, BLACK, ORANGE, RED, PINK, SKY, BLUE, GREEN = (
    "#777777", "#000000", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73",
)  # fmt: skip
# For print, where colours are greys: each colour's dashes of a line, and hatch of a bar.
PRINTED: dict[str, tuple[Any, str]] = {
    GREY: ("--", ""), BLACK: ("-", "++"), ORANGE: ((0, (6, 2)), ".."), RED: ("-.", "xx"), PINK: ((0, (1, 1)), "oo"),
    SKY: ((0, (2, 1)), "--"), BLUE: ("-", "//"), GREEN: ((0, (6, 1, 1, 1, 1, 1)), "\\\\"),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One arm: dotted overrides of the recipe (or how to get them from it), its name, its colour and marker everywhere.

    `fill`: how much of the marker is filled, as matplotlib names it; other arms of the same colour and marker differ by it.
    `pretrained` False: the arm starts from an untrained encoder. `post_pretrained`: supervised training on the labelled
    hybrid comes between that and the target. `taught`: a teacher's answers are learned from, in place of labels.
    """

    label: str
    colour: str
    marker: str
    overrides: Overrides | Callable[[Recipe], Overrides] = field(default_factory=dict)
    pretrained: bool = True
    post_pretrained: bool = False
    taught: bool = False
    fill: str = "full"

    @property
    def dashes(self) -> Any:
        """The style of its lines, as matplotlib takes it."""
        return PRINTED[self.colour][0]

    @property
    def hatch(self) -> str:
        """The hatch of its bars."""
        return PRINTED[self.colour][1]

    def changes(self, recipe: Recipe) -> Overrides:
        """The dotted overrides for a recipe."""
        return self.overrides(recipe) if callable(self.overrides) else self.overrides


SCRATCH = Arm("no pre-training", GREY, "X", pretrained=False)


def _decoder(kind: str, ratio: float, loss_on: str = "invisible") -> Overrides:
    return {"mask.decoder": kind, "mask.decoder_ratio": ratio, "mask.loss_on": loss_on}


def _cell(ratio: float) -> Overrides:
    return _decoder("running_cell", ratio) if ratio else _decoder("none", 0.0)


DECODER_MASKS: dict[str, Arm] = {
    "scratch": SCRATCH,
    "none": Arm("none (V1)", BLACK, "o", _decoder("none", 0.0)),
    "frame_50": Arm("frame 50 %", ORANGE, "s", _decoder("frame", 0.5)),
    "random_50": Arm("random 50 %", RED, "^", _decoder("random", 0.5)),
    "running_cell_50_all": Arm("cell 50 %, loss on all", PINK, "v", _decoder("running_cell", 0.5, "all_decoded")),
    "running_cell_25": Arm("cell 25 %", SKY, "P", _decoder("running_cell", 0.25)),
    "running_cell_50": Arm("cell 50 %", BLUE, "D", _decoder("running_cell", 0.5)),
    "running_cell_75": Arm("cell 75 %", GREEN, "*", _decoder("running_cell", 0.75)),
}


def _shown(recipe: Recipe) -> Overrides:
    """A model whose pictures are its own: plain pixels, so that nothing is taken from the truth, half of them seen."""
    training = recipe.pretrain
    pixels = {"normalise_target": False, "batch_size": 2 * training.batch_size, "lr": 2 * training.lr}
    return {"mask.encoder_ratio": 0.5, **_cell(0.5), **{f"pretrain.{name}": value for name, value in pixels.items()}}


TOUR: dict[str, Arm] = {"pixels": Arm("tube 50 %, cell 50 %, plain pixels", BLUE, "D", _shown)}

OWN_VIDEOS: dict[str, Arm] = {
    "untrained": Arm("untrained encoder", GREY, "X", pretrained=False),
    "pretrained": Arm("pre-trained", BLUE, "D", _decoder("running_cell", 0.5)),
}

LONGER = 6  # times the steps: training from scratch needs them, and a comparison at few steps alone would hide it


def _longer(recipe: Recipe) -> Overrides:
    tuning = recipe.evaluate.finetune
    steps = {"steps": LONGER * tuning.steps, "warmup_steps": LONGER * tuning.warmup_steps}
    return {**_decoder("running_cell", 0.5), **{f"evaluate.finetune.{name}": value for name, value in steps.items()}}


DOWNSTREAM: dict[str, Arm] = {
    "scratch": SCRATCH,
    "pretrained": Arm("pre-trained", BLUE, "D", _decoder("running_cell", 0.5)),
    "scratch_long": Arm(f"no pre-training, {LONGER} x the steps", ORANGE, "s", _longer, pretrained=False),
    "pretrained_long": Arm(f"pre-trained, {LONGER} x the steps", RED, "^", _longer),
}


DETECT_LONGER = 4  # times the steps, as LONGER is of fine-tuning


def _detecting_longer(recipe: Recipe) -> Overrides:
    steps = {} if recipe.detect is None else {"detect.steps": DETECT_LONGER * recipe.detect.steps}
    return {**_decoder("running_cell", 0.5), **steps}


SPATIAL_DETECTION: dict[str, Arm] = {
    "scratch": SCRATCH,
    "pretrained": DOWNSTREAM["pretrained"],
    "scratch_long": Arm(f"no pre-training, {DETECT_LONGER} x the steps", ORANGE, "s", _detecting_longer, pretrained=False),
    "pretrained_long": Arm(f"pre-trained, {DETECT_LONGER} x the steps", RED, "^", _detecting_longer),
}


TEMPORAL_DETECTION: dict[str, Arm] = {
    "untrained": OWN_VIDEOS["untrained"],
    "pretrained": OWN_VIDEOS["pretrained"],
    "supervised": Arm("pre-trained, then supervised", GREEN, "*", _decoder("running_cell", 0.5), post_pretrained=True),
}


def _trained_alike(recipe: Recipe) -> Overrides:
    """The teacher and all students by one recipe: `distill` where it is given, else that of fine-tuning."""
    tuning = recipe.distill or recipe.evaluate.finetune
    shared = tuning.model_dump(mode="json", include=set(FinetuneSettings.model_fields))
    own = {} if recipe.distill else {"distill": shared}
    return {**_decoder("running_cell", 0.5), "evaluate.finetune": shared, **own}


def student_size(recipe: Recipe) -> str:
    """The recipe's `student`, or the next size below `model.size`. Raises RecipeError where there is none."""
    ladder = list(SIZES)
    rung = ladder.index(recipe.model.size)
    if not (recipe.student or rung):
        raise RecipeError(f"student: there is no size below model.size {recipe.model.size}, which is to teach one")
    return recipe.student or ladder[rung - 1]


TEACHER = Arm("teacher", BLACK, "o")
DISTILLATION: dict[str, Arm] = {
    "scratch": Arm("student from scratch, labels", GREY, "X", _trained_alike, pretrained=False),
    "scratch_taught": Arm("student from scratch, teacher", ORANGE, "s", _trained_alike, pretrained=False, taught=True),
    "pretrained": Arm("pre-trained student, labels", BLUE, "D", _trained_alike),
    "pretrained_taught": Arm("pre-trained student, teacher", RED, "^", _trained_alike, taught=True),
}

ENCODER_RATIOS, DECODER_RATIOS = (0.5, 0.75, 0.9, 0.95), (0.0, 0.25, 0.5, 0.75)


def ratio_arm(encoder: float, decoder: float) -> str:
    """The name of a cell of the table of mask ratios: `tube_90_cell_50`."""
    return f"tube_{round(100 * encoder)}_cell_{round(100 * decoder)}"


# Colour and marker are those of the decoder mask in DECODER_MASKS, where the encoder's ratio is 90 %.
MASK_RATIOS: dict[str, Arm] = {"scratch": SCRATCH} | {
    ratio_arm(encoder, decoder): Arm(
        f"tube {encoder:.0%}, cell {decoder:.0%}".replace("%", " %"),
        colour,
        marker,
        {"mask.encoder_ratio": encoder, **_cell(decoder)},
        fill=fill,
    )
    for (encoder, fill), (decoder, colour, marker) in product(
        zip(ENCODER_RATIOS, ("none", "left", "full", "top"), strict=True),
        zip(DECODER_RATIOS, (BLACK, SKY, BLUE, GREEN), "oPD*", strict=True),
    )
}

# Pools to pre-train on, as parts of what each source has: unequal, as the paper's are (658, 250, 250, 169, 21 thousand
# clips). `digits` is in all of them: the target. `sprites` is in none: the source that is unseen.
TARGET, UNSEEN = "digits", "sprites"
JUDGED_ON = {"target": TARGET, "unseen": UNSEEN}  # where pools are compared: place, as in `ridge@unseen`, -> source
POOLS: dict[str, Mapping[str, float]] = {
    "one": {"digits": 1.0},
    "two": {"digits": 1.0, "sticks": 0.5},
    "all": {"digits": 1.0, "sticks": 0.5, "camera": 0.25, "kaleidoscope": 0.125},
}


def _limits(recipe: Recipe, parts: Mapping[str, float]) -> dict[str, int]:
    """Clips per source and action in parts of the sources: one at least."""
    there = require(recipe.data.motionworld, "data.motionworld").train
    return {source: max(1, round(part * there)) for source, part in parts.items()}


def pool_limits(recipe: Recipe, pool: str) -> dict[str, int]:
    """Clips per source and action in a pool."""
    return _limits(recipe, POOLS[pool])


def hybrid_pool(pool: str, equal_epochs: bool = False, mixing: float = 1.0) -> Callable[[Recipe], Overrides]:
    """Overrides that pre-train on a pool: for the recipe's steps, or for as many epochs as those are of the smallest pool."""

    def overrides(recipe: Recipe) -> Overrides:
        limits = pool_limits(recipe, pool)
        growth = sum(limits.values()) / sum(pool_limits(recipe, "one").values()) if equal_epochs else 1
        return {
            "data.pretrain_sources": list(limits), "data.pretrain_limits": limits, "data.mixing": mixing,
            "pretrain.steps": round(recipe.pretrain.steps * growth),
        }  # fmt: skip

    return overrides


HYBRID_DATA: dict[str, Arm] = {
    "scratch": SCRATCH,
    "one": Arm("one source", BLACK, "o", hybrid_pool("one")),
    "two": Arm("two sources", SKY, "P", hybrid_pool("two")),
    "all": Arm("four sources", BLUE, "D", hybrid_pool("all")),
    "two_epochs": Arm("two sources, equal epochs", ORANGE, "s", hybrid_pool("two", equal_epochs=True)),
    "all_epochs": Arm("four sources, equal epochs", RED, "^", hybrid_pool("all", equal_epochs=True)),
    "all_tempered": Arm("four sources, tempered", PINK, "v", hybrid_pool("all", mixing=0.5)),
    "all_uniform": Arm("four sources, uniform", GREEN, "*", hybrid_pool("all", mixing=0.0)),
}

_hybrid = hybrid_pool("all")
PROGRESSIVE: dict[str, Arm] = {
    "scratch": Arm("from scratch", GREY, "X", pretrained=False),
    "pretrained": Arm("pre-trained", BLUE, "D", _hybrid),
    "post_only": Arm("post-pre-trained only", ORANGE, "s", _hybrid, pretrained=False, post_pretrained=True),
    "progressive": Arm("pre-trained, then post-pre-trained", GREEN, "*", _hybrid, post_pretrained=True),
}

PAPER_SIZES = ("small", "base", "large", "huge", "giant")
DUAL_COST: dict[str, Arm] = {
    f"{size}_{name}": Arm(f"{size}, {label}", colour, marker, {"measure.size": size, **_cell(ratio)})
    for size, (name, label, ratio, colour, marker) in product(
        PAPER_SIZES, (("none", "no decoder mask", 0.0, BLACK, "o"), ("cell_50", "cell 50 %", 0.5, BLUE, "D"))
    )
}

SIZE_PLACES = {"smaller": -1, "middle": 0, "larger": 1}
DATA_PARTS = {"quarter": 0.25, "full": 1.0}
STEP_PARTS = {"third": 1 / 3, "whole": 1.0}


def scaled(place: int, data: float, steps: float) -> Callable[[Recipe], Overrides]:
    """Overrides for the next size down or up, a part of the pre-training clips, and a part of the steps.

    Raises RecipeError where there is no such size, or no part to take.
    """

    def overrides(recipe: Recipe) -> Overrides:
        ladder = list(SIZES)
        rung = ladder.index(recipe.model.size) + place
        if not 0 <= rung < len(ladder):
            raise RecipeError(f"there is no size {'below' if place < 0 else 'above'} model.size {recipe.model.size}")
        changes = {
            "model.size": ladder[rung], "pretrain.steps": max(1, round(steps * recipe.pretrain.steps)),
            "pretrain.warmup_steps": round(steps * recipe.pretrain.warmup_steps),
        }  # fmt: skip
        if data < 1:
            if recipe.data.motionworld is None:
                raise RecipeError("a part of a list file's videos cannot be taken: give a shorter list")
            pool = recipe.data.pretrain_sources or recipe.data.sources
            changes["data.pretrain_limits"] = _limits(recipe, dict.fromkeys(pool, data))
        return changes

    return overrides


# A colour and marker for what is spent on training; sizes stand on the axis.
SCALING: dict[str, Arm] = {
    f"{place}_{data}_{steps}": Arm(
        f"{place} model, {data} data, {steps} steps",
        colour,
        marker,
        scaled(SIZE_PLACES[place], DATA_PARTS[data], STEP_PARTS[steps]),
    )
    for place, ((data, steps), colour, marker) in product(
        SIZE_PLACES, zip(product(DATA_PARTS, STEP_PARTS), (SKY, ORANGE, RED, BLUE), "Ps^D", strict=True)
    )
}
