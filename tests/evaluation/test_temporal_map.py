"""mAP of segments, compared with the official evaluation and with values computed by hand."""

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
def test_results_equal_the_official_scripts(case, protocol):
    annotations, predictions = read_annotations(case / "gt.json"), read_predictions(case / "pred.json")
    thresholds = json.loads((case / "meta.json").read_text())["tiou_thresholds"]
    expected = json.loads((case / "expected.json").read_text())
    found = segment_map(annotations.subset("test").segments, predictions, annotations.classes, thresholds, protocol)
    if case.name[:2] in ("04", "15"):  # equal scores, whose order in the scripts is accidental
        bound = expected["tie_interval"]
        assert (found.by_threshold >= np.array(bound["lo"]) - 1e-6).all()
        assert (found.by_threshold <= np.array(bound["hi"]) + 1e-6).all()
        return
    assert found.by_threshold == pytest.approx(expected[protocol]["mAP"], abs=1e-6)
    assert found.mean == pytest.approx(expected[protocol]["average_mAP"], abs=1e-6)
    entries = json.loads((case / "gt.json").read_text())["database"].values()
    names = {str(item["label_id"]): item["label"] for entry in entries for item in entry["annotations"]}
    per_class = {names.get(name, name): values for name, values in expected[protocol]["per_class_AP"].items()}
    for name, values in found.per_class.items():
        assert np.isnan(values).all() if name not in per_class else values == pytest.approx(per_class[name], abs=1e-6), name


def truth_of(*rows) -> pd.DataFrame:
    """Return ground truth from rows of video, start, end and class (default `run`)."""
    return pd.DataFrame([row if len(row) > 3 else (*row, "run") for row in rows], columns=SEGMENTS)


def predictions_of(*rows) -> pd.DataFrame:
    """Return predictions from rows of video, start, end, score and class (default `run`)."""
    rows = [(*row[:3], row[4] if len(row) > 4 else "run", row[3]) for row in rows]
    return pd.DataFrame(rows, columns=PREDICTIONS)


def per_class(truth: pd.DataFrame, predictions: pd.DataFrame, *thresholds: float, **how) -> dict[str, np.ndarray]:
    return segment_map(truth, predictions, ["run", "jump"], thresholds or [0.5], **how, durations={}).per_class


def precision(truth: pd.DataFrame, predictions: pd.DataFrame, *thresholds: float, **how) -> list[float]:
    return per_class(truth, predictions, *thresholds, **how)["run"].tolist()


def test_one_right_prediction_gives_one():
    found = segment_map(truth_of(("a", 1, 3)), predictions_of(("a", 1, 3, 0.1)), ["run"], [0.5, 1.0])
    assert found.thresholds.tolist() == [0.5, 1.0]
    assert found.by_threshold.tolist() == [1.0, 1.0]
    assert found.mean == 1.0


def test_an_overlap_of_exactly_the_threshold_is_enough():
    """2 of 4 seconds are right at 0.5; slightly less is not."""
    truth = truth_of(("a", 0, 4))
    assert precision(truth, predictions_of(("a", 0, 2, 0.9)), 0.25, 0.5, 0.501) == [1.0, 1.0, 0.0]
    assert precision(truth, predictions_of(("a", 0, 1.999, 0.9)), 0.25, 0.5) == [1.0, 0.0]


def test_a_prediction_may_match_its_second_best_segment():
    """Both overlap most with the first segment (0.95 and 0.9). The IoUs with the second are 0.85 and 0.8."""
    truth = truth_of(("a", 0, 10), ("a", 1, 10))
    twice = predictions_of(("a", 0, 9.5, 0.9), ("a", 0, 9, 0.8))
    assert precision(truth, twice, 0.5, 0.85, 0.92) == [1.0, 0.5, 0.5], "above 0.8, no segment is left"


def test_a_matched_segment_makes_the_next_prediction_wrong():
    """Right, wrong, right, of two: 1/2 at precision 1, 1/2 at precision 2/3."""
    rows = ("a", 0, 4, 0.9), ("a", 0, 4, 0.8), ("a", 8, 9, 0.7)
    assert precision(truth_of(("a", 0, 4), ("a", 8, 9)), predictions_of(*rows)) == [pytest.approx((1 + 2 / 3) / 2)]


def test_the_last_of_equal_overlaps_is_matched():
    """The first prediction overlaps equally with both segments. The second one equals the first segment."""
    truth, rows = truth_of(("a", 0, 4), ("a", 2, 6)), predictions_of(("a", 1, 5, 0.9), ("a", 0, 4, 0.8))
    assert precision(truth, rows, 0.6) == [1.0]
    assert precision(truth[::-1], rows, 0.6) == [0.5]


