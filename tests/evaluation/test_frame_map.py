"""Frame mAP: equal to the official evaluators' numbers, and to what can be counted by hand."""

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


def said(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMNS, "score"])


def test_average_precision_counted_by_hand():
    """Right, wrong, right of three: recall 1/3 at precision 1, 2/3 at 2/3."""
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
    found = [frame_map(truth, said(*some), ACTIONS).per_class for some in (rows, rows[::-1])]
    assert found[0] == found[1] == {1: pytest.approx(2 / 3), 2: 0.0}


def test_key_frames_are_the_same_to_the_microsecond():
    """Also in tables that no file has been: 4/3 of a second, rounded on one side."""
    truth, exact = truth_of(("a", 1.333333, 0.1, 0.1, 0.5, 0.5, 1)), ("a", 4 / 3, 0.1, 0.1, 0.5, 0.5, 1)
    assert frame_map(truth, said((*exact, 0.5)), ACTIONS).mean == 1.0


def test_sizes_are_judged_apart():
    """A large person found, a small one missed, and a wrong small box, which does not count against the large one."""
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.9, 0.9, 1), ("a", 1.0, 0.9, 0.9, 1.0, 1.0, 1))
    rows = said(("a", 1.0, 0.0, 0.0, 0.9, 0.9, 1, 0.5), ("a", 1.0, 0.0, 0.9, 0.1, 1.0, 1, 0.9))
    found = frame_map(truth, rows, ACTIONS)
    assert found.by_size["large"] == 1.0
    assert found.by_size["small"] == 0.0
    assert np.isnan(found.by_size["medium"])
    assert found.mean == pytest.approx(0.25)


def test_half_an_overlap_is_enough():
    """Exactly half, of numbers that float32 would put below it; a little less is not."""
    truth, half = truth_of(("a", 1.0, 0.0, 0.0, 0.9, 0.3, 1)), ("a", 1.0, 0.0, 0.0, 0.9, 0.15, 1)
    assert frame_map(truth, said((*half, 0.5)), ACTIONS).mean == 1.0
    assert frame_map(truth, said(("a", 1.0, 0.0, 0.0, 0.9, 0.149, 1, 0.5)), ACTIONS).mean == 0.0


def test_there_is_no_second_choice():
    """Both detections overlap most with the first box, the second with the other one by half as well: it stays wrong."""
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.4, 0.4, 1), ("a", 1.0, 0.1, 0.0, 0.5, 0.4, 1))
    rows = said(("a", 1.0, 0.0, 0.0, 0.4, 0.4, 1, 0.9), ("a", 1.0, 0.02, 0.0, 0.42, 0.4, 1, 0.8))
    assert frame_map(truth, rows, ACTIONS).per_class[1] == 0.5


@pytest.mark.parametrize(("before", "found"), [(49, 1.0), (50, 0.0)])
def test_fifty_rows_of_a_frame_are_read(before, found):
    """The limit counts rows of all classes together."""
    truth, right = truth_of(("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1)), ("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1, 0.1)
    rows = said(*[("a", 1.0, 0.5, 0.5, 0.9, 0.9, 2, 0.9)] * before, right)
    assert frame_map(truth, rows, ACTIONS).per_class[1] == found


def test_frames_without_ground_truth_are_skipped():
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1))
    rows = said(("a", 1.0, 0.0, 0.0, 0.5, 0.5, 1, 0.1), ("a", 2.0, 0.0, 0.0, 0.5, 0.5, 1, 0.9))
    assert frame_map(truth, rows, ACTIONS).mean == 1.0


def test_what_is_right_counts_at_the_size_of_its_box():
    """A small detection of a medium box (.06 of the frame, the detection .04 of it) is one of the medium ones."""
    truth = truth_of(("a", 1.0, 0.0, 0.0, 0.3, 0.2, 1), ("a", 1.0, 0.5, 0.5, 0.6, 0.6, 1))
    rows = said(("a", 1.0, 0.0, 0.0, 0.2, 0.2, 1, 0.9), ("a", 1.0, 0.5, 0.5, 0.6, 0.6, 1, 0.8))
    found = frame_map(truth, rows, ACTIONS).by_size
    assert (found["small"], found["medium"]) == (1.0, 1.0)


def test_nothing_to_judge_is_no_number():
    assert np.isnan(frame_map(truth_of(), said(), ACTIONS).mean)
