"""The encoder and decoder masks of dual masking, as pure functions of a token grid (VideoMAE V2, section 3.2).

A grid is `(T, H, W)` in tokens. Tokens are flattened time-major, so a mask is bool `(B, N)` with `N = T*H*W`. True means
masked: hidden from the encoder (encoder mask) or not decoded (decoder mask). Each function draws from the given generator and
masks the same number of tokens in every clip of the batch, so that models can gather tokens by index.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor

from vmae_lab.utils.settings import Settings
from vmae_lab.utils.shapes import Grid

MaskKind = Literal["tube", "running_cell", "frame", "random"]
CELL_RATIOS = (0.25, 0.5, 0.75)
CELL_PHASES = 4


def tube(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """Draw one random spatial pattern per clip and repeat it over all time steps (VideoMAE, section 3.3).

    Masks `int(ratio * H*W)` positions of every time step. Returns bool `(batch, T*H*W)`.
    """
    time, height, width = grid
    pattern = _uniform(height * width, ratio, batch, generator, f"tube mask on a {height}x{width} frame")
    return repeat(pattern, "b hw -> b (t hw)", t=time)


def random(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """Mask `int(ratio * N)` tokens, drawn uniformly from the whole clip. Returns bool `(batch, N)`."""
    time, height, width = grid
    return _uniform(time * height * width, ratio, batch, generator, f"random mask on a {time}x{height}x{width} grid")


def frame(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """Mask `int(ratio * T)` whole time steps, drawn uniformly. Returns bool `(batch, N)`."""
    time, height, width = grid
    steps = _uniform(time, ratio, batch, generator, f"frame mask over {time} time steps")
    return repeat(steps, "b t -> b (t hw)", hw=height * width)


def running_cell(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """Draw running cell masks with a uniform start phase per clip. Returns bool `(batch, N)`."""
    return _kept_maps(grid, ratio)[torch.randint(CELL_PHASES, (batch,), generator=generator)]


def running_cell_maps(grid: Grid, ratio: float) -> Tensor:
    """Return the four possible running cell masks of a grid, one per start phase: bool `(4, N)`.

    The frame is tiled by 2x2 cells. A cell is a ring of four flags (row-major), of which `4*ratio` are masked. The ring
    advances by one at every time step, so that every position is decoded at some time (VideoMAE V2, section 3.2). If the height
    or width is odd, the tiling is cropped.

    Raises ValueError if the ratio is not 0.25, 0.5 or 0.75, or if the phases mask different numbers of tokens on a cropped
    grid.
    """
    time, height, width = grid
    if ratio not in CELL_RATIOS:
        raise ValueError(f"the ratio of a running cell mask must be 0.25, 0.5 or 0.75 (a cell has 4 flags); got {ratio:g}")
    ring = torch.arange(CELL_PHASES) < round(CELL_PHASES * ratio)
    flag = torch.arange(height)[:, None] % 2 * 2 + torch.arange(width)[None, :] % 2
    step = torch.arange(CELL_PHASES)[:, None] + torch.arange(time)[None, :] + 1
    maps = ring[(flag + step[..., None, None]) % CELL_PHASES]
    maps = rearrange(maps, "phase t h w -> phase (t h w)")
    if len(set(maps.sum(1).tolist())) > 1:
        raise ValueError(
            f"running cell masks on a {time}x{height}x{width} grid mask a different number of tokens in each phase; "
            "use an even height and width, or a number of time steps that is a multiple of 4"
        )
    return maps


_kept_maps = cache(running_cell_maps)  # training draws from the same four masks at every step


MASKS: dict[str, Callable[[Grid, float, int, torch.Generator], Tensor]] = {
    "tube": tube,
    "running_cell": running_cell,
    "frame": frame,
    "random": random,
}


class MaskSettings(Settings):
    """Encoder mask, decoder mask, and which decoded tokens enter the loss."""

    encoder: MaskKind = "tube"
    encoder_ratio: float = Field(0.9, gt=0, lt=1)
    decoder: Literal[MaskKind, "none"] = "running_cell"
    decoder_ratio: float = Field(0.5, ge=0, lt=1, description="0 if decoder is 'none', else above 0")
    loss_on: Literal["invisible", "all_decoded"] = "invisible"
    prune: bool = Field(
        False, description="decode only tokens that enter the loss; the official code also decodes visible ones"
    )

    def model_post_init(self, _context: object) -> None:
        if self.prune and self.loss_on == "all_decoded":
            raise ValueError(
                "prune cannot be used with loss_on 'all_decoded': it removes decoded tokens that are not in the loss"
            )
        if (self.decoder == "none") != (self.decoder_ratio == 0):
            raise ValueError(
                f"decoder '{self.decoder}' with decoder_ratio {self.decoder_ratio:g}: use decoder 'none' with ratio 0 "
                "(VideoMAE V1: decode all tokens that the encoder does not see), or another decoder with a ratio above 0"
            )


def draw_masks(
    settings: MaskSettings, grid: Grid, batch: int, encoder_generator: torch.Generator, decoder_generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the encoder and decoder masks of a batch: two bool tensors `(batch, N)`.

    Each mask has its own generator, so that arms that differ only in the decoder mask get the same encoder masks. Without a
    decoder mask, the decoder reconstructs all tokens that the encoder does not see: its mask is the complement of the
    encoder's.
    """
    encoder_mask = MASKS[settings.encoder](grid, settings.encoder_ratio, batch, encoder_generator)
    if settings.decoder == "none":
        return encoder_mask, ~encoder_mask
    decoder_mask = MASKS[settings.decoder](grid, settings.decoder_ratio, batch, decoder_generator)
    return encoder_mask, pruned(encoder_mask, decoder_mask) if settings.prune else decoder_mask