def test_equal_scores_keep_the_order_of_the_file():
    truth, rows = truth_of(("a", 0, 4)), predictions_of(("a", 0, 4, 0.5), ("b", 0, 4, 0.5))
    assert precision(truth, rows) == [1.0]
    assert precision(truth, rows[::-1]) == [0.5]
    many = predictions_of(
        *(("a", start, start + 1, start % 3) for start in range(200))
    )  # short tables keep their order in any sort
    assert by_score(many).start.tolist() == [*range(2, 200, 3), *range(1, 200, 3), *range(0, 200, 3)]


def test_thresholds_are_matched_separately():
    """At 0.5, the prediction with the higher score takes the only segment. At 0.9, it is wrong and the other is right."""
    rows = predictions_of(("a", 0, 6, 0.9), ("a", 0, 10, 0.8))
    assert precision(truth_of(("a", 0, 10)), rows, 0.5, 0.9) == [1.0, 0.5]


def test_predictions_in_a_video_without_action_are_wrong():
    truth = truth_of(("a", 0, 4))
    assert precision(truth, predictions_of(("background", 0, 4, 0.9), ("a", 0, 4, 0.5))) == [0.5]


def test_segments_of_another_video_or_class_do_not_match():
    assert precision(truth_of(("a", 0, 4)), predictions_of(("b", 0, 4, 0.9), ("a", 0, 4, 0.8, "jump"))) == [0.0]


def test_classes_without_ground_truth_are_not_in_the_mean():
    """`jump` is predicted but not in the ground truth, `swim` is not a class, and `fly` is never predicted, so it counts 0."""
    truth = truth_of(("a", 0, 4), ("a", 5, 6, "fly"), ("a", 0, 4, "swim"))
    rows = predictions_of(("a", 0, 4, 0.5), ("a", 0, 4, 0.9, "jump"), ("a", 0, 4, 0.9, "swim"))
    found = segment_map(truth, rows, ["run", "jump", "fly"], [0.5])
    assert list(found.per_class) == ["run", "jump", "fly"]
    assert found.per_class["run"].tolist() == [1.0]
    assert found.per_class["fly"].tolist() == [0.0]
    assert np.isnan(found.per_class["jump"]).all()
    assert found.mean == 0.5


def test_no_predictions_give_zero_and_no_ground_truth_gives_nan():
    empty = segment_map(truth_of(("a", 0, 4)), predictions_of(), ["run"], [0.3, 0.5])
    assert empty.by_threshold.tolist() == [0.0, 0.0]
    for rows in (predictions_of(), predictions_of(("a", 0, 4, 0.9))):
        nothing = segment_map(truth_of(), rows, ["run"], [0.3, 0.5])
        assert nothing.by_threshold.shape == (2,)
        assert np.isnan(nothing.by_threshold).all()
        assert np.isnan(nothing.mean)


