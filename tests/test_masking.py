"""The masks: counts, structure, and equality with all running cell masks of the official code."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vmae_lab.masking import (
    CELL_RATIOS,
    MASKS,
    MaskSettings,
    draw_masks,
    loss_positions,
    pruned,
    running_cell,
    running_cell_maps,
    visible_index,
)

GRIDS = st.tuples(st.integers(1, 8), st.integers(1, 10), st.integers(1, 10))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_running_cell_masks_equal_the_official_ones(parity):
    tensors = load_file(parity / "masks.safetensors")
    names = [name for name in tensors if name.startswith("run_cell.")]
    for name in names:
        _, grid, ratio = name.split(".", 2)
        grid = tuple(int(n) for n in grid.split("x"))
        assert torch.equal(running_cell_maps(grid, float(ratio)), tensors[name].flatten(1).bool()), name
    assert len(names) == 9


def test_tube_counts_equal_the_official_ones(parity):
    for name, facts in json.loads((parity / "masks.json").read_text())["tube"].items():
        grid, ratio = name.split(".", 1)
        mask = MASKS["tube"](tuple(int(n) for n in grid.split("x")), float(ratio), 3, generator())
        assert mask.sum(1).tolist() == [facts["masked_total"]] * 3


def test_loss_positions_equal_the_official_counts(parity):
    for name, facts in json.loads((parity / "masks.json").read_text())["joint"].items():
        grid, rest = name.split(".tube")
        tube, cell = rest.split(".cell")
        masks = MaskSettings(encoder_ratio=float(tube), decoder_ratio=float(cell))
        encoder_mask, decoder_mask = draw_masks(masks, tuple(int(n) for n in grid.split("x")), 16, generator(1), generator(2))
        counted = loss_positions(encoder_mask, visible_index(decoder_mask)).sum(1)
        assert facts["loss_tokens_min"] <= counted.min()
        assert counted.max() <= facts["loss_tokens_max"]
        assert (~encoder_mask).sum(1)[0] + (~decoder_mask).sum(1)[0] == facts["decoder_input_tokens"]


@settings(max_examples=60, deadline=None)
@given(GRIDS, st.sampled_from(list(MASKS)), st.floats(0.05, 0.95), st.integers(1, 5), st.integers(0, 99))
def test_masks_have_equal_counts_per_clip(grid, kind, ratio, batch, seed):
    time, height, width = grid
    if kind == "running_cell":
        ratio = CELL_RATIOS[round(ratio * 2)]
    try:
        mask = MASKS[kind](grid, ratio, batch, generator(seed))
    except ValueError as error:
        assert any(word in str(error) for word in ("nothing is", "different number"))  # noqa: PT017
        return
    assert mask.shape == (batch, time * height * width)
    assert mask.dtype == torch.bool
    counts = mask.sum(1)
    assert (counts == counts[0]).all()
    if kind != "running_cell" or min(height, width) > 1:
        assert 0 < counts[0] < mask.shape[1]
    frames = mask.view(batch, time, -1)
    if kind == "tube":
        assert (frames == frames[:, :1]).all()
        assert counts[0] == time * int(ratio * (height * width))  # of the tokens per frame, as in the official code
    if kind == "frame":
        assert (frames.all(2) | ~frames.any(2)).all()
    assert torch.equal(mask, MASKS[kind](grid, ratio, batch, generator(seed)))


@pytest.mark.parametrize("ratio", CELL_RATIOS)
@pytest.mark.parametrize("grid", [(8, 14, 14), (4, 6, 6), (8, 7, 7), (4, 5, 3)])
def test_every_position_is_decoded_equally_often(grid, ratio):
    """This is the purpose of running cell masking. It also holds on odd grids, which crop the tiling."""
    maps = running_cell_maps(grid, ratio).view(4, grid[0], -1)
    assert (~maps).sum(1).eq(grid[0] * (1 - ratio)).all()
    for phase in range(3):
        assert torch.equal(maps[phase, 1:], maps[phase + 1, :-1]), "a phase later is a time step later"


def test_callers_cannot_change_cached_masks():
    maps, drawn = running_cell_maps((4, 6, 6), 0.5), running_cell((4, 6, 6), 0.5, 8, generator())
    expected_maps, expected = maps.clone(), drawn.clone()
    maps.fill_(True)
    drawn.fill_(True)
    assert torch.equal(running_cell_maps((4, 6, 6), 0.5), expected_maps)
    assert torch.equal(running_cell((4, 6, 6), 0.5, 8, generator()), expected)


def test_running_cell_masks_by_hand():
    """The ring is a cell's flags in row-major order, half of them masked. It moves back by one flag per time step."""
    steps = [[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    maps = running_cell_maps((4, 2, 4), 0.5).view(4, 4, 2, 4)
    expected = torch.tensor(steps).bool().repeat(1, 1, 2)
    for phase in range(4):
        assert torch.equal(maps[phase], expected.roll(-phase, 0)), phase


def test_each_clip_draws_its_own_phase():
    maps = running_cell_maps((4, 4, 4), 0.5)
    drawn = MASKS["running_cell"]((4, 4, 4), 0.5, 400, generator())
    phases = (drawn[:, None] == maps).all(2)
    assert (phases.sum(1) == 1).all(), "each clip has one of the four masks"
    assert (phases.sum(0) > 60).all(), "100 of 400 are expected; 60 is 4.6 standard deviations away"


@pytest.mark.parametrize("kind", ["tube", "random", "frame"])
def test_masks_are_uniform_over_positions(kind):
    """Half of 16 positions are masked, so 200 of 400 clips are expected to mask each (250 is 5 standard deviations away)."""
    grid = {"tube": (2, 4, 4), "random": (1, 4, 4), "frame": (16, 1, 1)}[kind]
    often = MASKS[kind](grid, 0.5, 400, generator()).sum(0)
    assert ((often > 150) & (often < 250)).all(), often


def test_the_decoder_mask_has_its_own_generator():
    masks = MaskSettings(decoder="random", decoder_ratio=0.5)
    (_, first), (_, same), (_, second) = (
        draw_masks(masks, (4, 6, 6), 4, generator(encoder), generator(decoder)) for encoder, decoder in ((1, 2), (3, 2), (1, 4))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("kind", "grid", "ratio", "message"),
    [
        ("tube", (4, 4, 4), 1.0, "nothing is visible"),
        ("tube", (4, 2, 2), 0.1, "nothing is masked"),
        ("frame", (1, 4, 4), 0.5, "nothing is masked"),
        ("running_cell", (4, 4, 4), 0.4, "got 0.4"),
        ("running_cell", (2, 3, 3), 0.5, "different number of tokens"),
    ],
)
def test_impossible_masks_are_refused(kind, grid, ratio, message):
    with pytest.raises(ValueError, match=message):
        MASKS[kind](grid, ratio, 2, generator())


def test_without_a_decoder_mask_all_invisible_tokens_are_decoded():
    masks = MaskSettings(encoder_ratio=0.75, decoder="none", decoder_ratio=0)
    encoder_mask, decoder_mask = draw_masks(masks, (4, 4, 4), 2, generator(), generator())
    assert torch.equal(decoder_mask, ~encoder_mask)


def test_arms_share_encoder_masks():
    drawn = [
        draw_masks(MaskSettings(decoder=kind, decoder_ratio=ratio), (4, 6, 6), 4, generator(1), generator(2))[0]
        for kind, ratio in (("none", 0), ("random", 0.5), ("running_cell", 0.75))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("decoder", "ratio"), [("none", 0.5), ("running_cell", 0)])
def test_a_decoder_and_its_ratio_must_agree(decoder, ratio):
    with pytest.raises(ValueError, match="decoder_ratio"):
        MaskSettings(decoder=decoder, decoder_ratio=ratio)


def test_unequal_counts_and_empty_losses_are_errors():
    with pytest.raises(ValueError, match="same, positive number"):
        visible_index(torch.tensor([[True, False, False], [True, True, False]]))
    with pytest.raises(ValueError, match="no token"):
        loss_positions(torch.tensor([[False, True, True]]), torch.tensor([[0]]))


def test_pruned_masks_by_hand():
    """Two clips of six tokens. The encoder sees 0 and 1; the decoder mask leaves 0, 2, 3 and 2, 3, 4. Two and three of these
    are invisible, so the first clip also keeps the visible one."""
    encoder_mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    decoder_mask = torch.tensor([[0, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1]]).bool()
    assert visible_index(pruned(encoder_mask, decoder_mask)).tolist() == [[0, 2, 3], [2, 3, 4]]
    decoder_mask = torch.tensor([[0, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0, 1]]).bool()
    assert visible_index(pruned(encoder_mask, decoder_mask)).tolist() == [[2, 3], [3, 4]]


@pytest.mark.parametrize("decoder", ["running_cell", "frame", "random", "none"])
def test_pruning_keeps_all_tokens_in_the_loss(decoder):
    ratio = 0.0 if decoder == "none" else 0.5
    drawn = {}
    for prune in (False, True):
        settings = MaskSettings(decoder=decoder, decoder_ratio=ratio, encoder_ratio=0.75, prune=prune)
        drawn[prune] = draw_masks(settings, (4, 4, 4), 16, *(torch.Generator().manual_seed(seed) for seed in (1, 2)))
    (encoder_mask, whole), (same, less) = drawn[False], drawn[True]
    assert torch.equal(encoder_mask, same)
    assert torch.equal(~whole & encoder_mask, ~less & encoder_mask), "the same tokens enter the loss"
    assert not (~less & whole).any(), "no token is added"
    counts = (~less).sum(1)
    assert counts.min() == counts.max() == (~whole & encoder_mask).sum(1).max(), "as many as the clip with the most needs"


def test_prune_refuses_loss_on_all_decoded():
    with pytest.raises(ValueError, match="all_decoded"):
        MaskSettings(loss_on="all_decoded", prune=True)
