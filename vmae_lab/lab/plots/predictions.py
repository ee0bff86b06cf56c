"""Figures of predictions along a video."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vmae_lab.evaluation.predict import Timeline
from vmae_lab.lab.plots.style import COLOURS, PRINTED
from vmae_lab.lab.plots.text import short
from vmae_lab.utils.counts import counted

CLASSES = 6  # shown by name: the most frequent ones
OTHERS = "#CCCCCC"


def timeline(predicted: Timeline, title: str) -> Figure:
    """Plot probabilities along a video, one line per class, and below them a band of the most probable class.

    Classes are those that are the most probable in some window; of more than six, the most frequent ones, and the others are
    gray in the band.
    """
    top = predicted.probabilities.argmax(1)
    labels, counts = np.unique(top, return_counts=True)
    shown = labels[np.argsort(-counts, kind="stable")][:CLASSES].tolist()
    middle = (predicted.start_s + predicted.end_s) / 2
    figure, (lines, band) = plt.subplots(
        2, 1, figsize=(9.6, 3.9), sharex=True, height_ratios=(5, 1), layout="constrained"
    )  # fmt: skip
    for label, colour in zip(shown, COLOURS, strict=False):
        lines.plot(middle, predicted.probabilities[:, label], color=colour, linestyle=PRINTED[colour][0], marker=".")
    edges = [predicted.start_s[0], *((middle[1:] + middle[:-1]) / 2), predicted.end_s[-1]]
    for start, end, label in zip(edges[:-1], edges[1:], top.tolist(), strict=True):
        known = label in shown
        colour = COLOURS[shown.index(label)] if known else OTHERS
        band.axvspan(start, end, facecolor=colour, hatch=PRINTED[colour][1] if known else "", edgecolor="white", linewidth=0)
    lines.set(ylabel="probability", ylim=(0, 1.02), xlim=(edges[0], edges[-1]))
    lines.set_title(short(title, 80), fontsize=9, loc="left")
    band.set(xlabel="time, s", yticks=[])
    band.set_ylabel("top class", rotation=0, ha="right", va="center", fontsize=9)
    keys = [
        Patch(facecolor=colour, hatch=PRINTED[colour][1], edgecolor="white", label=short(predicted.classes[label], 32))
        for label, colour in zip(shown, COLOURS, strict=False)
    ]
    keys += [Patch(facecolor=OTHERS, label=f"{counted(len(labels) - CLASSES, 'other class')}")] if len(labels) > CLASSES else []
    figure.legend(
        handles=keys, loc="outside lower center", ncols=min(3, len(keys)), fontsize=9, title="class", title_fontsize=9
    )
    sns.despine(figure)
    return figure
