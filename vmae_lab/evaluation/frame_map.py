"""Frame mAP of AVA: actions and boxes in key frames (Gu et al., section 5), as in ActivityNet's script.

A detection is compared with the box of its class that it overlaps most. It is correct if their IoU is at least 0.5 and no
detection with a higher score has matched that box. It cannot match another box instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from vmae_lab.data.ava import CORNERS, KEY, keyed
from vmae_lab.evaluation.average_precision import Matches, by_score, match_groups, mean_over_classes

OVERLAP = 0.5
MOST_PER_FRAME = 50  # rows per key frame, of all classes, that ActivityNet's script reads
# Area of a box relative to the frame: minimum (included) and maximum (excluded). Our choice; AVA defines no sizes.
SIZES = {"small": (0.0, 0.05), "medium": (0.05, 0.2), "large": (0.2, np.inf)}


@dataclass(frozen=True)
class FrameMap:
    """Average precision by class number (NaN without ground truth), and means over classes by box size."""

    per_class: dict[int, float]
    by_size: dict[str, float]

    @property
    def mean(self) -> float:
        """mAP over the classes with ground truth, or NaN if there is none."""
        return float(mean_over_classes(self.per_class))


def frame_map(truth: pd.DataFrame, detections: pd.DataFrame, actions: Mapping[int, str]) -> FrameMap:
    """Evaluate detections (`read_detections` of data.ava) against ground truth (`read_ground_truth`) over `actions`.

    As in AVA's own script, only the 50 best rows of a key frame count, and key frames without ground truth are skipped. Rows of
    other classes and boxes without area are skipped, too. Equal scores keep the order of the file.
    """
    truth, detections = (keyed(rows[rows.action_id.isin(list(actions))]) for rows in (truth, detections))
    detections = by_score(detections).merge(truth[KEY].drop_duplicates(), on=KEY)
    detections = detections[detections.groupby(KEY).cumcount() < MOST_PER_FRAME]
    truth, detections = (rows[(rows.x2 > rows.x1) & (rows.y2 > rows.y1)].reset_index(drop=True) for rows in (truth, detections))

    def match(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        overlap, nearest = box_iou(_boxes(detections.iloc[rows]), _boxes(truth.iloc[targets])).max(1)
        matched, taken = np.full((1, len(rows)), -1), set()
        for row, (enough, best) in enumerate(zip((overlap >= OVERLAP).tolist(), nearest.tolist(), strict=True)):
            if enough and best not in taken:
                matched[0, row] = best
                taken.add(best)
        return matched

    matched = match_groups(truth, detections, [*KEY, "action_id"], 1, match)
    matches = Matches(truth.action_id, detections.action_id, matched, tuple(actions))
    by_size = {}
    for name, (low, high) in SIZES.items():
        wanted, inside = ((area >= low) & (area < high) for area in (_area(truth), _area(detections)))
        by_size[name] = float(mean_over_classes(_only(matches.per_class_of(wanted, inside))))
    return FrameMap(_only(matches.per_class()), by_size)


def _only(per_class: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Return the values at the single threshold."""
    return {action: float(values[0]) for action, values in per_class.items()}


def _boxes(rows: pd.DataFrame) -> torch.Tensor:
    """Return corners `(n, 4)`, float64, so that an IoU of exactly 0.5 is computed exactly."""
    return torch.tensor(rows[CORNERS].to_numpy(float))


def _area(rows: pd.DataFrame) -> np.ndarray:
    return ((rows.x2 - rows.x1) * (rows.y2 - rows.y1)).to_numpy()
