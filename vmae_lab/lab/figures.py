"""Figures: one look for all of them, saved as png and svg that do not change when nothing did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from vmae_lab.files import make_folder, whole_file
from vmae_lab.lab.arms import Arm

STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "svg.hashsalt": "vmae_lab",
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.frameon": False,
}
HIDDEN = (0.55, 0.55, 0.58)  # what a masked cube is painted with


def use_style() -> None:
    """The look of every figure of the workbook."""
    sns.set_theme(context="notebook", style="ticks", rc=STYLE)


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Write `<name>.png` and `<name>.svg`; returns the png's path."""
    make_folder(folder)
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with whole_file(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata)
    return folder / f"{name}.png"


def mask_gallery(video: np.ndarray, masks: Mapping[str, tuple[np.ndarray, np.ndarray]], tubelet: int, patch: int) -> Figure:
    """A clip, what the encoder sees of it, and what each arm's decoder rebuilds, one column a time step.

    video: uint8 `(T, H, W, 3)`; masks: label -> encoder and decoder mask, bool `(T', H', W')`, True = masked.
    """
    frames = video[::tubelet]
    encoder_mask = next(iter(masks.values()))[0]
    rows = {"clip": frames, "encoder sees": _paint(frames, encoder_mask, patch)}
    rows |= {f"decodes: {label}": _paint(frames, decoder_mask, patch) for label, (_, decoder_mask) in masks.items()}
    return _strips(rows, f"time step of the token grid ({tubelet} frames each) →")


def reconstruction_strips(rows: Mapping[str, np.ndarray]) -> Figure:
    """Rows of frames, uint8 `(T, H, W, 3)` each, under their names."""
    return _strips(dict(rows))


def loss_curves(curves: pd.DataFrame, arms: Mapping[str, Arm]) -> Figure:
    """Training loss over steps, a line an arm (mean over seeds) with the range over seeds. Columns: arm, seed, step, loss.

    The vertical axis is cut to what comes after the first tenth of the steps.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for arm in curves.arm.unique():
        chosen = curves[curves.arm == arm].groupby("step").loss.agg(["mean", "min", "max"])
        style = arms[arm]
        axes.plot(
            chosen.index, chosen["mean"], color=style.colour, marker=style.marker, markevery=max(1, len(chosen) // 6),
            markersize=5, label=style.label,
        )  # fmt: skip
        axes.fill_between(chosen.index, chosen["min"], chosen["max"], color=style.colour, alpha=0.15, linewidth=0)
    later = curves[curves.step > 0.1 * curves.step.max()].loss  # the fall of the first steps would flatten all that follows
    margin = 0.15 * (later.max() - later.min())
    axes.set_ylim(later.min() - margin, later.max() + margin)
    axes.set(xlabel="optimiser step", ylabel="reconstruction loss (training)")
    axes.legend(title="decoder mask", loc="center left", bbox_to_anchor=(1.01, 0.5))
    sns.despine(figure)
    return figure


def accuracy_against_cost(
    summary: pd.DataFrame, cost: Mapping[str, float], arms: Mapping[str, Arm], floor: str, chance: float, ylabel: str
) -> Figure:
    """Accuracy over the cost of one pre-training clip, error bars the t interval over seeds; the floor arm as a line.

    summary: columns mean, low, high, index arm; cost: arm -> multiply-accumulates in 1e6. Arms of equal cost are set side
    by side, 2.5 % of the axis apart, so that none hides another.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    place = _side_by_side(pd.Series({arm: cost[arm] for arm in summary.index if arm != floor}))
    for arm, row in summary.iterrows():
        style = arms[arm]
        if arm == floor:
            axes.axhline(row["mean"], color=style.colour, linewidth=1.2, linestyle="--", label=style.label)
            if not np.isnan(row["low"]):
                axes.axhspan(row["low"], row["high"], color=style.colour, alpha=0.15, linewidth=0)
            continue
        error = None if np.isnan(row["low"]) else [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar(
            place[arm], row["mean"], yerr=error, color=style.colour, marker=style.marker, markersize=8, capsize=3,
            linestyle="none", label=style.label,
        )  # fmt: skip
    axes.axhline(chance, color="#BBBBBB", linewidth=1, linestyle=":", label="chance")
    axes.set(xlabel="pre-training cost of a clip, forward (1e6 multiply-accumulates)", ylabel=ylabel)
    axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
    axes.legend(title="decoder mask", loc="center left", bbox_to_anchor=(1.01, 0.5))
    sns.despine(figure)
    return figure


def _side_by_side(cost: pd.Series) -> pd.Series:
    """Horizontal places: the cost, with equal ones spread around it."""
    gap = 0.025 * max(cost.max() - cost.min(), 0.01 * cost.max())
    rank, count = cost.groupby(cost).cumcount(), cost.groupby(cost).transform("size")
    return cost + gap * (rank - (count - 1) / 2)


def _paint(frames: np.ndarray, mask: np.ndarray, patch: int) -> np.ndarray:
    """Cover the masked cubes of frames, one frame a time step: uint8 `(T', H, W, 3)`, bool `(T', H', W')`."""
    covered = np.kron(mask, np.ones((1, patch, patch), dtype=bool))[..., None]
    return np.where(covered, np.array(HIDDEN) * 255, frames).astype(np.uint8)


def _strips(rows: Mapping[str, Sequence[np.ndarray]], xlabel: str = "") -> Figure:
    """Rows of small pictures under their names; the grid has the pictures' own proportions, so that no gaps open."""
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(0.95 * columns, 0.95 * len(rows)),
        squeeze=False,
        gridspec_kw={"wspace": 0.06, "hspace": 0.06, "left": 0, "right": 1, "bottom": 0, "top": 1},
    )
    for line, (name, frames) in zip(axes, rows.items(), strict=True):
        for place, frame in zip(line, frames, strict=True):
            place.imshow(frame, interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            sns.despine(ax=place, left=True, bottom=True)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.text(0.5, -0.02, xlabel, ha="center", va="top", fontsize=9)
    return figure
