"""Charts of numbers: losses, accuracies, costs, counts, maps of features."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from vmae_lab.lab.plan import Arm
from vmae_lab.lab.plots.style import BLUE, COLOURS, MARKERS
from vmae_lab.lab.plots.text import short

GUESS = "#444444"  # colour of the lines of guessing
FAR_ABOVE = 20  # points above chance, from which a line at chance would squeeze the results
LISTED = 24  # kinds in a legend; what is beyond them is drawn alike
SHOWN = 25  # classes of a matrix
WITH_COUNTS = 12  # classes up to which its cells also hold counts


def loss_curves(
    curves: pd.DataFrame, arms: Mapping[str, Arm], legend: str = "decoder mask", loss: str = "reconstruction loss"
) -> Figure:  # fmt: skip
    """Training loss over steps, one line per arm (mean over seeds) with the range over seeds. Columns: arm, seed, step, loss.

    The vertical axis shows the range after the first tenth of the steps. Markers are staggered, so that lines that overlap
    can be distinguished.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    names = list(curves.arm.unique())
    for place, arm in enumerate(names):
        chosen = curves[curves.arm == arm].groupby("step").loss.agg(["mean", "min", "max"])
        style, apart = arms[arm], max(1, len(chosen) // 6)
        axes.plot(
            chosen.index, chosen["mean"], color=style.colour, linestyle=style.dashes, marker=style.marker,
            markevery=(place * apart // len(names), apart), markersize=5, label=short(style.label),
        )  # fmt: skip
        alpha = 0.3 / max(2, len(names))
        axes.fill_between(chosen.index, chosen["min"], chosen["max"], color=style.colour, alpha=alpha, linewidth=0)
    later = curves[curves.step > 0.1 * curves.step.max()].loss  # the fall of the first steps would flatten all that follows
    margin = 0.15 * (later.max() - later.min()) or 0.1  # a single point has no range
    axes.set_ylim(later.min() - margin, later.max() + margin)
    axes.set(xlabel="optimiser step", ylabel=f"{loss} (training)")
    axes.legend(title=legend, loc="center left", bbox_to_anchor=(1.01, 0.5))
    sns.despine(figure)
    return figure


def accuracy_against_cost(
    summary: pd.DataFrame, cost: Mapping[str, float], arms: Mapping[str, Arm], floor: str, chance: float, ylabel: str,
    legend: str = "decoder mask", front: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Accuracy over the cost of one pre-training clip, error bars the t interval over seeds; the floor arm as a line.

    `front`: arms to join by a line, from the cheapest on.

    summary: columns mean, low, high, index arm; cost: arm -> multiply-accumulates in 1e6. Arms of equal cost are set side
    by side, 2.5 % of the axis apart, so that none hides another.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    place = _side_by_side(pd.Series({arm: cost[arm] for arm in summary.index if arm != floor}))
    for arm, row in summary.iterrows():
        style = arms[arm]
        if arm == floor:
            axes.axhline(row["mean"], color=style.colour, linewidth=1.2, linestyle=style.dashes, label=short(style.label))
            if not np.isnan(row["low"]):
                axes.axhspan(row["low"], row["high"], color=style.colour, alpha=0.15, linewidth=0)
            continue
        error = None if np.isnan(row["low"]) else [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar(
            place[arm], row["mean"], yerr=error, **_point(style, 8), capsize=3, linestyle="none", label=short(style.label)
        )
    if len(front) > 1:
        axes.plot([place[arm] for arm in front], summary["mean"][list(front)], color="#999999", zorder=0, label="Pareto front")
    if summary.low.fillna(summary["mean"]).min() < chance + FAR_ABOVE:
        _chance_line(axes, chance)
    axes.set(xlabel="pre-training cost of a clip, forward (1e6 multiply-accumulates)", ylabel=ylabel)
    low, high = axes.get_ylim()  # a t interval over few seeds may run past what an accuracy can be
    axes.set_ylim(max(0, low), min(100, high))
    axes.legend(title=legend, loc="center left", bbox_to_anchor=(1.01, 0.5))
    sns.despine(figure)
    return figure


def heat_maps(tables: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """Tables side by side as colours with their numbers, one colour scale each. Missing cells show "not run".

    tables: title -> numbers, with the labels of rows and columns.
    """
    figure, places = plt.subplots(1, len(tables), figsize=(4.3 * len(tables), 3.4), squeeze=False, layout="constrained")
    for axes, (title, table) in zip(places[0], tables.items(), strict=True):
        axes.set_facecolor("#EEEEEE")
        named = table.rename(index=partial(short, most=24), columns=partial(short, most=24))
        sns.heatmap(
            named, ax=axes, annot=True, fmt=".1f", cmap="cividis", linewidths=1, cbar_kws={"shrink": 0.8},
            annot_kws={"fontsize": 9},
        )  # fmt: skip
        for row, column in np.argwhere(table.isna().to_numpy()):
            axes.text(column + 0.5, row + 0.5, "not run", ha="center", va="center", fontsize=8, color="#444444")
        axes.set(title=short(title), xlabel=xlabel, ylabel=ylabel)
        axes.tick_params(length=0)
        axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return figure


def dots_by_arm(summaries: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], chance: float, xlabel: str) -> Figure:
    """One panel per metric, one line per arm: mean and t interval over seeds. summaries: title -> columns mean, low, high."""
    names = list(next(iter(summaries.values())).index)
    size = (3.6 * len(summaries) + 1.6, 0.42 * len(names) + 1.2)
    figure, places = plt.subplots(1, len(summaries), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (title, summary) in zip(places[0], summaries.items(), strict=True):
        for line, arm in enumerate(names):
            row, style = summary.loc[arm], arms[arm]
            error = None if np.isnan(row["low"]) else [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axes.errorbar(row["mean"], line, xerr=error, **_point(style, 8), capsize=3)
        axes.axvline(chance, color="#BBBBBB", linewidth=1, linestyle=":")
        axes.text(chance, -0.75, " chance", fontsize=8, color="#666666", va="center")
        axes.set(title=short(title), ylim=(len(names) - 0.5, -1))
        axes.set_xlim(max(0, axes.get_xlim()[0]), min(100, axes.get_xlim()[1]))
        axes.set_yticks(range(len(names)), [short(arms[arm].label) for arm in names])
    figure.supxlabel(xlabel, fontsize="medium")
    sns.despine(figure)
    return figure


def bars_by_class(
    summaries: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], guess: Mapping[str, float], ylabel: str
) -> Figure:  # fmt: skip
    """One group of bars per class, one bar per arm, error bars of one standard deviation over seeds, lines for guessing.

    summaries: arm -> columns mean, std; index class. guess: class -> value; no line where it is empty.
    """
    names, wide = list(guess or next(iter(summaries.values())).index), 0.8 / len(summaries)
    width = min(16.0, max(6.4, 0.36 * len(names) * len(summaries) + 1.2))
    figure, axes = plt.subplots(figsize=(width, 3.6), layout="constrained")
    crowded = width / (len(names) * len(summaries)) < 0.2  # inches a bar
    for place, (arm, summary) in enumerate(summaries.items()):
        style = arms[arm]
        at = np.arange(len(names)) + (place - (len(summaries) - 1) / 2) * wide
        chosen = summary.reindex(names)
        axes.bar(
            at, chosen["mean"], 0.92 * wide, yerr=chosen["std"], color=style.colour, edgecolor="white",
            hatch=style.hatch, capsize=0 if crowded else 2, label=short(style.label),
            linewidth=0 if crowded else 1, error_kw={"linewidth": 0.5 if crowded else 1},
        )  # fmt: skip
    for place, value in enumerate(guess.values()):
        label = "guessing" if place == 0 else ""
        axes.hlines(value, place - 0.48, place + 0.48, color=GUESS, linestyle=":", linewidth=1.5, label=label)
    turned, size = (30 if len(names) > 8 else 0, None) if len(names) <= 24 else (90, 8)
    axes.set_xticks(
        range(len(names)), [short(name, 30) for name in names], rotation=turned, fontsize=size,
        ha="right" if turned == 30 else "center",
    )  # fmt: skip
    axes.set(ylabel=ylabel, ylim=(0, None), xlim=(-0.6, len(names) - 0.4))
    axes.set_ylim(0, min(100, axes.get_ylim()[1]))
    axes.legend(loc="upper left", ncols=len(summaries) + 1, fontsize=9, bbox_to_anchor=(0, 1.16))
    sns.despine(figure)
    return figure


def stacked_shares(shares: pd.DataFrame, xlabel: str) -> Figure:
    """Parts of a whole: one bar per row, one colour and hatch per column. Rows add up to 100."""
    rows, columns = ([short(name) for name in axis] for axis in (shares.index, shares.columns))
    width = max(6.4, 3.2 + 0.09 * (max(map(len, rows)) + max(map(len, columns))))  # names stand on both sides of the bars
    figure, axes = plt.subplots(figsize=(width, 0.42 * len(shares) + 1.2), layout="constrained")
    left = np.zeros(len(shares))
    hatches = cycle(("", "//", "..", "xx", "\\\\", "oo"))
    styles = zip(shares.columns, sns.color_palette("cividis", len(shares.columns)), hatches, strict=False)
    for source, colour, hatch in styles:
        part = shares[source].to_numpy()
        axes.barh(range(len(shares)), part, left=left, color=colour, hatch=hatch, edgecolor="white", label=short(source))
        left += part
    axes.set_yticks(range(len(shares)), rows)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, xlim=(0, 100))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    sns.despine(figure)
    return figure


def lines_by_arm(
    curves: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], xlabel: str, ylabel: str, chance: float
) -> Figure:
    """One line per arm over a logarithmic axis: mean and t interval. curves: arm -> columns mean, low, high; index x."""
    figure, axes = plt.subplots(figsize=(6.4, 3.9))
    for place, (arm, curve) in enumerate(curves.items()):
        style, beside = arms[arm], 1.03 ** (place - (len(curves) - 1) / 2)  # a little apart, so that no bar hides another
        error = None if curve.low.isna().any() else [curve["mean"] - curve["low"], curve["high"] - curve["mean"]]
        axes.errorbar(
            curve.index * beside, curve["mean"], yerr=error, **_point(style, 7), linestyle=style.dashes, capsize=3,
            label=short(style.label),
        )  # fmt: skip
    _chance_line(axes, chance)
    axes.set_xscale("log")
    ticks = sorted({x for curve in curves.values() for x in curve.index})
    axes.set_xticks(ticks, [f"{x:.3g}" for x in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(max(0, low), min(100, high)))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    sns.despine(figure)
    return figure


def panels_over_sizes(panels: Mapping[str, pd.DataFrame], styles: Mapping[str, Arm]) -> Figure:
    """One panel per quantity on a logarithmic axis, one line per style over model sizes; a gap if a value is missing.

    panels: title with its unit -> one column a style, index the size's name.
    """
    figure, places = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.6), squeeze=False, layout="constrained")
    for axes, (label, table) in zip(places[0], panels.items(), strict=True):
        for column in table.columns:
            style = styles[column]
            dashed = "--" if "counted" in style.label else "-"
            axes.plot(
                range(len(table)),
                table[column],
                color=style.colour,
                marker=style.marker,
                linestyle=dashed,
                label=short(style.label),
            )
        axes.set_xticks(range(len(table)), [short(name) for name in table.index])
        axes.set(title=short(label), yscale="log", xlim=(-0.4, len(table) - 0.6))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    handles, labels = places[0][0].get_legend_handles_labels()
    for axes in places[0][1:]:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name not in labels:
                handles.append(handle)
                labels.append(name)
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    sns.despine(figure)
    return figure


def slopes(trend: pd.DataFrame, xlabel: str) -> Figure:
    """Slopes with their intervals, one per line, and zero. trend: columns slope, low, high; index: what is doubled."""
    figure, axes = plt.subplots(figsize=(5.2, 0.5 * len(trend) + 1.0), layout="constrained")
    error = [trend.slope - trend.low, trend.high - trend.slope]
    axes.errorbar(trend.slope, range(len(trend)), xerr=error, color=BLUE, marker="D", linestyle="none", capsize=3)
    axes.axvline(0, color="#777777", linewidth=1)
    axes.set_yticks(range(len(trend)), [short(name) for name in trend.index])
    axes.set(xlabel=xlabel, ylim=(len(trend) - 0.5, -0.5))
    sns.despine(figure)
    return figure


def _point(style: Arm, size: float) -> dict[str, Any]:
    """Marker of an arm. Stars and crosses look smaller than other markers of their size."""
    return {
        "color": style.colour, "marker": style.marker, "fillstyle": style.fill, "markerfacecoloralt": "white",
        "markersize": size * (1.4 if style.marker in "*P" else 1),
    }  # fmt: skip


def _chance_line(axes: plt.Axes, chance: float) -> None:
    axes.axhline(chance, color="#BBBBBB", linewidth=1, linestyle=":", label="chance")


def _side_by_side(cost: pd.Series) -> pd.Series:
    """Horizontal positions: the costs, with equal ones spread apart."""
    gap = 0.025 * max(cost.max() - cost.min(), 0.01 * cost.max())
    rank, count = cost.groupby(cost).cumcount(), cost.groupby(cost).transform("size")
    return cost + gap * (rank - (count - 1) / 2)


def clip_map(points: np.ndarray, kinds: Sequence[str], title: str) -> Figure:
    """Clips as points `(n, 2)`, one colour and marker per kind, the most frequent kinds first."""
    names, codes, counts = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = order if len(order) <= LISTED else order[: LISTED - 1]
    figure, axes = plt.subplots(figsize=(6.0, 5.2))
    others = ~np.isin(codes, listed)
    if others.any():
        label = f"{len(order) - len(listed)} others ({others.sum()})"
        x, y = points[others].T
        axes.scatter(x, y, s=14, color="#CCCCCC", marker=".", label=label)
    for place, kind in enumerate(listed):
        colour, marker = COLOURS[place % 8], MARKERS[(place + place // 8) % 8]
        x, y = points[codes == kind].T
        axes.scatter(
            x, y, s=38 if len(points) < 300 else 20, color=colour, marker=marker, alpha=0.85, linewidths=0,
            label=f"{short(names[kind], 36)} ({counts[kind]})",
        )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("map axis 1 (no unit)", fontsize=9)
    axes.set_ylabel("map axis 2 (no unit)", fontsize=9)
    axes.margins(0.06)
    handles, labels = axes.get_legend_handles_labels()
    if others.any():  # drawn first, below the listed kinds; last in the legend
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
    if len(order) > 1:
        axes.legend(
            handles, labels, title=short(title), title_fontsize=10, loc="center left", bbox_to_anchor=(1.01, 0.5),
            ncols=1 + (len(listed) > 12), fontsize=9,
        )  # fmt: skip
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Answers by class, whole numbers `(classes, classes)`, rows the truth, in percent of a row; the commonest if many."""
    kept = np.sort(np.argsort(-counts.sum(1), kind="stable")[:SHOWN])
    kept = kept[counts.sum(1)[kept] > 0]
    cells, names = counts[np.ix_(kept, kept)], [short(names[i], 24) for i in kept]
    percent = 100 * cells / counts.sum(1)[kept, None]
    words = [[f"{share:.0f}" if share else "" for share in row] for row in percent]
    if len(kept) <= WITH_COUNTS:
        words = [
            [f"{word}\n({n})" if n else "" for word, n in zip(*row, strict=True)] for row in zip(words, cells, strict=True)
        ]
    side = 0.5 * len(kept) + 1.0
    figure, axes = plt.subplots(figsize=(side + 1.0, side), layout="constrained")
    sns.heatmap(
        percent, ax=axes, annot=np.array(words), fmt="", cmap="Greys", vmin=0, vmax=100, square=True, linewidths=0.5,
        linecolor="#DDDDDD", annot_kws={"fontsize": 8}, cbar_kws={"shrink": 0.7},
    )  # fmt: skip
    bar = axes.collections[0].colorbar
    assert bar is not None, "seaborn draws one beside a heatmap"
    bar.set_label("% of the class's answers", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    rows = [f"{name} ({n})" for name, n in zip(names, counts.sum(1)[kept], strict=True)]
    axes.set_xticks(np.arange(len(kept)) + 0.5, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(np.arange(len(kept)) + 0.5, rows, rotation=0, fontsize=9)
    axes.tick_params(length=0)
    axes.set_xlabel("answer", fontsize=10)
    axes.set_ylabel("class (number of answers)", fontsize=10)
    return figure
