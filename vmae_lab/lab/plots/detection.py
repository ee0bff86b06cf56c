"""Figures of detections: boxes and labels on key frames, segments along videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vmae_lab.lab.plots.clip_pictures import show_picture
from vmae_lab.lab.plots.style import BLACK, COLOURS, GREY, ORANGE, SKY
from vmae_lab.lab.plots.text import short

LABEL_LENGTH = 120  # characters of the labels of a person
WRONG_OPACITY = 0.35  # of a wrong segment


@dataclass(frozen=True)
class Scene:
    """A key frame with people.

    frames: uint8 `(T', H, W, 3)`, of which `key` is the key frame; true_boxes, predicted_boxes: `(n, 4)` in [0, 1];
    true_labels, predicted_labels: one text per box.
    """

    frames: np.ndarray
    key: int
    true_boxes: np.ndarray
    predicted_boxes: np.ndarray
    true_labels: Sequence[str]
    predicted_labels: Sequence[str]


def scene_strips(scenes: Sequence[Scene]) -> Figure:
    """Show one row per scene: its frames, the key frame with boxes (true: numbers, predicted: letters), and the labels."""
    columns = len(scenes[0].frames)
    widths = [*[1.0] * columns, 2.0, 3.2]
    heights = [max(2.0, 0.24 * (2 + len(scene.true_labels) + len(scene.predicted_labels))) for scene in scenes]
    figure, grid = plt.subplots(
        len(scenes), columns + 2, figsize=(sum(widths), sum(heights) + 0.3), squeeze=False,
        gridspec_kw={"width_ratios": widths, "height_ratios": heights, "wspace": 0.08, "hspace": 0.12},
    )  # fmt: skip
    for row, scene in zip(grid, scenes, strict=True):
        for index, frame in enumerate(scene.frames):
            title, colour = ("key frame", BLACK) if index == scene.key else ("", GREY)
            show_picture(row[index], frame, title, colour)
        show_picture(row[-2], scene.frames[scene.key], "", BLACK)
        _boxes(row[-2], scene.true_boxes, SKY, "-", number_of, ("left", "top"))
        _boxes(row[-2], scene.predicted_boxes, ORANGE, "--", letter_of, ("right", "bottom"))
        row[-1].axis("off")
        true = [f"{number_of(i)}  {short(label, LABEL_LENGTH)}" for i, label in enumerate(scene.true_labels)]
        predicted = [f"{letter_of(i)}  {short(label, LABEL_LENGTH)}" for i, label in enumerate(scene.predicted_labels)]
        lines = ["true (solid):", *true, "predicted (dashed):", *(predicted or ["nobody detected"])]
        row[-1].text(0.02, 1.0, "\n".join(lines), va="top", ha="left", fontsize=9, transform=row[-1].transAxes)
    return figure


def number_of(index: int) -> str:
    """Return the name of a true box: 1, 2, 3, …"""
    return str(index + 1)


def letter_of(index: int) -> str:
    """Return the name of a predicted box: a, b, …, z, aa, ab, …, like the columns of a spreadsheet."""
    before, last = divmod(index, 26)
    return (letter_of(before - 1) if before else "") + chr(ord("a") + last)


def _boxes(
    axes: plt.Axes, boxes: np.ndarray, colour: str, dashes: str, name_of: Callable[[int], str], corner: tuple[str, str]
) -> None:
    """Draw boxes in [0, 1] over a picture, each with its name in a corner (left or right, top or bottom)."""
    (right, bottom), half_pixel = axes.get_xlim()[1:] + axes.get_ylim()[:1], 0.5
    size = np.array([right + half_pixel, bottom + half_pixel] * 2)
    for index, box in enumerate(boxes):
        x1, y1, x2, y2 = box * size - half_pixel
        axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=dashes, linewidth=1.8))
        axes.text(
            x1 if corner[0] == "left" else x2, y1 if corner[1] == "top" else y2, name_of(index), color=BLACK, fontsize=8,
            ha=corner[0], va=corner[1], bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip


@dataclass(frozen=True)
class Timeline:
    """A video: its name, its duration in seconds, and lanes of segments, of which the first is the truth.

    lanes: name -> columns start, end (seconds), label, right (bool: the segment is correct).
    """

    video: str
    duration: float
    lanes: Mapping[str, pd.DataFrame]


def timelines(videos: Sequence[Timeline], classes: Sequence[str]) -> Figure:
    """Show one panel per video, one lane per arm: segments in the color of their class; wrong ones are pale and hatched.

    Segments also have the number of their class, so that no class is identified by its color alone.
    """
    lanes = list(videos[0].lanes)
    size = (9.6, (0.34 * len(lanes) + 0.75) * len(videos) + 0.7)
    figure, panels = plt.subplots(len(videos), 1, figsize=size, squeeze=False, layout="constrained")
    for axes, video in zip(panels[:, 0], videos, strict=True):
        for lane, name in enumerate(lanes):
            _lane(axes, video.lanes[name], lane, classes, video.duration)
        axes.set(xlim=(0, video.duration), ylim=(len(lanes) - 0.4, -0.6))
        axes.set_yticks(range(len(lanes)), [short(name) for name in lanes], fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.set_title(short(video.video, 60), fontsize=9, loc="left", pad=3)
        axes.spines["left"].set_visible(False)
    panels[-1, 0].set_xlabel("time, s", fontsize=10)
    keys = [Patch(facecolor=_colour(code), label=f"{code + 1}  {short(name, 30)}") for code, name in enumerate(classes)]
    keys.append(Patch(facecolor="#CCCCCC", edgecolor="white", hatch="////", label="wrong"))
    figure.legend(handles=keys, loc="outside upper center", ncols=min(5, len(keys)), fontsize=9)
    return figure


def _lane(axes: plt.Axes, segments: pd.DataFrame, lane: int, classes: Sequence[str], duration: float) -> None:
    for row in segments.itertuples():
        code, length = list(classes).index(row.label), row.end - row.start
        axes.barh(
            lane, length, left=row.start, height=0.8, color=_colour(code), alpha=1.0 if row.right else WRONG_OPACITY,
            hatch="" if row.right else "////", edgecolor="white", linewidth=0.8,
        )  # fmt: skip
        if length > 0.015 * duration:
            axes.text(
                row.start + length / 2, lane, str(code + 1), ha="center", va="center", fontsize=8, weight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )  # fmt: skip


def _colour(code: int) -> str:
    return COLOURS[code % len(COLOURS)]
