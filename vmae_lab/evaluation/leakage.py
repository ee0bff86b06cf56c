"""Information leakage of an encoder mask: how much around a masked patch is visible (VideoMAE, section 3.3).

Videos are redundant in time: a masked patch whose position is visible at another time can be copied. A tube mask prevents
that, a random mask of the same ratio does not.
"""

from itertools import product

import torch
from einops import rearrange
from torch import Tensor
from torch.fft import irfftn, rfftn

from vmae_lab.masking import Grid


def visible_around(mask: Tensor, grid: Grid, rings: int, steps: int) -> Tensor:
    """How often the neighbours of masked patches are visible, by distance in space and time.

    mask: bool `(B, N)`, True = masked; `rings`: the largest distance in space, in patches along the longer of both axes;
    `steps`: the largest in time steps. Returns float `(rings + 1, 2 * steps + 1)`: the visible share of the patches inside the
    grid at that distance from a masked one, NaN if there are none. Rows: distance in space; columns: time steps later, from
    -steps to steps.
    """
    time, height, width = grid
    masked = rearrange(mask, "b (t h w) -> b t h w", t=time, h=height, w=width)
    # Pairs of patches at every offset, as correlations; zero padding keeps offsets from wrapping around.
    size = (time + steps, height + rings, width + rings)
    spectrum = rfftn(masked.double(), size)
    inside = rfftn(torch.ones(grid, dtype=torch.float64), size)
    pairs = irfftn(torch.stack([spectrum.sum(0).conj() * inside, spectrum.abs().square().sum(0)]), size).round()
    visible, total = torch.zeros(2, rings + 1, 2 * steps + 1, dtype=torch.float64)
    for later, down, right in product(range(-steps, steps + 1), range(-rings, rings + 1), range(-rings, rings + 1)):
        in_grid, both_masked = pairs[:, later, down, right]
        place = max(abs(down), abs(right)), later + steps
        total[place] += in_grid
        visible[place] += in_grid - both_masked
    return (visible / total).float()


def seen_at_another_time(mask: Tensor, grid: Grid) -> float:
    """The share of masked patches whose position is visible at another time: bool `(B, N)`, True = masked."""
    masked = rearrange(mask, "b (t hw) -> b t hw", t=grid[0])
    return (masked & (~masked).any(1, keepdim=True)).sum().item() / max(1, int(masked.sum()))
