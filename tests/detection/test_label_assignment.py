"""Which points answer for which segment, by hand; and what their answers cost."""

import pytest
import torch

from vmae_lab.detection.label_assignment import assign, diou_loss, localisation_loss
from vmae_lab.models.actionformer import pyramid_points


def assigned(segments: list, labels: list, length: int = 32, levels: int = 3, radius: float = 1.5):
    return assign(
        torch.tensor(segments, dtype=torch.float32).reshape(-1, 2),
        torch.tensor(labels, dtype=torch.int64),
        length,
        levels,
        3,
        radius,
    )


def test_points_near_the_middle_answer_at_the_level_of_the_farther_end():
    # Middle 5. Level 0 answers up to 4 away: points within 1.5 of the middle are 4, 5, 6, their farther ends 4, 3, 4 away.
    targets = assigned([[2.0, 8.0]], [1])
    assert targets.positive[:32].nonzero().flatten().tolist() == [4, 5, 6]
    # An end just 4 away is of both levels, as in ActionFormer: of level 1 (from the 32nd point on) 4 and 6 answer, too.
    assert targets.positive[32:].nonzero().flatten().tolist() == [2, 3]
    assert targets.labels[5].tolist() == [0, 1, 0]
    assert targets.distances[4:7].tolist() == [[2, 4], [3, 3], [4, 2]]
    # Level 1 takes ends 4 to 8 away: of its points 4 and 6 are within 3 of the middle (2 and 8 just 3 away); in strides of 2.
    times, strides = pyramid_points(32, 3)
    longer = assigned([[-0.5, 10.5]], [0])
    answering = longer.positive & (strides == 2)
    assert times[answering].tolist() == [4, 6]
    assert longer.distances[answering].tolist() == [[2.25, 3.25], [3.25, 2.25]]
    assert not longer.positive[strides == 1].any()


def test_the_last_level_answers_for_all_that_is_longer():
    times, strides = pyramid_points(64, 3)
    targets = assigned([[0.0, 63.0]], [2], length=64)
    assert set(strides[targets.positive].tolist()) == {4.0}
    assert ((times[targets.positive] - 31.5).abs() < 6).all()
    assert targets.positive.sum() == 3  # 28, 32, 36


def test_the_shortest_of_several_is_answered_for_and_such_as_are_alike_are_one():
    nested = assigned([[2.0, 8.0], [3.0, 7.0]], [0, 1])
    assert nested.labels[5].tolist() == [0, 1, 0]
    assert nested.distances[5].tolist() == [2, 2]
    alike = assigned([[2.0, 8.0], [2.0, 8.0005], [2.0, 8.0]], [0, 1, 0])
    assert alike.labels[5].tolist() == [1, 1, 0], "classes of both, each once"


def test_points_outside_a_segment_do_not_answer():
    assert not assigned([[5.2, 5.8]], [0]).positive.any(), "no point lies in it"
    assert assigned([], []).positive.sum() == 0
    ends = assigned([[4.0, 6.0]], [0])
    assert ends.positive.nonzero().flatten().tolist() == [5], "its ends are not in it"


def test_diou_of_segments():
    said, true = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
    # [-2, 2] and [-1, 3]: 3 of 5 in common, middles 1 apart in a hull of 5; a point alone: its middle 1 away in a hull of 4.
    assert diou_loss(said, true).tolist() == pytest.approx([0.0, 1 - 3 / 5 + (1 / 5) ** 2, 1 + (1 / 4) ** 2])


def test_the_loss_reads_distances_where_there_is_a_segment_and_nothing_in_padding():
    generator = torch.Generator().manual_seed(0)
    logits, distances = torch.randn(1, 6, 3, generator=generator), torch.rand(1, 6, 2, generator=generator)
    labels, true = torch.zeros(1, 6, 3), torch.ones(1, 6, 2)
    labels[0, 2, 1] = 1
    padding = torch.tensor([[False] * 5 + [True]])
    whole = localisation_loss(logits, distances, labels, true, padding)
    other = logits.clone(), distances.clone()
    other[0][0, 5], other[1][0, [0, 1, 3, 4, 5]] = 9.0, 9.0
    assert torch.equal(localisation_loss(*other, labels, true, padding), whole)
    alone = localisation_loss(logits, distances, torch.zeros_like(labels), true, padding)
    assert alone != whole
    perfect = 20 * (2 * labels - 1)
    assert localisation_loss(perfect, true, labels, true, padding).item() == pytest.approx(0, abs=1e-6)
