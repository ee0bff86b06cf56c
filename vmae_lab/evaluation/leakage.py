"""Information leakage of an encoder mask: what of a masked cube's surroundings the encoder sees (VideoMAE, section 3.3).

Video repeats itself, so a masked cube whose place is visible at another time can be copied instead of understood. A tube mask
rules that out; a random one of the same ratio does not.
"""

from itertools import product

import torch
from einops import rearrange
from torch import Tensor
from torch.fft import irfftn, rfftn

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
    # Pairs of cubes at every offset at once, as correlations. The padding keeps offsets from wrapping around.
    size = (time + steps, height + rings, width + rings)
    spectrum = rfftn(masked.double(), size)
    inside = rfftn(torch.ones(grid, dtype=torch.float64), size)
    pairs = irfftn(torch.stack([spectrum.sum(0).conj() * inside, spectrum.abs().square().sum(0)]), size).round()
    seen, there = torch.zeros(2, rings + 1, 2 * steps + 1, dtype=torch.float64)
    for later, down, right in product(range(-steps, steps + 1), range(-rings, rings + 1), range(-rings, rings + 1)):
        in_grid, both_masked = pairs[:, later, down, right]
        place = max(abs(down), abs(right)), later + steps
        there[place] += in_grid
        seen[place] += in_grid - both_masked
    return (seen / there).float()


def seen_at_another_time(mask: Tensor, grid: Grid) -> float:
    """The share of masked cubes whose own place is visible at some other time: bool `(B, N)`, True = masked."""
    masked = rearrange(mask, "b (t hw) -> b t hw", t=grid[0])
    return (masked & (~masked).any(1, keepdim=True)).sum().item() / max(1, int(masked.sum()))
