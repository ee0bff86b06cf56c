"""mAP of segments: equal to the official evaluators' numbers, and to what can be counted by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae_lab.data.activitynet import PREDICTIONS, SEGMENTS, read_annotations, read_predictions, segment_iou
from vmae_lab.evaluation.average_precision import by_score
from vmae_lab.evaluation.temporal_map import segment_map

REFERENCES = Path(__file__).parents[3] / "shared" / "eval_refs" / "tad"
CASES = sorted(REFERENCES.glob("[0-9]*")) if REFERENCES.is_dir() else []
needs_references = pytest.mark.skipif(not CASES, reason="no known answers: ../shared/eval_refs is not part of a clone")


@needs_references
@pytest.mark.parametrize("protocol", ["activitynet", "actionformer"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equal_to_the_official_scripts(case, protocol):
    annotations, said = read_annotations(case / "gt.json"), read_predictions(case / "pred.json")
    thresholds = json.loads((case / "meta.json").read_text())["tiou_thresholds"]
    expected = json.loads((case / "expected.json").read_text())
    found = segment_map(annotations.subset("test").segments, said, annotations.classes, thresholds, protocol)
    if case.name[:2] in ("04", "15"):  # equal scores, whose official order is accidental; what both scripts have wrong
        bound = expected["tie_interval"]
        assert (found.by_threshold >= np.array(bound["lo"]) - 1e-6).all()
        assert (found.by_threshold <= np.array(bound["hi"]) + 1e-6).all()
        return
    assert found.by_threshold == pytest.approx(expected[protocol]["mAP"], abs=1e-6)
    assert found.mean == pytest.approx(expected[protocol]["average_mAP"], abs=1e-6)
    entries = json.loads((case / "gt.json").read_text())["database"].values()
    names = {str(one["label_id"]): one["label"] for entry in entries for one in entry["annotations"]}
    per_class = {names.get(name, name): values for name, values in expected[protocol]["per_class_AP"].items()}
    for name, values in found.per_class.items():
        assert np.isnan(values).all() if name not in per_class else values == pytest.approx(per_class[name], abs=1e-6), name


def truth_of(*rows) -> pd.DataFrame:
    """Rows of a video, start, end and, where it is not `run`, the class."""
    return pd.DataFrame([row if len(row) > 3 else (*row, "run") for row in rows], columns=SEGMENTS)


def said(*rows) -> pd.DataFrame:
    """Rows of a video, start, end, score and, where it is not `run`, the class."""
    rows = [(*row[:3], row[4] if len(row) > 4 else "run", row[3]) for row in rows]
    return pd.DataFrame(rows, columns=PREDICTIONS)


def per_class(truth: pd.DataFrame, predictions: pd.DataFrame, *thresholds: float, **how) -> dict[str, np.ndarray]:
    return segment_map(truth, predictions, ["run", "jump"], thresholds or [0.5], **how, durations={}).per_class


def precision(truth: pd.DataFrame, predictions: pd.DataFrame, *thresholds: float, **how) -> list[float]:
    return per_class(truth, predictions, *thresholds, **how)["run"].tolist()


def test_one_right_prediction_is_all():
    found = segment_map(truth_of(("a", 1, 3)), said(("a", 1, 3, 0.1)), ["run"], [0.5, 1.0])
    assert found.thresholds.tolist() == [0.5, 1.0]
    assert found.by_threshold.tolist() == [1.0, 1.0]
    assert found.mean == 1.0


def test_an_overlap_of_exactly_the_threshold_is_enough():
    """2 of 4 seconds: right at .5; a hair less is not."""
    truth = truth_of(("a", 0, 4))
    assert precision(truth, said(("a", 0, 2, 0.9)), 0.25, 0.5, 0.501) == [1.0, 1.0, 0.0]
    assert precision(truth, said(("a", 0, 1.999, 0.9)), 0.25, 0.5) == [1.0, 0.0]


def test_a_second_prediction_falls_back_to_the_next_segment_that_overlaps_enough():
    """Both overlap most with the first segment, by .95 and .9; with the second segment by .85 and .8."""
    truth = truth_of(("a", 0, 10), ("a", 1, 10))
    twice = said(("a", 0, 9.5, 0.9), ("a", 0, 9, 0.8))
    assert precision(truth, twice, 0.5, 0.85, 0.92) == [1.0, 0.5, 0.5], "above .8 nothing is left"


def test_a_taken_segment_makes_the_next_prediction_wrong():
    """Right, wrong, right of two: 1/2 at precision 1, 1/2 at 2/3."""
    rows = ("a", 0, 4, 0.9), ("a", 0, 4, 0.8), ("a", 8, 9, 0.7)
    assert precision(truth_of(("a", 0, 4), ("a", 8, 9)), said(*rows)) == [pytest.approx((1 + 2 / 3) / 2)]


def test_of_equal_overlaps_the_last_is_taken():
    """The first prediction is between both segments, and the second, as the first segment: it is right only because of that."""
    truth, rows = truth_of(("a", 0, 4), ("a", 2, 6)), said(("a", 1, 5, 0.9), ("a", 0, 4, 0.8))
    assert precision(truth, rows, 0.6) == [1.0]
    assert precision(truth[::-1], rows, 0.6) == [0.5]


def test_equal_scores_stand_in_the_order_of_the_file():
    truth, rows = truth_of(("a", 0, 4)), said(("a", 0, 4, 0.5), ("b", 0, 4, 0.5))
    assert precision(truth, rows) == [1.0]
    assert precision(truth, rows[::-1]) == [0.5]
    many = said(*(("a", place, place + 1, place % 3) for place in range(200)))  # few rows keep their order in any sort
    assert by_score(many).start.tolist() == [*range(2, 200, 3), *range(1, 200, 3), *range(0, 200, 3)]


def test_thresholds_are_matched_apart():
    """At .5 the better scored prediction takes the only segment, at .9 it is wrong and the other one right."""
    rows = said(("a", 0, 6, 0.9), ("a", 0, 10, 0.8))
    assert precision(truth_of(("a", 0, 10)), rows, 0.5, 0.9) == [1.0, 0.5]


def test_predictions_in_a_video_without_action_are_wrong():
    truth = truth_of(("a", 0, 4))
    assert precision(truth, said(("background", 0, 4, 0.9), ("a", 0, 4, 0.5))) == [0.5]


def test_segments_of_another_video_or_class_are_not_found():
    assert precision(truth_of(("a", 0, 4)), said(("b", 0, 4, 0.9), ("a", 0, 4, 0.8, "jump"))) == [0.0]


def test_classes_without_ground_truth_are_not_in_the_mean():
    """`jump` is said and never done, `swim` is no class, and `fly`, done and never said, counts as nothing."""
    truth = truth_of(("a", 0, 4), ("a", 5, 6, "fly"), ("a", 0, 4, "swim"))
    rows = said(("a", 0, 4, 0.5), ("a", 0, 4, 0.9, "jump"), ("a", 0, 4, 0.9, "swim"))
    found = segment_map(truth, rows, ["run", "jump", "fly"], [0.5])
    assert list(found.per_class) == ["run", "jump", "fly"]
    assert found.per_class["run"].tolist() == [1.0]
    assert found.per_class["fly"].tolist() == [0.0]
    assert np.isnan(found.per_class["jump"]).all()
    assert found.mean == 0.5


def test_no_prediction_is_nought_and_no_ground_truth_no_number():
    empty = segment_map(truth_of(("a", 0, 4)), said(), ["run"], [0.3, 0.5])
    assert empty.by_threshold.tolist() == [0.0, 0.0]
    for rows in (said(), said(("a", 0, 4, 0.9))):
        nothing = segment_map(truth_of(), rows, ["run"], [0.3, 0.5])
        assert nothing.by_threshold.shape == (2,)
        assert np.isnan(nothing.by_threshold).all()
        assert np.isnan(nothing.mean)


def test_segments_without_length_overlap_with_nothing():
    segments = torch.tensor([[0.0, 4.0], [3.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    assert segment_iou(segments[:, None], segments).tolist() == [[1.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert segment_iou(segments[0], torch.tensor([[1.0, 5.0], [4.0, 9.0], [5.0, 9.0]])).tolist() == pytest.approx([0.6, 0, 0])
    assert segment_iou(torch.zeros(0, 1, 2), segments).shape == (0, 3)
    rows = said(("a", 3, 1, 0.9), ("a", 2, 2, 0.8), ("a", 0, 4, 0.7))
    assert precision(truth_of(("a", 0, 4)), rows) == [pytest.approx(1 / 3)], "they are wrong, and counted"


def test_actionformer_counts_a_segment_that_is_there_twice_once():
    """.0008 s apart is the same, .002 s is not; nor is the same time in another class or video."""
    rows = said(("a", 0, 4, 0.9))
    near = truth_of(("a", 0, 4), ("a", 0.0008, 4), ("a", 0, 4.0008))
    assert precision(near, rows, protocol="actionformer") == [1.0]
    assert precision(near, rows) == [pytest.approx(1 / 3)]
    chain = truth_of(("a", 0, 4), ("a", 0.0008, 4), ("a", 0.0016, 4))
    assert precision(chain, rows, protocol="actionformer") == [0.5], "the third is near the second, which is left out itself"
    apart = truth_of(("a", 0, 4), ("a", 0.002, 4), ("b", 0, 4), ("a", 0, 4, "jump"))
    assert precision(apart, rows, protocol="actionformer") == [pytest.approx(1 / 3)]


def test_durations_are_judged_apart():
    """A segment of 3 s found, one of 10 s missed; wrong predictions of 2 s (better scored) and of 20 s, where nothing is.

    XS: wrong, right: 1/2. M: nothing said of that length: 0. The 4 s that find the 3 s are no wrong ones of 4 s in S.
    """
    truth = truth_of(("a", 0, 3), ("a", 10, 20), ("b", 0, 5))
    rows = said(("a", 0, 4, 0.5), ("a", 50, 52, 0.9), ("a", 50, 70, 0.8), ("b", 0, 5, 0.4))
    found = segment_map(truth, rows, ["run"], [0.5, 0.76])
    assert found.by_duration["XS"].tolist() == [0.5, 0.0], "at .76 the 4 s find nothing"
    assert found.by_duration["S"].tolist() == [1.0, 0.5], "and are, then, a wrong one of 4 s"
    assert found.by_duration["M"].tolist() == [0.0, 0.0]
    assert np.isnan(found.by_duration["L"]).all()
    assert np.isnan(found.by_duration["XL"]).all()
    assert found.per_class["run"][0] == pytest.approx((1 / 2 + 1 / 2) / 3)


def test_durations_can_be_others():
    found = segment_map(truth_of(("a", 0, 3)), said(("a", 0, 3, 1)), ["run"], [0.5], durations={"to": (0, 3), "above": (3, 9)})
    assert list(found.by_duration) == ["to", "above"]
    assert found.by_duration["to"].tolist() == [1.0]
    assert np.isnan(found.by_duration["above"]).all()


@pytest.mark.parametrize("thresholds", [[], [0.0, 0.5], [0.5, 1.1], [float("nan")], 0.5])
def test_what_is_no_threshold_is_refused(thresholds):
    with pytest.raises(ValueError, match="overlaps above 0 and up to 1 are expected"):
        segment_map(truth_of(), said(), ["run"], thresholds)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="protocol is 'thumos'"):
        segment_map(truth_of(), said(), ["run"], [0.5], "thumos")


@st.composite
def judged(draw):
    """Segments and predictions of a few videos and classes, on a grid of seconds, with scores that differ."""
    places = st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 6), st.sampled_from(["run", "jump"]))
    truth = draw(st.lists(places, min_size=1, max_size=8))
    rows = draw(st.lists(places, max_size=12))
    scores = draw(st.permutations(range(1, len(rows) + 1)))
    one = truth_of(*((video, start, start + length, label) for video, start, length, label in truth))
    return one, said(
        *(
            (video, start, start + length, score, label)
            for (video, start, length, label), score in zip(rows, scores, strict=True)
        )
    )


@settings(deadline=None, max_examples=25)
@given(judged(), st.permutations("abc"))
def test_the_order_of_videos_does_not_matter(pair, order):
    moved = [pd.concat([table[table.video == one] for one in order]) for table in pair]
    found = [per_class(*tables, 0.3, 0.5, 0.9) for tables in (pair, moved)]
    for name in ("run", "jump"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


@settings(deadline=None, max_examples=25)
@given(judged(), st.sampled_from("abcd"))
def test_what_is_wrong_and_scored_least_changes_nothing_and_scored_best_never_helps(pair, video):
    truth, rows = pair
    before = per_class(truth, rows, 0.3, 0.5, 0.9)["run"]
    for score, allowed in ((0, np.equal), (99, np.less_equal)):
        more = pd.concat([rows, said((video, 100, 101, score))])
        after = per_class(truth, more, 0.3, 0.5, 0.9)["run"]
        assert (allowed(after, before) | np.isnan(before)).all()


@settings(deadline=None, max_examples=25)
@given(judged())
def test_matching_equals_going_through_the_segments_one_by_one(pair):
    """The rule in its plainest words, without the arrays: right predictions by class and threshold."""
    truth, rows = pair
    for threshold in (0.3, 0.5):
        right, taken = {"run": [], "jump": []}, set()
        for said_one in rows.sort_values("score", ascending=False).itertuples():
            overlaps = []
            for place, one in enumerate(truth.itertuples()):
                shared = max(0, min(one.end, said_one.end) - max(one.start, said_one.start))
                part = shared / (one.end - one.start + said_one.end - said_one.start - shared)
                if (one.video, one.label) == (said_one.video, said_one.label) and part >= threshold:
                    overlaps.append((part, place))
            free = [place for _, place in sorted(overlaps, reverse=True) if place not in taken]
            taken |= set(free[:1])
            right[said_one.label].append(bool(free))
        found = per_class(truth, rows, threshold)
        for name, marks in right.items():
            total = int((truth.label == name).sum())
            best = [max((sum(marks[:k]) / k for k in range(i + 1, len(marks) + 1)), default=0) for i in range(len(marks))]
            value = sum(p for p, mark in zip(best, marks, strict=True) if mark) / total if total else float("nan")
            assert found[name][0] == pytest.approx(value, nan_ok=True)
