"""Figures of long videos: what happens when, and what was said of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vmae_lab.lab.plots.labels import short
from vmae_lab.lab.plots.maps import COLOURS

UNSURE = 0.35  # how strongly a wrong segment is painted


@dataclass(frozen=True)
class Timeline:
    """One video: its name, length in seconds, and lanes of segments. The first lane is the truth.

    A lane's columns: start, end (seconds), label, and right (bool).
    """

    video: str
    duration: float
    lanes: Mapping[str, pd.DataFrame]


def timelines(videos: Sequence[Timeline], classes: Sequence[str]) -> Figure:
    """A panel a video, a lane an arm: segments in the colour and with the number of their class; wrong ones pale and hatched.

    Numbers are those of the legend, so that no class is told by its colour alone.
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
