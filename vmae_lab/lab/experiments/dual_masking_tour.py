"""The tour of dual masking: which patches each mask keeps, what leaks, what it costs, and what a small model reconstructs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from vmae_lab.evaluation.leakage import seen_at_another_time, visible_around
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table, running_cells
from vmae_lab.lab.plan import Arm, Overrides, Plan
from vmae_lab.lab.plots.clip_pictures import looping_gif, painted, strips
from vmae_lab.lab.plots.examples import example_clips, picture_clip, rebuilt, trained_model
from vmae_lab.lab.plots.style import BLACK, BLUE, ORANGE, SKY
from vmae_lab.masking import CELL_PHASES, CELL_RATIOS, MASKS, Grid, MaskSettings, draw_masks, running_cell_maps
from vmae_lab.models.flops import encoder_macs, pretrain_cost
from vmae_lab.models.sizes import SIZES, ClipShape, ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.seeding import torch_generator

OBJECTS = ("digits", "sticks", "sprites")  # embedded sources that a small model learns to reconstruct in minutes


def plain_pixels(recipe: Recipe) -> Overrides:
    """Return overrides for a model of plain pixels that sees half of a clip. Its reconstructions use no hidden pixels.

    With a lower learning rate or fewer steps, the model of scale demo predicts one color (reports/LOG.md).
    """
    training = recipe.pretrain
    pixels = {
        "normalise_target": False, "batch_size": 2 * training.batch_size, "lr": 4 * training.lr, "steps": 2 * training.steps,
    }  # fmt: skip
    return {"mask.encoder_ratio": 0.5, **running_cells(0.5), **{f"pretrain.{name}": value for name, value in pixels.items()}}


def prepare(recipe: Recipe) -> Recipe:
    """Replace plaids by moving objects. Plaids fill the frame and need more steps."""
    if recipe.data.motionworld is None or set(OBJECTS) & set(recipe.data.pretrain_sources):
        return recipe
    sources = list(OBJECTS)
    return recipe.with_overrides(
        {"data.motionworld.sources": sources, "data.pretrain_sources": sources, "evaluate.sources": sources}
    )


ARMS: dict[str, Arm] = {"pixels": Arm("tube 50%, cell 50%, plain pixels", BLUE, "D", plain_pixels)}
EXPERIMENT = Experiment(
    "A tour of dual masking", "What do the two masks keep, leak and cost?",
    ARMS, lambda recipe, arm, encoder, seed: {"pretrain": encoder}, needs_labels=False, one_seed=True, prepare=prepare,
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What a panel shows: both masks, the start phase of a running cell, the number of a random draw, and an example clip."""

    masks: MaskSettings = field(default_factory=MaskSettings)
    phase: int = 0
    draw: int = 0
    clip: int = 0

    def drawn(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the encoder and decoder mask, bool `(1, N)`, True = masked. Raises ValueError if they do not fit the grid."""
        generators = (torch_generator(self.draw, f"tour {side} mask") for side in ("encoder", "decoder"))
        encoder_mask, decoder_mask = draw_masks(self.masks, grid, 1, *generators)
        if self.masks.decoder == "running_cell":
            decoder_mask = running_cell_maps(grid, self.masks.decoder_ratio)[self.phase % CELL_PHASES][None]
        return encoder_mask, decoder_mask


# ---- Two masks ----

PAPER_CLIP = ClipShape()  # 16 x 224 x 224 in patches of 2 x 16 x 16: 8 x 14 x 14 tokens
# Part of the patches -> its color.
PARTS = {
    "encoder sees": BLUE,
    "decoder reconstructs: in the loss": ORANGE,
    "both: not in the loss": BLACK,
    "neither": "#DDDDDD",
}


def parts_of(encoder_mask: torch.Tensor, decoder_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the patches of each part in PARTS, bool as the masks; exactly one is True at each position."""
    seen, decoded = ~encoder_mask, ~decoder_mask
    return dict(zip(PARTS, (seen & ~decoded, decoded & ~seen, seen & decoded, ~seen & ~decoded), strict=True))


def ratio_choices(masks: MaskSettings) -> dict[str, Choice]:
    """Return choices to compare: no decoder mask, and running cells of each ratio."""
    cells = {
        f"running cell {ratio:.0%}": Choice(masks.model_copy(update={"decoder": "running_cell", "decoder_ratio": ratio}))
        for ratio in CELL_RATIOS
    }
    return {"no decoder mask (V1)": Choice(_without_decoder_mask(masks)), **cells}


def _without_decoder_mask(masks: MaskSettings) -> MaskSettings:
    return masks.model_copy(update={"decoder": "none", "decoder_ratio": 0.0})


def counts_table(choices: Mapping[str, Choice], clip: ClipShape = PAPER_CLIP) -> pd.DataFrame:
    """Count the tokens of one clip in each part, one row per choice. Nothing is measured."""
    lines = {}
    for name, choice in choices.items():
        only_seen, read, both, neither = (int(part.sum()) for part in parts_of(*choice.drawn(clip.grid)).values())
        lines[name] = {
            "tokens": clip.tokens, "seen": only_seen + both, "decoded": read + both, "both": both, "in the loss": read,
            "neither": neither,
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")


def tokens_table(choices: Mapping[str, Choice]) -> Table:
    frame = counts_table(choices).reset_index(names="decoder mask")
    return Table(frame, "tokens", "Tokens of a clip of 16 x 224 x 224 in patches of 2 x 16 x 16, counted.")


def mask_figure(video: np.ndarray, choice: Choice, clip: ClipShape) -> Figure:
    """Show a clip, what the encoder sees, what the decoder reconstructs, and the part of each patch; one column per time step.

    video: uint8 `(T, H, W, 3)`.
    """
    frames, masks = video[:: clip.tubelet], choice.drawn(clip.grid)
    parts = np.zeros((*clip.grid, 3), np.uint8)
    for color, part in zip(PARTS.values(), parts_of(*masks).values(), strict=True):
        parts[part.view(clip.grid).numpy()] = [round(255 * value) for value in to_rgb(color)]
    seen, rebuilt = (painted(frames, mask.view(clip.grid).numpy(), clip.patch) for mask in masks)
    rows = {
        "clip": frames, "encoder sees": seen, "decoder reconstructs": rebuilt,
        "parts": np.kron(parts, np.ones((1, clip.patch, clip.patch, 1), np.uint8)),
    }  # fmt: skip
    return strips(rows, [f"time step {step + 1}" for step in range(len(frames))], PARTS)


# ---- What leaks ----

LEAKING = ("tube", "random", "running_cell")
DRAWS = 64  # masks that leakage is counted on
RINGS, STEPS = 2, 4  # the neighborhood of a masked patch: patches in space, and time steps


@lru_cache(maxsize=8)
def leakage(ratio: float) -> dict[str, tuple[pd.DataFrame, float]]:
    """Return the leakage of each kind of mask at one ratio, in percent.

    The table has the share of visible patches around a masked patch, by distance in space (rows) and time steps (columns). The
    number is the share of masked patches whose position is visible at another time.
    """
    found, grid = {}, PAPER_CLIP.grid
    for kind in LEAKING:
        mask = MASKS[kind](grid, ratio, DRAWS, torch_generator(0, f"leakage {kind}"))
        table = pd.DataFrame(
            100 * visible_around(mask, grid, RINGS, STEPS).numpy(),
            ["same position", *(f"{ring} away" for ring in range(1, RINGS + 1))],
            [f"{step:+d}" if step else "now" for step in range(-STEPS, STEPS + 1)],
        )
        found[kind] = table, 100 * seen_at_another_time(mask, grid)
    return found


def leakage_table(ratio: float) -> pd.DataFrame:
    """Return the leakage of each kind of mask in percent: the same position a few time steps later, and at any other time."""
    lines = {}
    for kind, (table, copied) in leakage(ratio).items():
        same = table.iloc[0, STEPS + 1 :].round().astype(int)
        lines[kind] = {f"{step} later": share for step, share in same.items()} | {"at any time": round(copied)}
    return pd.DataFrame.from_dict(lines, orient="index")


def leakage_figure(ratio: float) -> Figure:
    """Plot the visible neighborhood of a masked patch on the paper's grid, one panel per kind of mask, on one color scale."""
    found = leakage(ratio)
    most = max(table.to_numpy().max() for table, _ in found.values())
    margins = {"left": 0.15, "right": 0.99, "bottom": 0.11, "top": 0.94, "hspace": 0.3}  # faster than a computed layout
    figure, panels = plt.subplots(len(found), 1, figsize=(6.2, 1.6 * len(found) + 0.4), sharex=True, gridspec_kw=margins)
    for axes, (kind, (table, copied)) in zip(panels, found.items(), strict=True):
        axes.pcolormesh(table.to_numpy(), cmap="cividis", vmin=0, vmax=most, edgecolors="white", linewidth=1)
        for (row, column), share in np.ndenumerate(table.to_numpy()):
            color = "white" if share < most / 2 else "black"
            axes.text(column + 0.5, row + 0.5, f"{share:.0f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns)
        axes.set_yticks(np.arange(len(table)) + 0.5, table.index)
        axes.invert_yaxis()
        axes.set_title(f"{kind.replace('_', ' ')}: {copied:.0f}% of masked positions are visible at another time", fontsize=9)
        axes.tick_params(length=0, labelsize=9)
        sns.despine(ax=axes, left=True, bottom=True)
    panels[-1].set_xlabel("time steps from a masked patch; numbers: visible patches, %", fontsize=9)
    return figure


def leakage_plot(ratio: float) -> Plot:
    caption = f"Visible patches around a masked one, {ratio:.0%} masked, 8 x 14 x 14 tokens, mean over {DRAWS} draws."
    return Plot(leakage_figure(ratio), "leakage", caption)


# ---- What it costs ----


def cost_models(plan: Plan) -> dict[str, ModelSettings]:
    """Return the notebook's own model, and the paper's ViT-B on the paper's clip."""
    model = plan.recipe.model
    grid = " x ".join(map(str, model.clip.grid))
    return {f"{model.size}, {grid} tokens (here)": model, "base (ViT-B), 8 x 14 x 14 tokens": ModelSettings(size="base")}


def cost_table(choice: Choice, models: Mapping[str, ModelSettings]) -> pd.DataFrame:
    """Count the multiply-accumulates of one clip's forward pass, with and without the decoder mask of the choice.

    Columns encoder, decoder; index: model and masks. Masks that a grid does not allow are left out.
    """
    lines = {}
    for name, model in models.items():
        for label, masks in (("no decoder mask", _without_decoder_mask(choice.masks)), ("these masks", choice.masks)):
            try:
                both = Choice(masks, choice.phase, choice.draw).drawn(model.clip.grid)
            except ValueError:
                continue
            visible, decoded = (int((~mask).sum()) for mask in both)
            encoder = encoder_macs(model.dimensions, model.clip, visible)
            total = pretrain_cost(model.dimensions, model.clip, visible, decoded).macs
            lines[name, label] = {"encoder": encoder, "decoder": total - encoder}
    return pd.DataFrame.from_dict(lines, orient="index")


def cost_figure(costs: pd.DataFrame) -> Figure:
    """Plot the cost of one clip, one panel per model: the encoder's and the decoder's part, with and without a decoder mask."""
    models = costs.index.get_level_values(0).unique()
    wide = 2.4 + 3.6 * len(models)
    margins = {"left": 1.3 / wide, "right": 1 - 1.1 / wide, "bottom": 0.3, "top": 0.86, "wspace": 0.08}
    figure, panels = plt.subplots(1, len(models), figsize=(wide, 1.9), sharey=True, squeeze=False, gridspec_kw=margins)
    for axes, model in zip(panels[0], models, strict=True):
        unit, name = (1e9, "G") if costs.loc[model].sum(axis=1).max() >= 1e9 else (1e6, "M")
        parts = costs.loc[model] / unit
        parts.plot.barh(stacked=True, ax=axes, color=[BLUE, SKY], edgecolor="white", width=0.8, legend=False)
        for line, total in enumerate(whole := parts.sum(axis=1)):
            saved = f" ({total / whole.iloc[0] - 1:+.0%})" if line else ""
            axes.text(total, line, f" {total:.1f}{saved}", va="center", fontsize=8)
        axes.set_title(model, fontsize=9)
        axes.set_xlabel(f"{name} multiply-accumulates per clip, forward", fontsize=9)
        axes.set_xlim(0, 1.4 * whole.max())
        axes.tick_params(labelsize=9)
    for bars in (axes.containers[1] for axes in panels[0]):  # the decoder's, for print
        for bar in bars:
            bar.set_hatch("//")
    panels[0][0].invert_yaxis()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="center right", fontsize=8)
    sns.despine(figure)
    return figure


def cost_plot(plan: Plan) -> Plot:
    figure = cost_figure(cost_table(Choice(plan.recipe.mask), cost_models(plan)))
    return Plot(figure, "cost", "Multiply-accumulates of one clip with and without a decoder mask, counted.")


# ---- What a model reconstructs ----


def example_plots(results: Results, clip: int) -> tuple[Plot, Plot]:
    """Show the trained arm's masks on an example clip, and an animation of the model's reconstruction under them."""
    plan, shape = results.plan, results.recipe.model.clip
    choice = Choice(plan.first(plan.pretrained[0]).recipe.mask, clip=clip)
    model = trained_model(plan, results.store, plan.pretrained[0])
    frames = rebuilt(model, picture_clip(plan, clip), *choice.drawn(shape.grid))
    masks = (
        "A clip, what the encoder sees, what the decoder reconstructs, and the part of each patch; one column per time step."
    )
    loop = "A held-out clip as the small model sees and reconstructs it. All hidden pixels are predicted by the model."
    return (
        Plot(mask_figure(frames["original"], choice, shape), "masks", masks),
        Plot(looping_gif(frames), "reconstruction", loop),
    )


def errors_table(plan: Plan, model: VideoMAE) -> Table:
    """Measure the model's error on all masked patches of held-out clips, under tubes and random masks of two ratios.

    The first ratio is that of the training. Raises MissingVideos.
    """
    recipe = plan.first(plan.pretrained[0]).recipe
    clips, lines = example_clips(plan), {}
    for ratio in (recipe.mask.encoder_ratio, 0.9):
        for kind in ("tube", "random"):
            masks = MaskSettings(encoder=kind, encoder_ratio=ratio, decoder="none", decoder_ratio=0.0)
            lines[f"{kind} {ratio:.0%}"] = reconstruction_errors(model, clips, recipe.model, masks, recipe.data.stride)
    names = {"reconstruction": "error", "cube_mean": "of the true patch means"}
    frame = pd.DataFrame.from_dict(lines, orient="index").rename(columns=names).round(4)
    caption = (
        "Mean squared error of masked pixels in [0, 1] on held-out clips, one model, one seed, all masked patches. For "
        "comparison: the error of predicting the true mean of each patch, which the model does not know."
    )
    return Table(frame.reset_index(names="encoder mask"), "errors", caption)


def conclusions(choices: Mapping[str, Choice], errors: Table, ratio: float) -> list[str]:
    """State what the decoder mask saves for ViT-B, what leaks, and whether leakage helps this model."""
    counts = counts_table(choices)
    costs = [pretrain_cost(SIZES["base"], PAPER_CLIP, row["seen"], row["decoded"]).giga for _, row in counts.iterrows()]
    copied = ", ".join(f"{share:.0f}% ({kind.replace('_', ' ')})" for kind, (_, share) in leakage(ratio).items())
    own, other = errors.frame.error.iloc[:2]
    return [
        f"ViT-B costs {costs[-1]:.1f} instead of {costs[0]:.1f} G MAC per clip with {counts.index[-1]} "
        f"({costs[-1] / costs[0] - 1:+.0%}).",
        f"With {ratio:.0%} masked, the position of a masked patch is visible at another time for {copied}.",
        f"On held-out clips, the squared error of the small model is {own:.4f} under tubes, as in training, and {other:.4f} "
        f"under a random mask of the same ratio ({other / own - 1:+.0%}).",
    ]
