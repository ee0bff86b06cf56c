"""Figures of what a model makes of single clips: a map, who lies next to whom, which classes it mixes up, where it looks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from vmae_lab.lab.plots.labels import short, wrapped
from vmae_lab.lab.plots.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY

COLOURS, MARKERS = (BLUE, ORANGE, GREEN, RED, SKY, PINK, BLACK, GREY), "osD^vP*X"
LISTED = 24  # kinds in a legend; what is beyond them is drawn alike
SHOWN = 25  # classes of a matrix
WITH_COUNTS = 12  # classes up to which its cells also hold counts
QUERIES = 6
WORDS = 120  # characters of what is said of a person
Strip = tuple[np.ndarray, np.ndarray]  # frames of a clip, and what belongs to each


def clip_map(points: np.ndarray, kinds: Sequence[str], title: str) -> Figure:
    """Clips as points `(n, 2)`, a colour and marker a kind, the commonest kinds first."""
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
    if others.any():  # drawn first, below the kinds that are told apart; listed last
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
    if len(order) > 1:
        axes.legend(
            handles, labels, title=short(title), title_fontsize=10, loc="center left", bbox_to_anchor=(1.01, 0.5),
            ncols=1 + (len(listed) > 12), fontsize=9,
        )  # fmt: skip
    return figure


def neighbour_pictures(
    frames: np.ndarray, queries: Sequence[int], neighbours: np.ndarray, names: Sequence[str], labels: np.ndarray | None
) -> Figure:  # fmt: skip
    """Query clips and their nearest ones, a row a query, in pictures `(n, H, W, 3)`; names say what each clip is.

    With labels, a neighbour's frame is blue and its name begins with `=` where its class is the query's, or vermilion and `x`.
    """
    near = neighbours[list(queries)]
    rows, columns = near.shape
    titles = [wrapped(name, 40, 15) for name in names]
    lines = max(title.count("\n") for title in titles)
    widths = [1.0, 0.18, *[1.0] * columns]
    figure, grid = plt.subplots(
        rows, columns + 2, figsize=(1.25 * sum(widths), (1.45 + 0.16 * lines) * rows + 0.3), squeeze=False,
        gridspec_kw={"width_ratios": widths, "wspace": 0.12}, layout="constrained",
    )  # fmt: skip
    for line, query, found in zip(grid, queries, near, strict=True):
        line[1].axis("off")
        _picture(line[0], frames[query], titles[query], BLACK)
        for axes, row in zip(line[2:], found, strict=True):
            sign, colour = "", GREY
            if labels is not None:
                sign, colour = ("= ", BLUE) if labels[row] == labels[query] else ("x ", RED)
            _picture(axes, frames[row], sign + titles[row], colour)
    grid[0, 0].annotate("query", (0, 1), (0, 18 + 11 * lines), "axes fraction", "offset points", fontsize=9, weight="bold")
    grid[0, 2].annotate(
        "nearest clips →", (0, 1), (0, 18 + 11 * lines), "axes fraction", "offset points", fontsize=9, weight="bold"
    )
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


def attention_strips(strips: Mapping[str, Strip]) -> Figure:
    """Clips, each a row of frames uint8 `(T', H, W, 3)` and below it the share of each token `(T', h, w)`, on one scale."""
    columns = max(len(frames) for frames, _ in strips.values())
    figure, grid = plt.subplots(
        2 * len(strips), columns, figsize=(1.25 * columns + 2.6, 2.5 * len(strips)), squeeze=False, layout="constrained"
    )
    most = max(float(shares.max()) for _, shares in strips.values())
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for place, (name, (frames, shares)) in enumerate(strips.items()):
        upper, lower = grid[2 * place], grid[2 * place + 1]
        for frame, share, above, below in zip(frames, shares, upper, lower, strict=True):
            above.imshow(frame, interpolation="nearest")
            drawn = below.imshow(share, cmap="cividis", vmin=0, vmax=most)
        for axes, label in ((upper[0], short(name)), (lower[0], "attention")):
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    bar = figure.colorbar(drawn, ax=grid, shrink=0.6)
    bar.set_label("share of attention (1: all tokens equal)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


@dataclass(frozen=True)
class Scene:
    """A key frame with people: frames uint8 `(T', H, W, 3)`, which of them is the key frame, boxes `(n, 4)` in [0, 1] of those
    who are there and of those a detector saw, and lines of words, of the first and of the second.
    """

    frames: np.ndarray
    key: int
    true: np.ndarray
    seen: np.ndarray
    said_of_true: Sequence[str]
    said_of_seen: Sequence[str]


def scene_strips(scenes: Sequence[Scene]) -> Figure:
    """A scene a row: its frames, the key frame with boxes (true ones in numbers, seen ones in letters), and the words."""
    columns = len(scenes[0].frames)
    widths = [*[1.0] * columns, 2.0, 3.2]
    heights = [max(2.0, 0.24 * (2 + len(one.said_of_true) + len(one.said_of_seen))) for one in scenes]
    figure, grid = plt.subplots(
        len(scenes), columns + 2, figsize=(sum(widths), sum(heights) + 0.3), squeeze=False,
        gridspec_kw={"width_ratios": widths, "height_ratios": heights, "wspace": 0.08, "hspace": 0.12},
    )  # fmt: skip
    for line, scene in zip(grid, scenes, strict=True):
        for place, frame in enumerate(scene.frames):
            _picture(line[place], frame, "key frame" if place == scene.key else "", BLACK if place == scene.key else GREY)
        _picture(line[-2], scene.frames[scene.key], "", BLACK)
        _boxes(line[-2], scene.true, SKY, "-", number_of, ("left", "top"))
        _boxes(line[-2], scene.seen, ORANGE, "--", letter_of, ("right", "bottom"))
        line[-1].axis("off")
        truth = [f"{number_of(place)}  {short(words, WORDS)}" for place, words in enumerate(scene.said_of_true)]
        seen = [f"{letter_of(place)}  {short(words, WORDS)}" for place, words in enumerate(scene.said_of_seen)]
        words = ["there (solid):", *truth, "said (dashed):", *(seen or ["nobody seen"])]
        line[-1].text(0.02, 1.0, "\n".join(words), va="top", ha="left", fontsize=9, transform=line[-1].transAxes)
    return figure


def number_of(place: int) -> str:
    """1, 2, 3, …"""
    return str(place + 1)


def letter_of(place: int) -> str:
    """a, b, …, z, aa, ab, …: as columns of a spreadsheet."""
    before, last = divmod(place, 26)
    return (letter_of(before - 1) if before else "") + chr(ord("a") + last)


def _boxes(
    axes: plt.Axes, boxes: np.ndarray, colour: str, dashes: str, sign: Callable[[int], str], corner: tuple[str, str]
) -> None:  # fmt: skip
    """Boxes in [0, 1] over a picture, each with its sign in a corner: left or right, top or bottom."""
    (right, low), outside = axes.get_xlim()[1:] + axes.get_ylim()[:1], 0.5
    size = np.array([right + outside, low + outside] * 2)
    for place, box in enumerate(boxes):
        x1, y1, x2, y2 = box * size - outside
        axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=dashes, linewidth=1.8))
        axes.text(
            x1 if corner[0] == "left" else x2, y1 if corner[1] == "top" else y2, sign(place), color=BLACK, fontsize=8,
            ha=corner[0], va=corner[1],
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip


def _picture(axes: plt.Axes, frame: np.ndarray, title: str, colour: str) -> None:
    axes.imshow(frame, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8, color=colour, pad=3)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
