"""Label assignment and loss, compared with values computed by hand."""

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


def test_points_near_the_middle_are_assigned_at_the_level_of_the_farther_end():
    # Middle 5. Level 0 has distances up to 4. Points within 1.5 of the middle are 4, 5, 6; their farther ends are 4, 3, 4 away.
    targets = assigned([[2.0, 8.0]], [1])
    assert targets.positive[:32].nonzero().flatten().tolist() == [4, 5, 6]
    # A distance of exactly 4 is on both levels, as in ActionFormer: on level 1 (from point 32), 4 and 6 are assigned, too.
    assert targets.positive[32:].nonzero().flatten().tolist() == [2, 3]
    assert targets.labels[5].tolist() == [0, 1, 0]
    assert targets.distances[4:7].tolist() == [[2, 4], [3, 3], [4, 2]]
    # Level 1 has distances 4 to 8. Its points 4 and 6 are within 3 of the middle (2 and 8 are exactly 3 away). Its stride is 2.
    times, strides = pyramid_points(32, 3)
    longer = assigned([[-0.5, 10.5]], [0])
    answering = longer.positive & (strides == 2)
    assert times[answering].tolist() == [4, 6]
    assert longer.distances[answering].tolist() == [[2.25, 3.25], [3.25, 2.25]]
    assert not longer.positive[strides == 1].any()


def test_the_last_level_has_no_upper_limit():
    times, strides = pyramid_points(64, 3)
    targets = assigned([[0.0, 63.0]], [2], length=64)
    assert set(strides[targets.positive].tolist()) == {4.0}
    assert ((times[targets.positive] - 31.5).abs() < 6).all()
    assert targets.positive.sum() == 3  # 28, 32, 36


def test_a_point_gets_the_shortest_segment_and_equal_segments_are_merged():
    nested = assigned([[2.0, 8.0], [3.0, 7.0]], [0, 1])
    assert nested.labels[5].tolist() == [0, 1, 0]
    assert nested.distances[5].tolist() == [2, 2]
    alike = assigned([[2.0, 8.0], [2.0, 8.0005], [2.0, 8.0]], [0, 1, 0])
    assert alike.labels[5].tolist() == [1, 1, 0], "the classes of both, each once"


def test_points_outside_a_segment_are_background():
    assert not assigned([[5.2, 5.8]], [0]).positive.any(), "it contains no point"
    assert assigned([], []).positive.sum() == 0
    ends = assigned([[4.0, 6.0]], [0])
    assert ends.positive.nonzero().flatten().tolist() == [5], "its ends are not inside"


def test_diou_of_segments():
    predicted, true = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
    # [-2, 2] and [-1, 3]: IoU 3/5, middles 1 apart, hull 5. A single point: middle 1 away, hull 4.
    assert diou_loss(predicted, true).tolist() == pytest.approx([0.0, 1 - 3 / 5 + (1 / 5) ** 2, 1 + (1 / 4) ** 2])


def test_the_loss_ignores_padding_and_distances_of_background():
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
