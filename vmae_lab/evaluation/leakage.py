"""Information leakage of an encoder mask: how much is visible around masked patches (VideoMAE, section 3.3).

Videos are redundant in time: a masked patch can be copied if its position is visible at another time. A tube mask prevents
this, a random mask of the same ratio does not.
"""

from itertools import product

import torch
from einops import rearrange
from torch import Tensor
from torch.fft import irfftn, rfftn

from vmae_lab.masking import Grid


def visible_around(mask: Tensor, grid: Grid, rings: int, steps: int) -> Tensor:
    """Return the visible share of patches around masked patches, by distance in space and time.

    `mask`: bool `(B, N)`, True = masked. `rings`: largest distance in space, in patches (maximum over both axes). `steps`:
    largest distance in time steps. Returns float `(rings + 1, 2 * steps + 1)`. Rows: distance in space. Columns: time steps
    from -steps to steps. Patches outside the grid do not count. NaN if there are no patches at a distance.
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
        cell = max(abs(down), abs(right)), later + steps
        total[cell] += in_grid
        visible[cell] += in_grid - both_masked
    return (visible / total).float()


def seen_at_another_time(mask: Tensor, grid: Grid) -> float:
    """Return the share of masked patches whose position is visible at another time. `mask`: bool `(B, N)`, True = masked."""
    masked = rearrange(mask, "b (t hw) -> b t hw", t=grid[0])
    return (masked & (~masked).any(1, keepdim=True)).sum().item() / max(1, int(masked.sum()))
