"""Figures of accuracy along pre-training: against steps and compute, and as differences to one arm."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vmae_lab.lab.plan import Arm
from vmae_lab.lab.plots.style import GREY
from vmae_lab.lab.plots.text import short

COLUMNS = 3  # panels side by side


def accuracy_curves(summary: pd.DataFrame, arms: Mapping[str, Arm], ylabel: str, legend: str = "decoder mask") -> Figure:
    """Accuracy against optimiser steps (left) and against compute (right), one line per arm with its interval as a band.

    summary: columns arm, step, macs, mean, low, high.
    """
    layout = ConstrainedLayoutEngine(wspace=0.05)  # else the last number of one axis touches the first of the next
    figure, places = plt.subplots(1, 2, figsize=(9.4, 4.2), sharey=True, layout=layout)
    names = _in_order(summary, arms)
    scale, unit = _unit(summary.macs.max())
    for axes, column, label in (
        (places[0], "step", "optimiser steps"),
        (places[1], "macs", f"compute (1e{unit} multiply-accumulates)"),
    ):
        for arm in names:
            points = summary[summary.arm == arm].sort_values("step")
            x = points[column] / (scale if column == "macs" else 1)
            style = arms[arm]
            axes.plot(x, points["mean"], **_line(style), label=short(style.label))
            axes.fill_between(x, points.low, points.high, color=style.colour, alpha=0.12, linewidth=0)
        axes.set(xlabel=label)
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    low, high = places[0].get_ylim()  # a t interval over few seeds may exceed what an accuracy can be
    places[0].set(ylabel=ylabel, ylim=(max(0, low), min(100, high)))
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, title=legend, loc="outside right center", handlelength=3.5)
    sns.despine(figure)
    return figure


def difference_curves(differences: pd.DataFrame, arms: Mapping[str, Arm], baseline: str, ylabel: str) -> Figure:
    """One panel per arm: its difference to the baseline at equal steps and at equal compute, with intervals as bands.

    The vertical axis holds all differences, and the intervals at the last step: those of the first steps may be far wider.

    differences: columns arm, step, equal ("steps" or "compute"), difference, low, high.
    """
    names = _in_order(differences, arms)
    lines = -(-len(names) // COLUMNS)
    columns = min(COLUMNS, len(names))
    figure, places = plt.subplots(
        lines, columns, figsize=(1.6 + 2.6 * columns, 0.9 + 2.3 * lines), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, arm in zip(places.flat, names, strict=False):
        style, chosen = arms[arm], differences[differences.arm == arm].sort_values("step")
        axes.axhline(0, color="#777777", linewidth=1)
        for equal, colour, look in (("compute", GREY, _open(style)), ("steps", style.colour, _line(style))):
            points = chosen[chosen.equal == equal]
            axes.plot(points.step, points.difference, **look)
            axes.fill_between(points.step, points.low, points.high, color=colour, alpha=0.25, linewidth=0)
        axes.set_title(short(style.label, 28))
    for axes in places.flat[len(names) :]:
        axes.set_visible(False)
    for axes in places.flat[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)
    last = differences[differences.step == differences.step.max()]
    shown = pd.concat([differences.difference, last.low, last.high]).dropna()
    margin = 0.08 * (shown.max() - shown.min()) or 1.0
    places[0, 0].set(ylim=(shown.min() - margin, shown.max() + margin))
    places[0, 0].set_xlim(left=0)
    figure.supxlabel("optimiser steps of the arm", fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    example = Arm("", "#000000", "o")
    handles: list[Any] = [
        (Patch(color="#000000", alpha=0.25, linewidth=0), Line2D([], [], **_line(example))),
        (Patch(color=GREY, alpha=0.25, linewidth=0), Line2D([], [], **_open(example))),
    ]
    names_of = [f"{short(arms[baseline].label, 28)} at equal {equal}" for equal in ("steps", "compute")]
    figure.legend(handles, names_of, title="difference to", loc="outside upper center", ncols=2, handlelength=3.5)
    sns.despine(figure)
    return figure


def _in_order(table: pd.DataFrame, arms: Mapping[str, Arm]) -> list[str]:
    present = set(table.arm)
    return [arm for arm in arms if arm in present]


def _line(style: Arm) -> dict[str, Any]:
    """How an arm's line is drawn. Stars and crosses look smaller than other markers of their size."""
    size = 9 if style.marker in "*P" else 6.5
    return {
        "color": style.colour,
        "linestyle": style.dashes,
        "marker": style.marker,
        "fillstyle": style.fill,
        "markersize": size,
    }


def _open(style: Arm) -> dict[str, Any]:
    """The same arm where it is compared in the second way: open markers on a dotted line."""
    return {**_line(style), "linestyle": ":", "markerfacecolor": "white"}


def _unit(largest: float) -> tuple[float, int]:
    """A power of ten, a multiple of three, in which the largest value has up to three digits, and its exponent."""
    exponent = max(0, (len(str(int(largest))) - 1) // 3 * 3)
    return 10.0**exponent, exponent
