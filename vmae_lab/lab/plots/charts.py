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
from vmae_lab.utils.counts import counted

FAR_ABOVE = 20  # points; if all results are this far above chance, its line is left out, since it would compress the plot
LISTED = 24  # kinds in the legend of a map; the rest share one color
LABELLED = 4  # values on a logarithmic axis that have a tick each; the labels of more would overlap
SHOWN = 25  # classes in a confusion matrix
WITH_COUNTS = 12  # largest number of classes for which the cells of a confusion matrix also show counts


def loss_curves(
    curves: pd.DataFrame, arms: Mapping[str, Arm], legend: str = "decoder mask", loss: str = "reconstruction loss"
) -> Figure:
    """Plot the training loss over steps: one line per arm (mean over seeds) and a band from the lowest to the highest seed.

    The vertical axis shows the range after the first tenth of the steps. Staggered markers distinguish overlapping lines.

    curves: columns arm, seed, step, loss.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    names = list(curves.arm.unique())
    for index, arm in enumerate(names):
        loss_at = curves[curves.arm == arm].groupby("step").loss.agg(["mean", "min", "max"])
        style, spacing = arms[arm], max(1, len(loss_at) // 6)
        axes.plot(
            loss_at.index, loss_at["mean"], color=style.colour, linestyle=style.dashes, marker=style.marker,
            markevery=(index * spacing // len(names), spacing), markersize=5, label=short(style.label),
        )  # fmt: skip
        alpha = 0.3 / max(2, len(names))
        axes.fill_between(loss_at.index, loss_at["min"], loss_at["max"], color=style.colour, alpha=alpha, linewidth=0)
    later = curves[curves.step > 0.1 * curves.step.max()].loss  # the large first losses would compress the rest
    margin = 0.15 * (later.max() - later.min()) or 0.1  # a single point has no range
    axes.set(xlabel="optimizer step", ylabel=f"{loss} (training)", ylim=(later.min() - margin, later.max() + margin))
    _legend_right(axes, legend)
    return figure


def accuracy_against_cost(
    summary: pd.DataFrame, cost: Mapping[str, float], arms: Mapping[str, Arm], floor: str, chance: float, ylabel: str,
    legend: str = "decoder mask", front: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Plot accuracy over the cost of one pre-training clip, with the t interval over seeds; the `floor` arm is a line.

    Arms of equal cost are drawn side by side, 2.5% of the axis apart, so that none hides another.

    summary: columns mean, low, high, index arm; cost: arm -> multiply-accumulates in 1e6; front: arms to join by a line, the
    cheapest first.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    x = _side_by_side(pd.Series({arm: cost[arm] for arm in summary.index if arm != floor}))
    for arm, row in summary.iterrows():
        style = arms[arm]
        if arm == floor:
            axes.axhline(row["mean"], color=style.colour, linewidth=1.2, linestyle=style.dashes, label=short(style.label))
            axes.axhspan(row["low"], row["high"], color=style.colour, alpha=0.15, linewidth=0)
        else:
            point = style.point(8)
            axes.errorbar(x[arm], row["mean"], _errors(row), **point, capsize=3, linestyle="none", label=short(style.label))
    if len(front) > 1:
        axes.plot(x[list(front)], summary["mean"][list(front)], color="#999999", zorder=0, label="Pareto front")
    if summary.low.fillna(summary["mean"]).min() < chance + FAR_ABOVE:
        _chance_line(axes, chance)
    axes.set(xlabel="pre-training cost of a clip, forward (1e6 multiply-accumulates)", ylabel=ylabel)
    within_percent(axes)
    _legend_right(axes, legend)
    return figure


def heat_maps(tables: Mapping[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """Draw tables side by side as colored cells with their numbers, each on its own color scale. Empty cells say "not run".

    tables: title -> numbers, with the labels of rows and columns.
    """
    figure, panels = plt.subplots(1, len(tables), figsize=(4.3 * len(tables), 3.4), squeeze=False, layout="constrained")
    for axes, (title, table) in zip(panels[0], tables.items(), strict=True):
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
    """Plot one panel per metric, one row per arm: mean and t interval over seeds.

    summaries: title -> columns mean, low, high; index arm.
    """
    names = list(next(iter(summaries.values())).index)
    size = (3.6 * len(summaries) + 1.6, 0.42 * len(names) + 1.2)
    figure, panels = plt.subplots(1, len(summaries), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (title, summary) in zip(panels[0], summaries.items(), strict=True):
        for y, arm in enumerate(names):
            row = summary.loc[arm]
            axes.errorbar(row["mean"], y, xerr=_errors(row), **arms[arm].point(8), capsize=3)
        axes.axvline(chance, color="#BBBBBB", linewidth=1, linestyle=":")
        axes.text(chance, -0.75, " chance", fontsize=8, color="#666666", va="center")
        axes.set(title=short(title), xlabel=xlabel, ylim=(len(names) - 0.5, -1))
        axes.set_yticks(range(len(names)), [short(arms[arm].label) for arm in names])
        within_percent(axes, horizontal=True)
    return figure


def bars_by_class(
    summaries: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], guess: Mapping[str, float], ylabel: str
) -> Figure:
    """Plot one group of bars per class, one bar per arm; error bars are one standard deviation over seeds.

    summaries: arm -> columns mean, std; index class. guess: class -> score of guessing, drawn as a line; none if empty.
    """
    names, bar = list(guess or next(iter(summaries.values())).index), 0.8 / len(summaries)
    width = min(16.0, max(6.4, 0.36 * len(names) * len(summaries) + 1.2))
    figure, axes = plt.subplots(figsize=(width, 3.6), layout="constrained")
    crowded = width / (len(names) * len(summaries)) < 0.2  # inches per bar
    for index, (arm, summary) in enumerate(summaries.items()):
        style, scores = arms[arm], summary.reindex(names)
        x = np.arange(len(names)) + (index - (len(summaries) - 1) / 2) * bar
        axes.bar(
            x, scores["mean"], 0.92 * bar, yerr=scores["std"], color=style.colour, edgecolor="white", hatch=style.hatch,
            capsize=0 if crowded else 2, label=short(style.label), linewidth=0 if crowded else 1,
            error_kw={"linewidth": 0.5 if crowded else 1},
        )  # fmt: skip
    for index, value in enumerate(guess.values()):
        label = "guessing" if index == 0 else ""
        axes.hlines(value, index - 0.48, index + 0.48, color="#444444", linestyle=":", linewidth=1.5, label=label)
    rotation, size = (30 if len(names) > 8 else 0, None) if len(names) <= 24 else (90, 8)
    labels = [short(name, 30) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=rotation, fontsize=size, ha="right" if rotation == 30 else "center")
    axes.set(ylabel=ylabel, ylim=(0, None), xlim=(-0.6, len(names) - 0.4))
    within_percent(axes)
    axes.legend(loc="upper left", ncols=len(summaries) + 1, fontsize=9, bbox_to_anchor=(0, 1.16))
    return figure


def stacked_shares(shares: pd.DataFrame, xlabel: str) -> Figure:
    """Plot parts of a whole: one bar per row, one color and hatch per column. Rows add up to 100."""
    rows, columns = ([short(name) for name in axis] for axis in (shares.index, shares.columns))
    width = max(6.4, 3.2 + 0.09 * (max(map(len, rows)) + max(map(len, columns))))  # names on both sides of the bars
    figure, axes = plt.subplots(figsize=(width, 0.42 * len(shares) + 1.2), layout="constrained")
    left = np.zeros(len(shares))
    looks = zip(sns.color_palette("cividis", len(columns)), cycle(("", "//", "..", "xx", "\\\\", "oo")), strict=False)
    for label, part, (colour, hatch) in zip(columns, shares.to_numpy().T, looks, strict=True):
        axes.barh(range(len(shares)), part, left=left, color=colour, hatch=hatch, edgecolor="white", label=label)
        left += part
    axes.set_yticks(range(len(shares)), rows)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, xlim=(0, 100))
    _legend_right(axes)
    return figure


def lines_by_arm(
    curves: Mapping[str, pd.DataFrame], arms: Mapping[str, Arm], xlabel: str, ylabel: str, chance: float,
    logarithmic: bool = True,
) -> Figure:  # fmt: skip
    """Plot one line per arm over a logarithmic or linear axis, with t intervals.

    curves: arm -> columns mean, low, high; index x.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.9))
    for index, (arm, curve) in enumerate(curves.items()):
        style, shift = arms[arm], index - (len(curves) - 1) / 2  # a little apart, so that no bar hides another
        axes.errorbar(
            curve.index * 1.03**shift if logarithmic else curve.index + 0.06 * shift, curve["mean"], _errors(curve),
            **style.point(7), linestyle=style.dashes, capsize=3, label=short(style.label),
        )  # fmt: skip
    _chance_line(axes, chance)
    if logarithmic:
        axes.set_xscale("log")
    ticks = sorted({x for curve in curves.values() for x in curve.index})
    if logarithmic and len(ticks) > LABELLED:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xticks(ticks, [f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in ticks])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    within_percent(axes)
    _legend_right(axes)
    return figure


