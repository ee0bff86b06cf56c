"""Soft-NMS, compared with a direct implementation of the paper, and voting computed by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae_lab.detection.soft_nms import SuppressSettings, suppress


def iou(a, b) -> float:
    inner = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return inner / ((a[1] - a[0]) + (b[1] - b[0]) - inner)


def direct_soft_nms(segments: list, scores: list, labels: list, sigma: float, least: float, kept: int) -> list[tuple]:
    found = []
    for label in sorted(set(labels)):
        left = {i: scores[i] for i in range(len(scores)) if labels[i] == label}
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            score = left.pop(best)
            if score < least:
                break
            found.append((score, best))
            left = {i: value * math.exp(-(iou(segments[best], segments[i]) ** 2) / sigma) for i, value in left.items()}
    return sorted(found, key=lambda pair: -pair[0])[:kept]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 10**6), st.integers(0, 3)), min_size=1, max_size=40,
        unique_by=lambda row: row[2],
    ),
    st.integers(1, 50),
)  # fmt: skip
def test_it_equals_direct_soft_nms_per_class(rows, kept):
    segments = [(float(start), float(start + length)) for start, length, _, _ in rows]
    scores, labels = [score / 1e6 for _, _, score, _ in rows], [label for *_, label in rows]
    expected = direct_soft_nms(segments, scores, labels, 0.5, 0.001, kept)
    given_scores = torch.tensor(scores, dtype=torch.float64)
    options = SuppressSettings(voting=None, kept=kept)
    ends, found, classes = suppress(torch.tensor(segments, dtype=torch.float64), given_scores, torch.tensor(labels), options)
    assert found.tolist() == pytest.approx([score for score, _ in expected], rel=1e-9)
    assert (found[1:] <= found[:-1]).all()
    by_segment = {(round(score, 9), segments[i], labels[i]) for score, i in expected}
    assert {
        (round(s, 9), tuple(e), c) for s, e, c in zip(found.tolist(), ends.tolist(), classes.tolist(), strict=True)
    } == by_segment


def test_classes_do_not_suppress_one_another():
    segments, scores = torch.tensor([[0.0, 4.0], [0.0, 4.0]]), torch.tensor([0.9, 0.8])
    assert suppress(segments, scores, torch.tensor([0, 1]), SuppressSettings())[1].tolist() == pytest.approx([0.9, 0.8])
    alone = suppress(segments, scores, torch.tensor([0, 0]), SuppressSettings())[1]
    assert alone.tolist() == pytest.approx([0.9, 0.8 * math.exp(-2)])


def test_voting_averages_overlapping_segments_of_the_class():
    segments = torch.tensor([[0.0, 10.0], [1.0, 10.0], [2.0, 8.0], [0.0, 9.0]])
    scores, labels = torch.tensor([0.6, 0.3, 0.5, 0.9]), torch.tensor([0, 0, 0, 1])
    ends, _, classes = suppress(segments, scores, labels, SuppressSettings(voting=0.7, kept=2))
    # In class 0, [1, 10] has an IoU of 0.9 with [0, 10] and counts; [2, 8] has 0.6 and does not. [0, 9] is another class.
    assert classes.tolist() == [1, 0]
    assert ends[0].tolist() == [0, 9]
    assert ends[1].tolist() == pytest.approx([0.3 * 0.9 * 1.0 / (0.6 + 0.3 * 0.9), 10.0])


def test_empty_input_gives_empty_output():
    empty = torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert [len(part) for part in suppress(*empty, SuppressSettings())] == [0, 0, 0]
    faint = torch.tensor([[0.0, 1.0]]), torch.tensor([1e-4]), torch.tensor([3])
    assert [len(part) for part in suppress(*faint, SuppressSettings())] == [0, 0, 0]
