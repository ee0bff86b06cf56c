"""The tour of dual masking: what each side keeps, what leaks, what it costs, and what a small model makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from einops import rearrange
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vmae_lab.evaluation.leakage import seen_at_another_time, visible_around
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.lab.arms import BLACK, BLUE, ORANGE, SKY
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.figures import painted
from vmae_lab.lab.plots.pictures import example_clips
from vmae_lab.masking import CELL_PHASES, CELL_RATIOS, MASKS, Grid, MaskSettings, draw_masks, running_cell_maps
from vmae_lab.models.flops import encoder_macs, pretrain_cost
from vmae_lab.models.sizes import SIZES, ClipShape, ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.seeding import torch_generator

PAPER_CLIP = ClipShape()  # 16 x 224 x 224 in cubes of 2 x 16 x 16: 8 x 14 x 14 tokens
LEAKING = ("tube", "random", "running_cell")
DRAWS = 64  # masks that leakage is counted on
RINGS, STEPS = 2, 4  # how far around a masked cube is looked, in cubes and in time steps
# Who has a cube: its colour, light enough to be told from the others in print.
PARTS = {
    "encoder sees": BLUE,
    "decoder rebuilds, loss reads": ORANGE,
    "both: a copy, the loss leaves it out": BLACK,
    "neither": "#DDDDDD",
}
COST_CAPTION = "Multiply-accumulates of one clip with and without a decoder mask, under the scale's own masks; counted."
MASKS_CAPTION = "A clip, what the encoder sees, what the decoder is asked for, and who has which cube; a column a time step."
LOOP_CAPTION = (
    "A held-out clip as the small model sees and rebuilds it, as a loop; plain pixels, nothing is taken from the truth."
)
ERRORS_CAPTION = (
    "Mean squared error of hidden pixels in [0, 1] on held-out clips, one model, one seed, every hidden cube rebuilt; beside "
    "it what the true mean of each cube would give, which no model is told."
)
LEAKAGE_CAPTION = "What of a masked cube's surroundings is visible, 75 % masked, 8 x 14 x 14 tokens, mean over 64 draws."


@dataclass(frozen=True)
class Choice:
    """What is looked at: both masks, the start phase of a running cell, which random draw, and which example clip."""

    masks: MaskSettings = field(default_factory=MaskSettings)
    phase: int = 0
    draw: int = 0
    clip: int = 0

    def drawn(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder and decoder mask, bool `(1, N)` each, True = masked. Raises ValueError where the grid cannot have them."""
        generators = (torch_generator(self.draw, f"tour {side} mask") for side in ("encoder", "decoder"))
        encoder_mask, decoder_mask = draw_masks(self.masks, grid, 1, *generators)
        if self.masks.decoder == "running_cell":
            decoder_mask = running_cell_maps(grid, self.masks.decoder_ratio)[self.phase % CELL_PHASES][None]
        return encoder_mask, decoder_mask