def panels_over_sizes(panels: Mapping[str, pd.DataFrame], styles: Mapping[str, Arm]) -> Figure:
    """Plot one panel per quantity on a logarithmic axis, one line per style over model sizes; a gap if a value is missing.

    panels: title with its unit -> one column per style; index: names of the sizes.
    """
    figure, grid = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.6), squeeze=False, layout="constrained")
    entries: dict[str, plt.Line2D] = {}
    for axes, (title, table) in zip(grid[0], panels.items(), strict=True):
        for column in table.columns:
            style = styles[column]
            label, dashes = short(style.label), "--" if "counted" in style.label else "-"
            [line] = axes.plot(table[column].to_numpy(), color=style.colour, marker=style.marker, linestyle=dashes)
            entries.setdefault(label, line)
        axes.set_xticks(range(len(table)), [short(name) for name in table.index])
        axes.set(title=short(title), yscale="log", xlim=(-0.4, len(table) - 0.6))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4)
    return figure


def slopes(trend: pd.DataFrame, xlabel: str) -> Figure:
    """Plot slopes with their intervals, one per row, and zero. trend: columns slope, low, high; index: what is doubled."""
    figure, axes = plt.subplots(figsize=(6.4, 0.5 * len(trend) + 1.0), layout="constrained")
    error = [trend.slope - trend.low, trend.high - trend.slope]
    axes.errorbar(trend.slope, range(len(trend)), xerr=error, color=BLUE, marker="D", linestyle="none", capsize=3)
    axes.axvline(0, color="#777777", linewidth=1)
    axes.set_yticks(range(len(trend)), [short(name) for name in trend.index])
    axes.set(xlabel=xlabel, ylim=(len(trend) - 0.5, -0.5))
    return figure


