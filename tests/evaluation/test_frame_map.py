"""Frame mAP, compared with the official evaluation and with values computed by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vmae_lab.data.ava import COLUMNS, KEY, read_detections, read_excluded, read_ground_truth, read_label_map
from vmae_lab.evaluation.average_precision import average_precision
from vmae_lab.evaluation.frame_map import frame_map

REFERENCES = Path(__file__).parents[3] / "shared" / "eval_refs" / "ava"
CASES = sorted(REFERENCES.glob("[0-9]*")) if REFERENCES.is_dir() else []
needs_references = pytest.mark.skipif(not CASES, reason="no known answers: ../shared/eval_refs is not part of a clone")


@needs_references
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_result_equals_avas_script(case):
    expected = json.loads((case / "expected.json").read_text())
    actions = read_label_map(REFERENCES / "labelmap_60.pbtxt")
    truth = read_ground_truth(case / "gt.csv")
    excluded = pd.MultiIndex.from_frame(read_excluded(case / "excluded.csv"))
    truth = truth[~pd.MultiIndex.from_frame(truth[KEY]).isin(excluded)]  # as `open_scenes` does
    found = frame_map(truth, read_detections(case / "det.csv"), actions)
    if "ties" in case.name:  # the script's order of equal scores is accidental; every order gives a value in this interval
        bound = expected["tie_interval_all_rows"]
        assert bound["lo"] <= found.mean <= bound["hi"]
        return
    assert found.mean == pytest.approx(expected["activitynet"]["mAP"], abs=1e-6)
    names = {name: action for action, name in actions.items()}
    for name, value in expected["activitynet"]["per_class_AP"].items():
        ours = found.per_class[names[name]]
        assert np.isnan(ours) if value is None else ours == pytest.approx(value, abs=1e-6), name


ACTIONS = {1: "walk", 2: "run"}


def truth_of(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS).assign(person_id=-1)


def detections_of(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS, "score"])


def test_average_precision_counted_by_hand():
    """Right, wrong, right, of three: recall 1/3 at precision 1, recall 2/3 at precision 2/3."""
    assert average_precision(np.array([True, False, True]), 3) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision(np.zeros(0, bool), 2) == 0.0
    assert np.isnan(average_precision(np.array([False]), 0))


def test_the_order_of_the_file_does_not_matter():
    truth = truth_of(("a", 1.0, 0.1, 0.1, 0.5, 0.5, 1), ("a", 1.0, 0.6, 0.1, 0.9, 0.5, 2), ("b", 1.0, 0.1, 0.1, 0.5, 0.5, 1))
    rows = [
        ("a", 1.0, 0.1, 0.1, 0.5, 0.5, 1, 0.3),
        ("a", 1.0, 0.6, 0.1, 0.9, 0.5, 1, 0.9),
        ("b", 1.0, 0.1, 0.1, 0.5, 0.5, 1, 0.8),
    ]
    found = [frame_map(truth, detections_of(*part), ACTIONS).per_class for part in (rows, rows[::-1])]
    assert found[0] == found[1] == {1: pytest.approx(2 / 3), 2: 0.0}


def test_key_frames_are_compared_in_microseconds():
    """Also in tables that were not read from a file: 4/3 s, rounded in one of them."""
    truth, exact = truth_of(("a", 1.333333, 0.1, 0.1, 0.5, 0.5, 1)), ("a", 4 / 3, 0.1, 0.1, 0.5, 0.5, 1)
    assert frame_map(truth, detections_of((*exact, 0.5)), ACTIONS).mean == 1.0


def test_sizes_are_evaluated_separately():
    """A large person is found, a small one missed. A wrong small box does not count against the large one."""
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.9, 0.9, 1), ("a", 1.0, 0.9, 0.9, 1.0, 1.0, 1))
    rows = detections_of(("a", 1.0, 0.0, 0.0, 0.9, 0.9, 1, 0.5), ("a", 1.0, 0.0, 0.9, 0.1, 1.0, 1, 0.9))
    found = frame_map(truth, rows, ACTIONS)
    assert found.by_size["large"] == 1.0
    assert found.by_size["small"] == 0.0
    assert np.isnan(found.by_size["medium"])
    assert found.mean == pytest.approx(0.25)


def test_an_iou_of_one_half_is_enough():
    """An IoU of exactly 0.5 counts, also with numbers that float32 would round down. Slightly less does not."""
    truth, half = truth_of(("a", 1.0, 0.0, 0.0, 0.9, 0.3, 1)), ("a", 1.0, 0.0, 0.0, 0.9, 0.15, 1)
    assert frame_map(truth, detections_of((*half, 0.5)), ACTIONS).mean == 1.0
    assert frame_map(truth, detections_of(("a", 1.0, 0.0, 0.0, 0.9, 0.149, 1, 0.5)), ACTIONS).mean == 0.0


def test_a_detection_cannot_match_its_second_best_box():
    """Both detections overlap most with the first box. The second one also overlaps with the other box, but stays wrong."""
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.4, 0.4, 1), ("a", 1.0, 0.1, 0.0, 0.5, 0.4, 1))
    rows = detections_of(("a", 1.0, 0.0, 0.0, 0.4, 0.4, 1, 0.9), ("a", 1.0, 0.02, 0.0, 0.42, 0.4, 1, 0.8))
    assert frame_map(truth, rows, ACTIONS).per_class[1] == 0.5


@pytest.mark.parametrize(("before", "found"), [(49, 1.0), (50, 0.0)])
def test_the_fifty_best_rows_of_a_frame_count(before, found):
    """The limit counts rows of all classes together."""
    truth, right = truth_of(("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1)), ("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1, 0.1)
    rows = detections_of(*[("a", 1.0, 0.5, 0.5, 0.9, 0.9, 2, 0.9)] * before, right)
    assert frame_map(truth, rows, ACTIONS).per_class[1] == found


def test_frames_without_ground_truth_are_skipped():
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1))
    rows = detections_of(("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1, 0.1), ("a", 2.0, 0.0, 0.0, 0.5, 0.5, 1, 0.9))
    assert frame_map(truth, rows, ACTIONS).mean == 1.0


def test_a_correct_detection_counts_for_the_size_of_its_box():
    """A small detection (0.04 of the frame) of a medium box (0.06) counts as medium."""
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.3, 0.2, 1), ("a", 1.0, 0.5, 0.5, 0.6, 0.6, 1))
    rows = detections_of(("a", 1.0, 0.0, 0.0, 0.2, 0.2, 1, 0.9), ("a", 1.0, 0.5, 0.5, 0.6, 0.6, 1, 0.8))
    found = frame_map(truth, rows, ACTIONS).by_size
    assert (found["small"], found["medium"]) == (1.0, 1.0)


def test_no_ground_truth_gives_nan():
    assert np.isnan(frame_map(truth_of(), detections_of(), ACTIONS).mean)