def parts_of(encoder_mask: torch.Tensor, decoder_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which cubes are whose, bool as the masks, one of them True at each place; names as in PARTS."""
    seen, decoded = ~encoder_mask, ~decoder_mask
    return dict(zip(PARTS, (seen & ~decoded, decoded & ~seen, seen & decoded, ~seen & ~decoded), strict=True))


def counts_table(choices: Mapping[str, Choice], clip: ClipShape) -> pd.DataFrame:
    """Tokens of one clip in each part, a line a choice. Counted: the same on every machine."""
    lines = {}
    for name, choice in choices.items():
        encoder_mask, decoder_mask = choice.drawn(clip.grid)
        parts = [int(part.sum()) for part in parts_of(encoder_mask, decoder_mask).values()]
        lines[name] = {
            "tokens": clip.tokens, "seen": parts[0] + parts[2], "decoded": parts[1] + parts[2], "both": parts[2],
            "loss reads": parts[1], "neither": parts[3],
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")


def counts_sentence(choice: Choice, clip: ClipShape) -> str:
    """The line of `counts_table` for one choice, in words."""
    counts = counts_table({"": choice}, clip).iloc[0]
    return (
        f"Of {counts.tokens} tokens the encoder sees {counts.seen} and the decoder is asked for {counts.decoded}. "
        f"{counts['both']} are in both, the loss reads {counts['loss reads']}, and {counts.neither} are in neither."
    )


def mask_figure(video: np.ndarray, choice: Choice, clip: ClipShape) -> Figure:
    """A clip, what the encoder sees of it, what the decoder is asked for, and who has which cube; a column a time step.

    video: uint8 `(T, H, W, 3)`.
    """
    frames = video[:: clip.tubelet]
    masks = choice.drawn(clip.grid)
    encoder_mask, decoder_mask = (mask.view(clip.grid).numpy() for mask in masks)
    owners = np.zeros((*clip.grid, 3), np.uint8)
    for colour, part in zip(PARTS.values(), parts_of(*masks).values(), strict=True):
        owners[part.view(clip.grid).numpy()] = [round(255 * value) for value in to_rgb(colour)]
    rows = {
        "clip": frames,
        "encoder sees": painted(frames, encoder_mask, clip.patch),
        "decoder is asked for": painted(frames, decoder_mask, clip.patch),
        "who has it": np.kron(owners, np.ones((1, clip.patch, clip.patch, 1), np.uint8)),
    }
    # One picture of all frames is drawn many times as fast as axes for each.
    height, width = frames.shape[1:3]
    gap = max(1, height // 24)
    tiles = np.pad(np.stack(list(rows.values())), [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255)
    picture = rearrange(tiles, "row step h w c -> (row h) (step w) c")
    tile, left, below, above = 1.15, 1.55, 0.55, 0.3  # inches
    wide, high = left + tile * len(frames), below + tile * len(rows) + above
    figure = plt.figure(figsize=(wide, high))
    axes = figure.add_axes((left / wide, below / high, 1 - left / wide, tile * len(rows) / high))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    steps, lines = np.arange(len(frames)), np.arange(len(rows))
    axes.set_xticks((width - 1) / 2 + (width + gap) * steps, [f"time step {step + 1}" for step in steps], fontsize=8)
    axes.set_yticks((height - 1) / 2 + (height + gap) * lines, list(rows), fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    sns.despine(ax=axes, left=True, bottom=True)
    patches = [Patch(color=colour, label=label) for label, colour in PARTS.items()]
    figure.legend(handles=patches, loc="lower center", ncols=2, fontsize=8)
    return figure


def cost_table(choice: Choice, models: Mapping[str, ModelSettings]) -> pd.DataFrame:
    """Multiply-accumulates of one clip's forward pass, without a decoder mask and with the choice's.

    Columns encoder, decoder; index: model and masks. A grid that cannot have the masks is left out.
    """
    lines = {}
    for name, model in models.items():
        for words, masks in (("no decoder mask", _without_decoder_mask(choice.masks)), ("these masks", choice.masks)):
            try:
                encoder_mask, decoder_mask = Choice(masks, choice.phase, choice.draw).drawn(model.clip.grid)
            except ValueError:
                continue
            visible, decoded = (int((~mask).sum()) for mask in (encoder_mask, decoder_mask))
            encoder = encoder_macs(model.dimensions, model.clip, visible)
            whole = pretrain_cost(model.dimensions, model.clip, visible, decoded).macs
            lines[name, words] = {"encoder": encoder, "decoder": whole - encoder}
    return pd.DataFrame.from_dict(lines, orient="index")


def cost_figure(costs: pd.DataFrame) -> Figure:
    """The cost of one clip, a panel a model: the encoder's and the decoder's part, with and without a decoder mask."""
    models = costs.index.get_level_values(0).unique()
    wide, high = 1.3 + 3.6 * len(models) + 1.1, 1.9
    figure, places = plt.subplots(
        1, len(models), figsize=(wide, high), sharey=True, squeeze=False,
        gridspec_kw={"left": 1.3 / wide, "right": 1 - 1.1 / wide, "bottom": 0.3, "top": 0.86, "wspace": 0.08},
    )  # fmt: skip
    for axes, model in zip(places[0], models, strict=True):
        whole = costs.loc[model].sum(axis=1)
        unit, name = (1e9, "G") if whole.max() >= 1e9 else (1e6, "M")
        shown, left = costs.loc[model] / unit, 0.0
        for part, colour, hatch in (("encoder", BLUE, ""), ("decoder", SKY, "//")):
            axes.barh(shown.index, shown[part], left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
            left = left + shown[part]
        for line, total in enumerate(whole):
            saved = f" ({total / whole.iloc[0] - 1:+.0%})" if line else ""
            axes.text(total / unit, line, f" {total / unit:.1f}{saved}", va="center", fontsize=8)
        axes.set_title(model, fontsize=9)
        axes.set_xlabel(f"{name} multiply-accumulates per clip, forward", fontsize=9)
        axes.set_xlim(0, 1.4 * whole.max() / unit)
        axes.tick_params(labelsize=9)
    places[0][0].invert_yaxis()
    places[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    sns.despine(figure)
    return figure


def cost_models(plan: Plan) -> dict[str, ModelSettings]:
    """The notebook's own model, and the paper's ViT-B on the paper's clip."""
    model = plan.recipe.model
    grid = " x ".join(map(str, model.clip.grid))
    return {f"{model.size}, {grid} tokens (here)": model, "base (ViT-B), 8 x 14 x 14 tokens": ModelSettings(size="base")}


@lru_cache(maxsize=8)
def leakage(ratio: float) -> dict[str, tuple[pd.DataFrame, float]]:
    """For each kind of mask at one ratio, in percent: the share of visible cubes around a masked one, by distance in space
    (rows) and time steps (columns), and the share of masked cubes whose place is visible at another time.
    """
    found, grid = {}, PAPER_CLIP.grid
    for kind in LEAKING:
        mask = MASKS[kind](grid, ratio, DRAWS, torch_generator(0, f"leakage {kind}"))
        table = pd.DataFrame(
            100 * visible_around(mask, grid, RINGS, STEPS).numpy(),
            ["same place", *(f"{ring} away" for ring in range(1, RINGS + 1))],
            [f"{step:+d}" if step else "now" for step in range(-STEPS, STEPS + 1)],
        )
        found[kind] = table, 100 * seen_at_another_time(mask, grid)
    return found


def leakage_table(ratio: float) -> pd.DataFrame:
    """The leakage of each kind of mask in whole percent: the same place a few time steps later, and at any other time."""
    lines = {}
    for kind, (table, copied) in leakage(ratio).items():
        same = table.iloc[0, STEPS + 1 :].round().astype(int)
        lines[kind] = {f"{step} later": share for step, share in same.items()} | {"at any time": round(copied)}
    return pd.DataFrame.from_dict(lines, orient="index")


def leakage_figure(ratio: float) -> Figure:
    """What of a masked cube's surroundings is visible, a panel a kind of mask, on the paper's grid; one scale for all."""
    found = leakage(ratio)
    most = max(table.to_numpy().max() for table, _ in found.values())
    wide, high = 6.2, 1.6 * len(found) + 0.3
    figure, places = plt.subplots(
        len(found), 1, figsize=(wide, high), sharex=True,
        gridspec_kw={"left": 0.9 / wide, "right": 0.99, "bottom": 0.55 / high, "top": 1 - 0.3 / high, "hspace": 0.3},
    )  # fmt: skip
    for axes, (kind, (table, copied)) in zip(places, found.items(), strict=True):
        cells = table.to_numpy()
        axes.pcolormesh(cells, cmap="cividis", vmin=0, vmax=most, edgecolors="white", linewidth=1)
        for (row, column), share in np.ndenumerate(cells):
            colour = "white" if share < most / 2 else "black"
            axes.text(column + 0.5, row + 0.5, f"{share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(np.arange(cells.shape[1]) + 0.5, table.columns)
        axes.set_yticks(np.arange(len(cells)) + 0.5, table.index)
        axes.invert_yaxis()
        axes.set_title(f"{kind.replace('_', ' ')}: {copied:.0f} % of masked places are visible at another time", fontsize=9)
        axes.tick_params(length=0, labelsize=9)
        sns.despine(ax=axes, left=True, bottom=True)
    places[-1].set_xlabel("time steps from a masked cube; numbers: visible cubes there, %", fontsize=9)
    return figure


def errors_table(plan: Plan, model: VideoMAE) -> pd.DataFrame:
    """The model's error on held-out clips, every hidden cube rebuilt, under tubes and random masks. Index: mask and ratio.

    Under tubes of the ratio that it was trained with first, then under a random mask of that ratio. Raises MissingVideos.
    """
    recipe = plan.first(plan.pretrained[0]).recipe
    clips, lines = example_clips(plan), {}
    for ratio in (recipe.mask.encoder_ratio, 0.9):
        for kind in ("tube", "random"):
            masks = MaskSettings(encoder=kind, encoder_ratio=ratio, decoder="none", decoder_ratio=0.0)
            lines[f"{kind} {ratio:.0%}".replace("%", " %")] = reconstruction_errors(
                model, clips, recipe.model, masks, recipe.data.stride
            )
    names = {"reconstruction": "error", "cube_mean": "of the true cube means"}
    return pd.DataFrame.from_dict(lines, orient="index").rename(columns=names).round(4)


def conclusions(choices: Mapping[str, Choice], errors: pd.DataFrame, ratio: float) -> list[str]:
    """What was counted and measured, in words computed from it."""
    words = []
    clip, size = PAPER_CLIP, SIZES["base"]
    counts = counts_table(choices, clip)
    costs = {name: pretrain_cost(size, clip, row["seen"], row["decoded"]).giga for name, row in counts.iterrows()}
    first, last = counts.index[0], counts.index[-1]
    words.append(
        f"On the paper's grid of {clip.tokens} tokens the encoder sees {counts.seen[last]}. Without a decoder mask "
        f"{counts.decoded[first]} are rebuilt, with {last} {counts.decoded[last]}, of which the encoder saw "
        f"{counts['both'][last]}: the loss reads {counts['loss reads'][last]}. For ViT-B that is {costs[last]:.1f} instead of "
        f"{costs[first]:.1f} G MACs a clip ({costs[last] / costs[first] - 1:+.0%})."
    )
    copied = {kind.replace("_", " "): share for kind, (_, share) in leakage(ratio).items()}
    words.append(
        f"At {100 * ratio:.0f} % masked, the place of a masked cube is visible at another time for "
        + ", ".join(f"{share:.0f} % ({kind})" for kind, share in copied.items())
        + ": what can be copied need not be understood, so the encoder's mask is a tube. A decoder's mask "
        "hides nothing from the encoder; there running cells make sure that every place is asked for at some time."
    )
    own, other = errors.error.iloc[:2]
    words.append(
        f"On held-out clips the small model's squared error is {own:.4f} under tubes, as it was trained, and {other:.4f} under "
        f"a random mask of the same ratio ({other / own - 1:+.0%}): what leaks "
        f"{'makes rebuilding easier' if other < own else 'is no help to a model that was trained without'}."
    )
    return words


def compared(masks: MaskSettings) -> dict[str, Choice]:
    """The choices that are counted side by side: without a decoder mask, and running cells of each ratio."""
    cells = {
        f"running cell {ratio:.0%}".replace("%", " %"): Choice(
            masks.model_copy(update={"decoder": "running_cell", "decoder_ratio": ratio})
        )
        for ratio in CELL_RATIOS
    }
    return {"no decoder mask (V1)": Choice(_without_decoder_mask(masks)), **cells}


def _without_decoder_mask(masks: MaskSettings) -> MaskSettings:
    return masks.model_copy(update={"decoder": "none", "decoder_ratio": 0.0})
