"""Leakage of masks, against small masks worked out by hand and against what each kind of mask must give away."""

import pytest
import torch

from vmae_lab.evaluation.leakage import seen_at_another_time, visible_around
from vmae_lab.masking import random, running_cell_maps, tube
from vmae_lab.utils.seeding import torch_generator

GRID = (8, 14, 14)


def test_neighbours_in_time_of_a_row_by_hand():
    """Masked (x) and visible (.) over four time steps: x . x x."""
    mask = torch.tensor([[True, False, True, True]])
    found = visible_around(mask, (4, 1, 1), 0, 2)
    # one step later: of the masked ones at 1 and 3 the next are visible and masked; that at 4 has none
    # two steps later: 1 -> 3 masked. One earlier: 3 -> 2 visible, 4 -> 3 masked. Two earlier: 3 -> 1 masked, 4 -> 2 visible
    assert found.tolist() == [[0.5, 0.5, 0.0, 0.5, 0.0]]
    assert seen_at_another_time(mask, (4, 1, 1)) == 1.0


def test_neighbours_in_space_stop_at_the_edge():
    """One time step, a masked corner of 3 x 3: its three neighbours are visible, of the five beyond them two are masked."""
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 2, 0] = True
    from_corners = visible_around(mask.flatten(1), (1, 3, 3), 2, 0)
    # each corner: 3 neighbours one away, all visible; 5 two away, one of them the other corner
    assert from_corners[:, 0].tolist() == pytest.approx([0.0, 1.0, 0.8])


def test_offsets_that_the_grid_does_not_have_are_not_numbers():
    found = visible_around(torch.tensor([[True, False]]), (2, 1, 1), 1, 3)
    assert found[0, 3 + 1] == 1.0
    assert found[0, [0, 1, 2]].isnan().all(), "nothing is earlier than the first step"
    assert found[1].isnan().all(), "a frame of one cube has no neighbours"


def test_a_tube_shows_a_hidden_place_at_no_time():
    mask = tube(GRID, 0.75, 8, torch_generator(0, "tube"))
    assert visible_around(mask, GRID, 0, 4).eq(0).all()
    assert seen_at_another_time(mask, GRID) == 0


def test_a_random_mask_leaks_what_chance_leaks():
    """Each of the other cubes is visible with one chance: the visible ones over all others than the masked one itself."""
    mask = random(GRID, 0.75, 64, torch_generator(0, "random"))
    found = visible_around(mask, GRID, 1, 2)
    chance = 392 / 1567
    assert found[0, 2] == 0, "a masked cube is not visible itself"
    assert torch.cat([found[0, [0, 1, 3, 4]], found[1]]).sub(chance).abs().max() < 0.01
    assert seen_at_another_time(mask, GRID) == pytest.approx(1 - (1 - chance) ** 7, abs=0.01)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_a_running_cell_shows_every_place_within_four_steps(ratio):
    mask = running_cell_maps(GRID, ratio)
    found = visible_around(mask, GRID, 0, 4)
    assert found[0, [0, 4, 8]].eq(0).all(), "the ring is where it was after four steps"
    assert seen_at_another_time(mask, GRID) == 1.0
    # two steps on, at 50 %, the two masked of four have become the two visible
    assert ratio != 0.5 or found[0, 6] == 1.0
