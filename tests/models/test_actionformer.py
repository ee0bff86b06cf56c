"""ActionFormer: local attention, padding, shapes, and loading from a folder."""

import pytest
import torch
from torch.nn import functional

from vmae_lab.models.actionformer import (
    ActionFormer,
    ActionFormerShape,
    local_attention,
    pyramid_padding,
    pyramid_points,
)
from vmae_lab.models.checkpoints import CheckpointError

SHAPE = ActionFormerShape(width=16, heads=2, window=5, levels=3, layer_scale=1.0)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(**shape) -> ActionFormer:
    torch.manual_seed(0)
    return ActionFormer(SHAPE.model_copy(update=shape), features=6, classes="abcd").eval()


@pytest.mark.parametrize("length", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("window", [1, 5, 19])
def test_local_attention_equals_banded_attention(length, window):
    q, k, v = (seeded(2, 3, length, 8, seed=seed) for seed in range(3))
    padding = torch.arange(length) >= torch.tensor([[length], [max(1, length // 2)]])
    near = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= window // 2
    seen = near & ~padding[:, None, None, :] | torch.eye(length, dtype=torch.bool)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(local_attention(q, k, v, padding, window), expected)


def test_points_and_padding_have_the_same_order():
    times, strides = pyramid_points(8, 3)
    assert times.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6, 0, 4]
    assert strides.tolist() == [1] * 8 + [2] * 4 + [4] * 2
    padding = torch.arange(8)[None] >= 5
    assert torch.equal(pyramid_padding(padding, 3)[0], times >= 5)


@torch.no_grad()
def test_padding_does_not_change_other_points():
    net, features = model(), seeded(1, 20, 6)
    alone = net(features, torch.zeros(1, 20, dtype=torch.bool))
    noise = torch.cat([features, 100 * seeded(1, 12, 6, seed=1)], 1)  # the content of the padding must not matter
    padding = (torch.arange(32) >= 20)[None]
    valid = ~pyramid_padding(padding, SHAPE.levels)[0]
    for expected, padded in zip(alone, net(noise, padding), strict=True):
        assert padded.shape[1] == 32 + 16 + 8
        torch.testing.assert_close(padded[:, valid], expected)
        assert (padded[:, ~valid] == 0).all()


@torch.no_grad()
def test_receptive_field_of_a_point():
    """At the first level, only features within the reach of two blocks (window 5) and of the convolutions change a point."""
    net, features, nothing = model(levels=1), seeded(1, 64, 6), torch.zeros(1, 64, dtype=torch.bool)
    reach = 2 + 2 * (1 + 2) + 3  # two embedding convolutions; per block its convolution and half a window; the head's three
    other = features.clone()
    other[0, 0] += 1.0
    change = (net(features, nothing)[0] - net(other, nothing)[0]).abs().amax(2)[0]
    assert change[: reach + 1].min() > 0
    assert change[reach + 1 :].max() == 0


@torch.no_grad()
def test_initial_class_probabilities_are_low():
    logits, distances = model()(seeded(2, 32, 6), torch.zeros(2, 32, dtype=torch.bool))
    assert logits.shape == (2, 56, 4)
    assert distances.shape == (2, 56, 2)
    assert logits.sigmoid().mean() == pytest.approx(0.01, rel=0.5)
    assert (distances >= 0).all()


def test_invalid_inputs_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"T a multiple of 4; got \(1, 18, 6\)"):
        model()(seeded(1, 18, 6), torch.zeros(1, 18, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(B, T, 6\)"):
        model()(seeded(1, 16, 7), torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"width 10 .* heads 4"):
        ActionFormerShape(width=10)
    with pytest.raises(ValueError, match="window 4 is even"):
        ActionFormerShape(window=4)


@torch.no_grad()
def test_save_and_load(tmp_path):
    net, features, nothing = model(), seeded(1, 16, 6), torch.zeros(1, 16, dtype=torch.bool)
    net.save(tmp_path / "kept")
    loaded = ActionFormer.from_pretrained(tmp_path / "kept")
    assert not loaded.training
    assert loaded.classes == ("a", "b", "c", "d")
    for first, second in zip(net(features, nothing), loaded(features, nothing), strict=True):
        assert torch.equal(first, second)
    with pytest.raises(CheckpointError, match=r"elsewhere .*vmae-lab localise"):
        ActionFormer.from_pretrained(tmp_path / "elsewhere")