def pruned(encoder_mask: Tensor, decoder_mask: Tensor) -> Tensor:
    """Add the encoder's visible tokens to the decoder mask, so that only tokens in the loss are decoded: bool `(B, N)`.

    All clips of a batch need the same number of decoded tokens. A clip with fewer than the maximum also decodes some tokens
    that the encoder sees. These do not enter the loss.
    """
    decoded = ~decoder_mask
    wanted = decoded & encoder_mask
    kept = int(wanted.sum(1).max())
    first = (decoded.int() + wanted.int()).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return torch.ones_like(decoder_mask).scatter_(1, first, False)


def visible_index(mask: Tensor) -> Tensor:
    """Return the positions of the unmasked tokens, in token order: bool `(B, N)` -> int64 `(B, V)`.

    Keep masks on the CPU and move the index: then this does not synchronize the device.

    Raises ValueError if the clips of the batch have different numbers of unmasked tokens, or none.
    """
    visible = ~mask
    counts = visible.sum(1)
    if counts.numel() == 0 or counts.min() != counts.max() or counts[0] == 0:
        raise ValueError(f"every clip of a batch needs the same, positive number of unmasked tokens; got {counts.tolist()}")
    return visible.nonzero(as_tuple=True)[1].view(len(mask), -1)


def loss_positions(encoder_mask: Tensor, decoded: Tensor, loss_on: str = "invisible") -> Tensor:
    """Return which decoded tokens enter the loss: bool `(B, M)`, True = counted.

    `invisible`: those that the encoder did not see (the paper's choice). `all_decoded`: all of them ("running cell (1)").
    Raises ValueError if no token is left.
    """
    counted = torch.ones_like(decoded, dtype=torch.bool) if loss_on == "all_decoded" else encoder_mask.gather(1, decoded)
    if not counted.any():
        raise ValueError("no token enters the loss: every decoded token was visible to the encoder")
    return counted


def _uniform(tokens: int, ratio: float, batch: int, generator: torch.Generator, what: str) -> Tensor:
    """Mask `int(ratio * tokens)` tokens, drawn uniformly: bool `(batch, tokens)`. `what` names the mask in errors."""
    masked = int(ratio * tokens)
    if not 0 < masked < tokens:
        raise ValueError(
            f"a {what} with ratio {ratio:g} masks {masked} of {tokens}: "
            + ("nothing is masked; use a higher ratio" if masked <= 0 else "nothing is visible; use a lower ratio")
        )
    order = torch.rand(batch, tokens, generator=generator).argsort(1)
    return torch.zeros(batch, tokens, dtype=torch.bool).scatter_(1, order[:, :masked], True)
