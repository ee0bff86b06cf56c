"""Figures along a training: accuracy against steps and compute, differences to one arm, losses and validation."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vmae_lab.lab.plan import Arm
from vmae_lab.lab.plots.charts import within_percent
from vmae_lab.lab.plots.style import GREY
from vmae_lab.lab.plots.text import short

COLUMNS = 3  # panels side by side


def accuracy_curves(summary: pd.DataFrame, arms: Mapping[str, Arm], ylabel: str, legend: str = "decoder mask") -> Figure:
    """Plot accuracy against optimizer steps (left) and against compute (right): one line per arm, its interval as a band.

    summary: columns arm, step, macs, mean, low, high.
    """
    layout = ConstrainedLayoutEngine(wspace=0.05)  # without it, the last number of an axis touches the first of the next
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4.2), sharey=True, layout=layout)
    # The unit of compute is a power of 1,000 in which the largest value has up to three digits before the point.
    exponent = max(0, (len(str(int(summary.macs.max()))) - 1) // 3 * 3)
    panels = (
        (left, summary.step, "optimizer steps"),
        (right, summary.macs / 10.0**exponent, f"compute (1e{exponent} multiply-accumulates)"),
    )
    for axes, x, label in panels:
        for arm in _present(summary, arms):
            points = summary[summary.arm == arm].sort_values("step")
            at, style = x[points.index], arms[arm]
            axes.plot(at, points["mean"], **_line(style), label=short(style.label))
            axes.fill_between(at, points.low, points.high, color=style.colour, alpha=0.12, linewidth=0)
        axes.set(xlabel=label)
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    left.set(ylabel=ylabel)
    within_percent(left)
    figure.legend(*left.get_legend_handles_labels(), title=legend, loc="outside right center", handlelength=3.5)
    return figure


def difference_curves(differences: pd.DataFrame, arms: Mapping[str, Arm], baseline: str, ylabel: str) -> Figure:
    """Plot one panel per arm: its difference to the baseline at equal steps and at equal compute, with intervals as bands.

    The vertical axis covers all differences and the intervals of the last step. Intervals of earlier steps can be far wider.

    differences: columns arm, step, equal ("steps" or "compute"), difference, low, high.
    """
    names = _present(differences, arms)
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.6 + 2.6 * columns, 0.9 + 2.3 * rows), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, arm in zip(grid.flat, names, strict=False):
        style, of_arm = arms[arm], differences[differences.arm == arm].sort_values("step")
        axes.axhline(0, color="#777777", linewidth=1)
        for equal, colour, line in (("compute", GREY, _dotted(style)), ("steps", style.colour, _line(style))):
            points = of_arm[of_arm.equal == equal]
            axes.plot(points.step, points.difference, **line)
            axes.fill_between(points.step, points.low, points.high, color=colour, alpha=0.25, linewidth=0)
        axes.set_title(short(style.label, 28))
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)
    last = differences[differences.step == differences.step.max()]
    shown = pd.concat([differences.difference, last.low, last.high]).dropna()
    margin = 0.08 * (shown.max() - shown.min()) or 1.0
    grid[0, 0].set(ylim=(shown.min() - margin, shown.max() + margin))
    grid[0, 0].set_xlim(left=0)
    figure.supxlabel("optimizer steps of the arm", fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    example = Arm("", "#000000", "o")
    handles: list[Any] = [
        (Patch(color="#000000", alpha=0.25, linewidth=0), Line2D([], [], **_line(example))),
        (Patch(color=GREY, alpha=0.25, linewidth=0), Line2D([], [], **_dotted(example))),
    ]
    labels = [f"{short(arms[baseline].label, 28)} at equal {equal}" for equal in ("steps", "compute")]
    figure.legend(handles, labels, title="difference to", loc="outside upper center", ncols=2, handlelength=3.5)
    return figure


def validation_curves(curves: pd.DataFrame, arms: Mapping[str, Arm], legend: str) -> Figure:
    """Plot training loss, validation loss and validation accuracy over steps, one panel each: one line per arm.

    A line is the mean over seeds, its band the range from the lowest to the highest seed. The panels of the losses share their
    vertical axis.

    curves: columns arm, step, loss, validation_loss, validation_accuracy; one row per arm, seed and validation.
    """
    layout = ConstrainedLayoutEngine(wspace=0.05)
    figure, panels = plt.subplots(1, 3, figsize=(11.4, 3.8), layout=layout)
    columns = {"loss": "training loss", "validation_loss": "validation loss", "validation_accuracy": "validation top-1 (%)"}
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for arm in _present(curves, arms):
            points = curves[curves.arm == arm].groupby("step")[column].agg(["mean", "min", "max"])
            spacing = max(1, len(points) // 6)
            axes.plot(points.index, points["mean"], **_line(arms[arm]), markevery=spacing, label=short(arms[arm].label))
            axes.fill_between(points.index, points["min"], points["max"], color=arms[arm].colour, alpha=0.12, linewidth=0)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    panels[1].sharey(panels[0])
    panels[0].autoscale(axis="y")
    within_percent(panels[2])
    figure.legend(*panels[0].get_legend_handles_labels(), title=legend, loc="outside right center", handlelength=3.5)
    return figure


def _present(table: pd.DataFrame, arms: Mapping[str, Arm]) -> list[str]:
    """Return the arms of a table, in the order of `arms`."""
    return [arm for arm in arms if arm in set(table.arm)]


def _line(style: Arm) -> dict[str, Any]:
    return {**style.point(6.5), "linestyle": style.dashes}


def _dotted(style: Arm) -> dict[str, Any]:
    """Return the line style of an arm at equal compute: dotted, with open markers."""
    return {**_line(style), "linestyle": ":", "markerfacecolor": "white"}
