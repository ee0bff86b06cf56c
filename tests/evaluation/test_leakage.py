"""Leakage of masks, compared with small masks computed by hand and with expected values of each kind of mask."""

import pytest
import torch

from vmae_lab.evaluation.leakage import seen_at_another_time, visible_around
from vmae_lab.masking import random, running_cell_maps, tube
from vmae_lab.utils.seeding import torch_generator

GRID = (8, 14, 14)


def test_neighbors_in_time_by_hand():
    """Masked (x) and visible (.) over four time steps: x . x x."""
    mask = torch.tensor([[True, False, True, True]])
    found = visible_around(mask, (4, 1, 1), 0, 2)
    # one step later: after the masked steps 1 and 3 are a visible and a masked one; step 4 has none
    # two steps later: 1 -> 3 masked. One earlier: 3 -> 2 visible, 4 -> 3 masked. Two earlier: 3 -> 1 masked, 4 -> 2 visible
    assert found.tolist() == [[0.5, 0.5, 0.0, 0.5, 0.0]]
    assert seen_at_another_time(mask, (4, 1, 1)) == 1.0


def test_neighbors_in_space_end_at_the_edge():
    """One time step, masked corners of 3 x 3."""
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 2, 0] = True
    from_corners = visible_around(mask.flatten(1), (1, 3, 3), 2, 0)
    # per corner: 3 neighbors at distance 1, all visible; 5 at distance 2, one of them the other corner
    assert from_corners[:, 0].tolist() == pytest.approx([0.0, 1.0, 0.8])


def test_offsets_outside_the_grid_are_nan():
    found = visible_around(torch.tensor([[True, False]]), (2, 1, 1), 1, 3)
    assert found[0, 3 + 1] == 1.0
    assert found[0, [0, 1, 2]].isnan().all(), "there is nothing before the first step"
    assert found[1].isnan().all(), "a frame of one patch has no neighbors"


def test_a_tube_mask_never_shows_a_masked_position():
    mask = tube(GRID, 0.75, 8, torch_generator(0, "tube"))
    assert visible_around(mask, GRID, 0, 4).eq(0).all()
    assert seen_at_another_time(mask, GRID) == 0


def test_a_random_mask_leaks_as_expected_by_chance():
    """Every other patch is visible with the same probability: visible patches divided by all other patches."""
    mask = random(GRID, 0.75, 64, torch_generator(0, "random"))
    found = visible_around(mask, GRID, 1, 2)
    chance = 392 / 1567
    assert found[0, 2] == 0, "a masked patch is not visible itself"
    assert torch.cat([found[0, [0, 1, 3, 4]], found[1]]).sub(chance).abs().max() < 0.01
    assert seen_at_another_time(mask, GRID) == pytest.approx(1 - (1 - chance) ** 7, abs=0.01)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_a_running_cell_mask_shows_every_position_within_four_steps(ratio):
    mask = running_cell_maps(GRID, ratio)
    found = visible_around(mask, GRID, 0, 4)
    assert found[0, [0, 4, 8]].eq(0).all(), "the mask repeats after four steps"
    assert seen_at_another_time(mask, GRID) == 1.0
    # at 50%, the masked and visible halves are swapped after two steps
    assert ratio != 0.5 or found[0, 6] == 1.0