def test_segments_without_length_overlap_with_nothing():
    segments = torch.tensor([[0.0, 4.0], [3.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    assert segment_iou(segments[:, None], segments).tolist() == [[1.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert segment_iou(segments[0], torch.tensor([[1.0, 5.0], [4.0, 9.0], [5.0, 9.0]])).tolist() == pytest.approx([0.6, 0, 0])
    assert segment_iou(torch.zeros(0, 1, 2), segments).shape == (0, 3)
    rows = predictions_of(("a", 3, 1, 0.9), ("a", 2, 2, 0.8), ("a", 0, 4, 0.7))
    assert precision(truth_of(("a", 0, 4)), rows) == [pytest.approx(1 / 3)], "they count as wrong"


def test_actionformer_counts_duplicate_segments_once():
    """Differences of 0.0008 s are duplicates, 0.002 s are not; nor are equal times in another class or video."""
    rows = predictions_of(("a", 0, 4, 0.9))
    near = truth_of(("a", 0, 4), ("a", 0.0008, 4), ("a", 0, 4.0008))
    assert precision(near, rows, protocol="actionformer") == [1.0]
    assert precision(near, rows) == [pytest.approx(1 / 3)]
    chain = truth_of(("a", 0, 4), ("a", 0.0008, 4), ("a", 0.0016, 4))
    assert precision(chain, rows, protocol="actionformer") == [0.5], "the third is only near the second, which is removed"
    apart = truth_of(("a", 0, 4), ("a", 0.002, 4), ("b", 0, 4), ("a", 0, 4, "jump"))
    assert precision(apart, rows, protocol="actionformer") == [pytest.approx(1 / 3)]


def test_durations_are_evaluated_separately():
    """A segment of 3 s is found, one of 10 s missed. Predictions of 2 s (with a higher score) and 20 s match nothing.

    XS: wrong, right: 1/2. M: no prediction of that length: 0. The prediction of 4 s matches the segment of 3 s, so it is not
    wrong in S.
    """
    truth = truth_of(("a", 0, 3), ("a", 10, 20), ("b", 0, 5))
    rows = predictions_of(("a", 0, 4, 0.5), ("a", 50, 52, 0.9), ("a", 50, 70, 0.8), ("b", 0, 5, 0.4))
    found = segment_map(truth, rows, ["run"], [0.5, 0.76])
    assert found.by_duration["XS"].tolist() == [0.5, 0.0], "at 0.76, the prediction of 4 s matches nothing"
    assert found.by_duration["S"].tolist() == [1.0, 0.5], "and then counts as wrong in S"
    assert found.by_duration["M"].tolist() == [0.0, 0.0]
    assert np.isnan(found.by_duration["L"]).all()
    assert np.isnan(found.by_duration["XL"]).all()
    assert found.per_class["run"][0] == pytest.approx((1 / 2 + 1 / 2) / 3)


def test_durations_can_be_set():
    found = segment_map(
        truth_of(("a", 0, 3)), predictions_of(("a", 0, 3, 1)), ["run"], [0.5], durations={"to": (0, 3), "above": (3, 9)}
    )
    assert list(found.by_duration) == ["to", "above"]
    assert found.by_duration["to"].tolist() == [1.0]
    assert np.isnan(found.by_duration["above"]).all()


@pytest.mark.parametrize("thresholds", [[], [0.0, 0.5], [0.5, 1.1], [float("nan")], 0.5])
def test_invalid_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="expected IoUs above 0 and up to 1"):
        segment_map(truth_of(), predictions_of(), ["run"], thresholds)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="protocol is 'thumos'"):
        segment_map(truth_of(), predictions_of(), ["run"], [0.5], "thumos")


@st.composite
def tables(draw):
    """Draw segments and predictions of a few videos and classes, in whole seconds, with distinct scores."""
    segments = st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 6), st.sampled_from(["run", "jump"]))
    truth = draw(st.lists(segments, min_size=1, max_size=8))
    rows = draw(st.lists(segments, max_size=12))
    scores = draw(st.permutations(range(1, len(rows) + 1)))
    truth_table = truth_of(*((video, start, start + length, label) for video, start, length, label in truth))
    return truth_table, predictions_of(
        *(
            (video, start, start + length, score, label)
            for (video, start, length, label), score in zip(rows, scores, strict=True)
        )
    )


@settings(deadline=None, max_examples=25)
@given(tables(), st.permutations("abc"))
def test_the_order_of_videos_does_not_matter(pair, order):
    moved = [pd.concat([table[table.video == name] for name in order]) for table in pair]
    found = [per_class(*tables, 0.3, 0.5, 0.9) for tables in (pair, moved)]
    for name in ("run", "jump"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


@settings(deadline=None, max_examples=25)
@given(tables(), st.sampled_from("abcd"))
def test_wrong_predictions_never_help(pair, video):
    truth, rows = pair
    before = per_class(truth, rows, 0.3, 0.5, 0.9)["run"]
    for score, allowed in ((0, np.equal), (99, np.less_equal)):
        more = pd.concat([rows, predictions_of((video, 100, 101, score))])
        after = per_class(truth, more, 0.3, 0.5, 0.9)["run"]
        assert (allowed(after, before) | np.isnan(before)).all()


@settings(deadline=None, max_examples=25)
@given(tables())
def test_matching_equals_a_direct_implementation(pair):
    """A direct implementation without arrays: right predictions by class and threshold."""
    truth, rows = pair
    for threshold in (0.3, 0.5):
        right, taken = {"run": [], "jump": []}, set()
        for predicted in rows.sort_values("score", ascending=False).itertuples():
            overlaps = []
            for row, segment in enumerate(truth.itertuples()):
                shared = max(0, min(segment.end, predicted.end) - max(segment.start, predicted.start))
                part = shared / (segment.end - segment.start + predicted.end - predicted.start - shared)
                if (segment.video, segment.label) == (predicted.video, predicted.label) and part >= threshold:
                    overlaps.append((part, row))
            free = [row for _, row in sorted(overlaps, reverse=True) if row not in taken]
            taken |= set(free[:1])
            right[predicted.label].append(bool(free))
        found = per_class(truth, rows, threshold)
        for name, marks in right.items():
            total = int((truth.label == name).sum())
            best = [max((sum(marks[:k]) / k for k in range(i + 1, len(marks) + 1)), default=0) for i in range(len(marks))]
            value = sum(p for p, mark in zip(best, marks, strict=True) if mark) / total if total else float("nan")
            assert found[name][0] == pytest.approx(value, nan_ok=True)
