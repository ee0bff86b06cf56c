"""Frame mAP of AVA: who does what, where, in key frames (Gu et al., section 5), as ActivityNet's script has it.

A detection is right where it overlaps by .5 or more with the box of its own class that it overlaps most with, and no better
scored one had that box before: there is no second choice. Average precision is the area below the precision's envelope.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from vmae_lab.data.ava import CORNERS, KEY, keyed
from vmae_lab.evaluation.metrics import average_precision

OVERLAP = 0.5
MOST_A_FRAME = 50  # rows, all classes together, that ActivityNet's script reads
# Parts of the frame's area that a box covers; ours, since AVA names none.
SIZES = {"small": (0.0, 0.05), "medium": (0.05, 0.2), "large": (0.2, np.inf)}
Protocol = Literal["activitynet", "all"]


@dataclass(frozen=True)
class FrameMap:
    """Average precision by class number, NaN where no ground truth is; their mean; and the means by size of box."""

    per_class: dict[int, float]
    by_size: dict[str, float]

    @property
    def mean(self) -> float:
        """mAP over the classes that have ground truth; NaN where none has."""
        return _mean(self.per_class)


def frame_map(
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    actions: Mapping[int, str],
    excluded: pd.DataFrame | None = None,
    protocol: Protocol = "activitynet",
) -> FrameMap:
    """Judge detections (`data.boxes.read_detections`) by ground truth (`read_ground_truth`) over the classes `actions`.

    Rows of other classes, of `excluded` key frames, and boxes without area are left out. `activitynet`, AVA's own script, reads
    the 50 best rows of a frame and passes over frames that have no ground truth; `all` counts every row, as AlphAction does;
    SlowFast does too where a file is sorted by score: it matches in the file's order. Equal scores stand in that order here.
    """
    truth, detections = (_counted(rows, actions, excluded) for rows in (truth, detections))
    detections = detections.sort_values("score", ascending=False, kind="stable")
    if protocol == "activitynet":
        detections = detections.merge(truth[KEY].drop_duplicates(), on=KEY)
        detections = detections[detections.groupby(KEY).cumcount() < MOST_A_FRAME]
    truth, detections = (rows[_with_area(rows)].reset_index(drop=True) for rows in (truth, detections))
    judged = _Judged(truth, detections, _matches(truth, detections), tuple(actions))
    return FrameMap(judged.precisions(), {name: _mean(judged.precisions_of_size(*limits)) for name, limits in SIZES.items()})


def _counted(rows: pd.DataFrame, actions: Mapping[int, str], excluded: pd.DataFrame | None) -> pd.DataFrame:
    rows = keyed(rows[rows.action_id.isin(list(actions))])
    if excluded is None or excluded.empty:
        return rows
    return rows[~pd.MultiIndex.from_frame(rows[KEY]).isin(pd.MultiIndex.from_frame(keyed(excluded)[KEY]))]


def _with_area(rows: pd.DataFrame) -> pd.Series:
    return (rows.x2 > rows.x1) & (rows.y2 > rows.y1)


def _matches(truth: pd.DataFrame, detections: pd.DataFrame) -> np.ndarray:
    """For each detection, by descending score, the row of the ground truth that it is right about, or -1: int64 `(n,)`."""
    there = truth.groupby([*KEY, "action_id"]).indices
    matched = np.full(len(detections), -1)
    for key, rows in detections.groupby([*KEY, "action_id"]).indices.items():
        if key not in there:
            continue
        overlap, nearest = box_iou(_boxes(detections.iloc[rows]), _boxes(truth.iloc[there[key]])).max(1)
        taken = set()
        for row, enough, best in zip(rows, (overlap >= OVERLAP).tolist(), nearest.tolist(), strict=True):
            if enough and best not in taken:
                matched[row] = there[key][best]
                taken.add(best)
    return matched


@dataclass(frozen=True)
class _Judged:
    """Ground truth, detections by descending score, what each of those is right about (-1: nothing), and the classes."""

    truth: pd.DataFrame
    detections: pd.DataFrame
    matched: np.ndarray
    actions: tuple[int, ...]

    def precisions(self, wanted: np.ndarray | None = None, counted: np.ndarray | None = None) -> dict[int, float]:
        """Average precision of each class; of part of the ground truth and of the detections, where masks are given."""
        truth = self.truth if wanted is None else self.truth[wanted]
        rows = np.arange(len(self.detections)) if counted is None else np.flatnonzero(counted)
        classes, right = self.detections.action_id.to_numpy()[rows], self.matched[rows] >= 0
        positives = truth.action_id.value_counts()
        return {one: average_precision(right[classes == one], int(positives.get(one, 0))) for one in self.actions}

    def precisions_of_size(self, low: float, high: float) -> dict[int, float]:
        """The same of boxes that cover a part of the frame in [low, high). As COCO has it, detections that are right about
        boxes of another size do not count, nor do wrong ones of another size."""
        wanted, sized = ((area >= low) & (area < high) for area in map(_area, (self.truth, self.detections)))
        found = self.matched >= 0
        counted = np.where(found, False, sized)
        counted[found] = wanted[self.matched[found]]
        return self.precisions(wanted, counted)


def _boxes(rows: pd.DataFrame) -> torch.Tensor:
    """Corners `(n, 4)`, in float64, by which an overlap of exactly .5 is that."""
    return torch.tensor(rows[CORNERS].to_numpy(float))


def _area(rows: pd.DataFrame) -> np.ndarray:
    return ((rows.x2 - rows.x1) * (rows.y2 - rows.y1)).to_numpy()


def _mean(values: Mapping[int, float]) -> float:
    there = [value for value in values.values() if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")
