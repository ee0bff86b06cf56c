"""Figures of detections: boxes and labels on key frames, segments along videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vmae_lab.lab.plots.clip_pictures import show_picture
from vmae_lab.lab.plots.style import BLACK, COLOURS, GREY, ORANGE, SKY
from vmae_lab.lab.plots.text import short

WORDS = 120  # characters of a person's labels
UNSURE = 0.35  # opacity of a wrong segment


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
    """One row per scene: its frames, the key frame with boxes (true ones numbered, predicted ones lettered), and the labels."""
    columns = len(scenes[0].frames)
    widths = [*[1.0] * columns, 2.0, 3.2]
    heights = [max(2.0, 0.24 * (2 + len(one.said_of_true) + len(one.said_of_seen))) for one in scenes]
    figure, grid = plt.subplots(
        len(scenes), columns + 2, figsize=(sum(widths), sum(heights) + 0.3), squeeze=False,
        gridspec_kw={"width_ratios": widths, "height_ratios": heights, "wspace": 0.08, "hspace": 0.12},
    )  # fmt: skip
    for line, scene in zip(grid, scenes, strict=True):
        for place, frame in enumerate(scene.frames):
            show_picture(line[place], frame, "key frame" if place == scene.key else "", BLACK if place == scene.key else GREY)
        show_picture(line[-2], scene.frames[scene.key], "", BLACK)
        _boxes(line[-2], scene.true, SKY, "-", number_of, ("left", "top"))
        _boxes(line[-2], scene.seen, ORANGE, "--", letter_of, ("right", "bottom"))
        line[-1].axis("off")
        truth = [f"{number_of(place)}  {short(words, WORDS)}" for place, words in enumerate(scene.said_of_true)]
        seen = [f"{letter_of(place)}  {short(words, WORDS)}" for place, words in enumerate(scene.said_of_seen)]
        words = ["true (solid):", *truth, "predicted (dashed):", *(seen or ["nobody detected"])]
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


@dataclass(frozen=True)
class Timeline:
    """One video: its name, length in seconds, and lanes of segments. The first lane is the truth.

    A lane's columns: start, end (seconds), label, and right (bool).
    """

    video: str
    duration: float
    lanes: Mapping[str, pd.DataFrame]


def timelines(videos: Sequence[Timeline], classes: Sequence[str]) -> Figure:
    """One panel per video, one lane per arm: segments with the colour and number of their class; wrong ones pale, hatched.

    The legend has the numbers, so that no class is identified by its colour alone.
    """
    lanes = list(videos[0].lanes)
    height = 0.34 * len(lanes) + 0.75
    figure, panels = plt.subplots(
        len(videos), 1, figsize=(9.6, height * len(videos) + 0.7), squeeze=False, layout="constrained"
    )
    for axes, one in zip(panels[:, 0], videos, strict=True):
        for lane, name in enumerate(lanes):
            _lane(axes, one.lanes[name], lane, classes, one.duration)
        axes.set(xlim=(0, one.duration), ylim=(len(lanes) - 0.4, -0.6))
        axes.set_yticks(range(len(lanes)), [short(name) for name in lanes], fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.set_title(short(one.video, 60), fontsize=9, loc="left", pad=3)
        sns.despine(ax=axes, left=True)
    panels[-1, 0].set_xlabel("time, s", fontsize=10)
    keys = [Patch(facecolor=_colour(code), label=f"{code + 1}  {short(name, 30)}") for code, name in enumerate(classes)]
    keys.append(Patch(facecolor="#CCCCCC", edgecolor="white", hatch="////", label="wrong"))
    figure.legend(handles=keys, loc="outside upper center", ncols=min(5, len(keys)), fontsize=9)
    return figure


def _lane(axes: plt.Axes, segments: pd.DataFrame, lane: int, classes: Sequence[str], duration: float) -> None:
    for row in segments.itertuples():
        code, length = list(classes).index(row.label), row.end - row.start
        axes.barh(
            lane, length, left=row.start, height=0.8, color=_colour(code), alpha=1.0 if row.right else UNSURE,
            hatch="" if row.right else "////", edgecolor="white", linewidth=0.8,
        )  # fmt: skip
        if length > 0.015 * duration:
            axes.text(
                row.start + length / 2, lane, str(code + 1), ha="center", va="center", fontsize=8, weight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )  # fmt: skip


def _colour(code: int) -> str:
    return COLOURS[code % len(COLOURS)]
