"""Information leakage of an encoder mask: what of a masked cube's surroundings the encoder sees (VideoMAE, section 3.3).

Video repeats itself, so a masked cube whose place is visible at another time can be copied instead of understood. A tube mask
rules that out; a random one of the same ratio does not.
"""

from itertools import product

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from vmae_lab.masking import Grid


def visible_around(mask: Tensor, grid: Grid, rings: int, steps: int) -> Tensor:
    """How often a masked cube's neighbours are visible, by how far they are in space and in time.

    mask: bool `(B, N)`, True = masked; `rings`: the largest distance in space, in cubes along the longer of both axes; `steps`:
    the largest in time, in time steps. Returns float `(rings + 1, 2 * steps + 1)`: of all cubes that far from a masked one
    and inside the grid, the share that is visible; NaN where there are none. Rows: distance in space from 0 on; columns:
    time steps later, from -steps to steps.
    """
    time, height, width = grid
    masked = rearrange(mask, "b (t h w) -> b t h w", t=time, h=height, w=width)
    # What is beyond the grid is neither visible nor there.
    visible, inside = (pad(flags, (rings, rings, rings, rings, steps, steps)) for flags in (~masked, torch.ones_like(masked)))
    seen, there = torch.zeros(2, rings + 1, 2 * steps + 1, dtype=torch.float64)
    offsets = product(range(2 * steps + 1), range(2 * rings + 1), range(2 * rings + 1))
    for later, down, right in offsets:
        away = (..., slice(later, later + time), slice(down, down + height), slice(right, right + width))
        place = max(abs(down - rings), abs(right - rings)), later
        seen[place] += (masked & visible[away]).sum()
        there[place] += (masked & inside[away]).sum()
    return (seen / there).float()


def seen_at_another_time(mask: Tensor, grid: Grid) -> float:
    """The share of masked cubes whose own place is visible at some other time: bool `(B, N)`, True = masked."""
    masked = rearrange(mask, "b (t hw) -> b t hw", t=grid[0])
    return (masked & (~masked).any(1, keepdim=True)).sum().item() / max(1, int(masked.sum()))