def clip_map(points: np.ndarray, kinds: Sequence[str], title: str) -> Figure:
    """Plot clips as points `(n, 2)`, one color and marker per kind, the most frequent kinds first."""
    names, codes, counts = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = order if len(order) <= LISTED else order[: LISTED - 1]
    figure, axes = plt.subplots(figsize=(6.0, 5.2))
    entries = []
    for index, kind in enumerate(listed):
        x, y = points[codes == kind].T
        entries.append(axes.scatter(
            x, y, s=38 if len(points) < 300 else 20, color=COLOURS[index % 8],
            marker=MARKERS[(index + index // 8) % 8], alpha=0.85, linewidths=0,
            label=f"{short(names[kind], 36)} ({counts[kind]})",
        ))  # fmt: skip
    others = ~np.isin(codes, listed)
    if others.any():  # below the listed kinds
        label = f"{counted(len(order) - len(listed), 'other')} ({others.sum()})"
        x, y = points[others].T
        entries.append(axes.scatter(x, y, s=14, color="#CCCCCC", marker=".", label=label, zorder=0.9))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.set_xlabel("map axis 1 (no unit)", fontsize=9)
    axes.set_ylabel("map axis 2 (no unit)", fontsize=9)
    axes.margins(0.06)
    if len(order) > 1:
        columns = 1 + (len(listed) > 12)
        _legend_right(axes, short(title), handles=entries, title_fontsize=10, ncols=columns, fontsize=9)
    return figure


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw predictions by class in percent of a row; the most frequent classes if there are many.

    counts: whole numbers `(classes, classes)`, one row per true class.
    """
    kept = np.sort(np.argsort(-counts.sum(1), kind="stable")[:SHOWN])
    kept = kept[counts.sum(1)[kept] > 0]
    cells, totals, names = counts[np.ix_(kept, kept)], counts.sum(1)[kept], [short(names[i], 24) for i in kept]
    percent = 100 * cells / totals[:, None]

    def cell_text(share: float, count: int) -> str:
        text = f"{share:.0f}" if share else ""
        return f"{text}\n({count})" if text and len(kept) <= WITH_COUNTS else text

    side = 0.5 * len(kept) + 1.0
    figure, axes = plt.subplots(figsize=(side + 1.0, side), layout="constrained")
    sns.heatmap(
        percent, ax=axes, annot=np.vectorize(cell_text, otypes=[object])(percent, cells), fmt="", cmap="Greys", vmin=0,
        vmax=100, square=True, linewidths=0.5, linecolor="#DDDDDD", annot_kws={"fontsize": 8}, cbar_kws={"shrink": 0.7},
    )  # fmt: skip
    bar = axes.collections[0].colorbar
    assert bar is not None, "seaborn draws one next to a heatmap"
    bar.set_label("% of the class's predictions", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    rows, middles = [f"{name} ({n})" for name, n in zip(names, totals, strict=True)], np.arange(len(kept)) + 0.5
    axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(middles, rows, rotation=0, fontsize=9)
    axes.tick_params(length=0)
    axes.set_xlabel("prediction", fontsize=10)
    axes.set_ylabel("class (number of predictions)", fontsize=10)
    return figure


# ---------------------------------------------------------------- shared parts


def within_percent(axes: plt.Axes, horizontal: bool = False) -> None:
    """Cut the vertical or horizontal axis to 0 to 100: a t interval over few seeds can exceed what an accuracy can be."""
    low, high = axes.get_xlim() if horizontal else axes.get_ylim()
    (axes.set_xlim if horizontal else axes.set_ylim)(max(0, low), min(100, high))
    for line in axes.lines:
        if line.get_marker() not in ("None", "|", "_"):  # not the caps of error bars
            line.set_clip_on(False)  # draw whole markers at 100%


def _legend_right(axes: plt.Axes, title: str | None = None, **options: Any) -> None:
    axes.legend(title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), **options)


def _errors(table: pd.DataFrame | pd.Series) -> np.ndarray | None:
    """Return the lengths of the error bars below and above the means, `(2, n)`; None if an interval is missing."""
    errors = np.array([table["mean"] - table["low"], table["high"] - table["mean"]]).reshape(2, -1)
    return None if np.isnan(errors).any() else errors


def _chance_line(axes: plt.Axes, chance: float) -> None:
    axes.axhline(chance, color="#BBBBBB", linewidth=1, linestyle=":", label="chance")


def _side_by_side(cost: pd.Series) -> pd.Series:
    """Return horizontal positions: the costs, with equal costs spread apart."""
    gap = 0.025 * max(cost.max() - cost.min(), 0.01 * cost.max())
    rank, count = cost.groupby(cost).cumcount(), cost.groupby(cost).transform("size")
    return cost + gap * (rank - (count - 1) / 2)
