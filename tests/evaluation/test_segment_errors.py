"""Kinds of errors: a case for each kind, and their sum."""

import json
from pathlib import Path

import pandas as pd
import pytest

from vmae_lab.data.activitynet import PREDICTIONS, SEGMENTS, read_annotations, read_predictions
from vmae_lab.evaluation.temporal_map import KINDS, error_kinds

REFERENCES = Path(__file__).parents[3] / "shared" / "eval_refs" / "tad"
CASES = sorted(REFERENCES.glob("[0-9]*")) if REFERENCES.is_dir() else []
needs_references = pytest.mark.skipif(not CASES, reason="no official cases: ../shared/eval_refs is not part of a clone")

# Two distant segments per class, so that two predictions per class are examined.
TRUTH = pd.DataFrame(
    [("a", 0, 10, "run"), ("a", 100, 110, "run"), ("a", 200, 210, "jump"), ("b", 0, 10, "jump")], columns=SEGMENTS
)


def predictions_of(*rows) -> pd.DataFrame:
    """Return predictions from rows of video, start, end and score (class `run`)."""
    return pd.DataFrame([(*row[:3], "run", row[3]) for row in rows], columns=PREDICTIONS)


def kinds(predictions: pd.DataFrame, truth: pd.DataFrame = TRUTH, **limits) -> dict[str, int]:
    return {kind: count for kind, count in error_kinds(truth, predictions, **limits).counts.items() if count}


@pytest.mark.parametrize(
    ("video", "start", "end", "kind"),
    [
        ("a", 100, 110, "right"),
        ("a", 0, 5, "double"),  # half of the segment that the first prediction matched
        ("a", 0, 4, "localisation"),
        ("a", 109, 120, "background"),  # IoU 1/20
        ("a", 108, 118, "localisation"),  # IoU 2/18
        ("a", 205, 210, "confusion"),
        ("b", 0, 20, "confusion"),
        ("b", 6, 10, "both"),
        ("b", 9, 29, "background"),
        ("a", 210, 220, "background"),
        ("c", 0, 10, "background"),
        ("a", 110, 100, "background"),  # ends before it starts
    ],
)
def test_a_prediction_has_one_kind(video, start, end, kind):
    """Each kind after a correct prediction with a higher score. Exactly at a limit, it is the better kind."""
    found = error_kinds(TRUTH, predictions_of(("a", 0, 10, 0.9), (video, start, end, 0.8)))
    assert found.total == 2
    assert found.missed == len(TRUTH) - found.counts["right"]
    counts = dict.fromkeys(KINDS, 0) | {"right": 1}
    counts[kind] += 1
    assert found.counts == counts


def test_the_background_limit_belongs_to_localisation():
    assert kinds(predictions_of(("a", 0, 1, 0.5))) == {"localisation": 1}
    assert kinds(predictions_of(("a", 0, 1, 0.5)), background=0.11) == {"background": 1}
    assert kinds(predictions_of(("a", 0, 4, 0.5)), threshold=0.4) == {"right": 1}


def test_of_several_kinds_the_first_counts():
    """If two classes overlap in time, a poor overlap with its own class counts before a good one with the other."""
    truth = pd.DataFrame([("a", 0, 10, "run"), ("a", 0, 4, "jump"), ("a", 20, 30, "run")], columns=SEGMENTS)
    assert kinds(predictions_of(("a", 0, 4, 0.5)), truth) == {"localisation": 1}
    assert kinds(predictions_of(("a", 0, 10, 0.9), ("a", 0, 7, 0.5)), truth) == {"right": 1, "double": 1}, (
        "the IoU with jump is 4/7"
    )


def test_a_matched_segment_is_not_a_double_if_another_is_free():
    truth = pd.DataFrame([("a", 0, 10, "run"), ("a", 1, 10, "run")], columns=SEGMENTS)
    assert kinds(predictions_of(("a", 0, 10, 0.9), ("a", 0, 10, 0.8)), truth) == {"right": 2}


def test_as_many_predictions_are_examined_as_there_are_segments():
    """Two for `run`, none for `swim`. Predictions with lower scores are not examined, even if they are right."""
    rows = predictions_of(("c", 0, 1, 0.9), ("c", 2, 3, 0.8), ("a", 0, 10, 0.7))
    more = pd.concat([rows, rows.assign(label="swim"), rows.assign(label="jump")])
    found = error_kinds(TRUTH, more)
    assert found.total == 4
    assert found.counts == dict.fromkeys(KINDS, 0) | {"background": 4}
    assert found.missed == 4
    assert kinds(rows[::-1].assign(score=0.5)) == {"right": 1, "background": 1}, "equal scores keep the order of the file"


def test_no_predictions_and_no_segments():
    nothing = error_kinds(TRUTH, predictions_of())
    assert (nothing.total, nothing.missed) == (0, 4)
    assert list(nothing.counts) == list(KINDS)
    empty = error_kinds(TRUTH[:0], predictions_of(("a", 0, 10, 0.9)))
    assert (empty.total, empty.missed) == (0, 0)


def test_parts_of_a_table_can_be_evaluated():
    """After `subset` or a mask, the index has gaps."""
    rows = predictions_of(("a", 100, 110, 0.9))
    assert error_kinds(TRUTH[1:], rows) == error_kinds(TRUTH[1:].reset_index(drop=True), rows)


@pytest.mark.parametrize(("threshold", "background"), [(0.5, 0), (0.5, 0.5), (1.1, 0.1), (0.1, 0.5)])
def test_limits_out_of_order_are_refused(threshold, background):
    with pytest.raises(ValueError, match="expected 0 < background < threshold <= 1"):
        error_kinds(TRUTH, predictions_of(), threshold, background)


@needs_references
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kinds_add_up(case):
    truth = read_annotations(case / "gt.json").subset("test").segments
    rows = read_predictions(case / "pred.json")
    found = error_kinds(truth, rows)
    counts = truth.label.value_counts()
    looked = sum(min(count, int((rows.label == name).sum())) for name, count in counts.items())
    assert found.total == looked
    assert found.counts["right"] + found.missed == len(truth)
    assert found.counts["right"] > 0 or not len(rows)
    easier = error_kinds(truth, rows, threshold=0.3)
    assert easier.counts["right"] >= found.counts["right"]
    assert easier.counts["localisation"] <= found.counts["localisation"]
    assert json.dumps(found.counts), "plain numbers can be stored as results"
