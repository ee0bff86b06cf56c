"""The two masks of dual masking, as pure functions of a token grid (VideoMAE V2, section 3.2).

A grid is `(T, H, W)` in tokens; tokens are flattened time-major, so a mask is bool `(B, N)` with `N = T*H*W`.
True means masked: hidden from the encoder (encoder mask), or not decoded (decoder mask). Every function draws from the
generator it is given and masks the same number of tokens in every clip of the batch, so models can gather by index.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from einops import rearrange, repeat
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Grid = tuple[int, int, int]
MaskKind = Literal["tube", "running_cell", "frame", "random"]
CELL_RATIOS = (0.25, 0.5, 0.75)
CELL_PHASES = 4


def tube(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """One random spatial pattern a clip, repeated over all time steps (VideoMAE, section 3.3).

    Masks `int(ratio * H*W)` positions of every time step. Returns bool `(batch, T*H*W)`.
    """
    time, height, width = grid
    pattern = _uniform(height * width, ratio, batch, generator, f"tube mask on a {height}x{width} frame")
    return repeat(pattern, "b hw -> b (t hw)", t=time)


def random(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """Tokens drawn uniformly from the whole clip: `int(ratio * N)` of them. Returns bool `(batch, N)`."""
    time, height, width = grid
    return _uniform(time * height * width, ratio, batch, generator, f"random mask on a {time}x{height}x{width} grid")


def frame(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """Whole time steps, `int(ratio * T)` of them drawn uniformly. Returns bool `(batch, N)`."""
    time, height, width = grid
    steps = _uniform(time, ratio, batch, generator, f"frame mask over {time} time steps")
    return repeat(steps, "b t -> b (t hw)", hw=height * width)


def running_cell(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> Tensor:
    """Running cell masking, the start phase drawn uniformly a clip. Returns bool `(batch, N)`."""
    return _kept_maps(grid, ratio)[torch.randint(CELL_PHASES, (batch,), generator=generator)]


def running_cell_maps(grid: Grid, ratio: float) -> Tensor:
    """The four possible running-cell masks of a grid, one per start phase: bool `(4, N)`.

    The frame is tiled by 2x2 cells; a cell is a ring of four flags (row-major), `4*ratio` of them masked, and the ring
    advances by one at every time step, so that every position is decoded at some time (VideoMAE V2, section 3.2). On odd
    heights and widths the tiling is cropped.

    Raises ValueError for a ratio other than .25, .5, .75, or a cropped grid on which the phases mask unequal counts.
    """
    time, height, width = grid
    if ratio not in CELL_RATIOS:
        raise ValueError(f"a running-cell ratio is one of .25, .5, .75 (a cell has 4 flags); got {ratio:g}")
    ring = torch.arange(CELL_PHASES) < round(CELL_PHASES * ratio)
    flag = torch.arange(height)[:, None] % 2 * 2 + torch.arange(width)[None, :] % 2
    step = torch.arange(CELL_PHASES)[:, None] + torch.arange(time)[None, :] + 1
    maps = ring[(flag + step[..., None, None]) % CELL_PHASES]
    maps = rearrange(maps, "phase t h w -> phase (t h w)")
    if len(set(maps.sum(1).tolist())) > 1:
        raise ValueError(
            f"running cells on a {time}x{height}x{width} grid mask a different number of tokens in each phase; "
            "use an even height and width, or a number of time steps that is a multiple of 4"
        )
    return maps


_kept_maps = cache(running_cell_maps)  # a training draws from the same four maps at every step


MASKS: dict[str, Callable[[Grid, float, int, torch.Generator], Tensor]] = {
    "tube": tube,
    "running_cell": running_cell,
    "frame": frame,
    "random": random,
}


class MaskSettings(BaseModel):
    """What the encoder does not see, what the decoder does not rebuild, and where the loss is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: MaskKind = "tube"
    encoder_ratio: float = Field(0.9, gt=0, lt=1)
    decoder: Literal[MaskKind, "none"] = "running_cell"
    decoder_ratio: float = Field(0.5, ge=0, lt=1, description="0 with decoder 'none', and only there")
    loss_on: Literal["invisible", "all_decoded"] = "invisible"
    prune: bool = Field(
        False, description="decode only what the loss reads; the official code decodes what the encoder saw too"
    )

    def model_post_init(self, _context: object) -> None:
        if self.prune and self.loss_on == "all_decoded":
            raise ValueError(
                "prune leaves out decoded tokens that the loss does not read; with loss_on 'all_decoded' it reads all"
            )
        if (self.decoder == "none") != (self.decoder_ratio == 0):
            raise ValueError(
                f"decoder '{self.decoder}' with decoder_ratio {self.decoder_ratio:g}: ratio 0 and decoder 'none' "
                "(all encoder-invisible tokens are decoded, VideoMAE V1) go together"
            )


def draw_masks(
    settings: MaskSettings, grid: Grid, batch: int, encoder_generator: torch.Generator, decoder_generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Encoder and decoder mask of a batch, bool `(batch, N)` each.

    There are two generators, so that arms that differ only in the decoder mask get the same encoder masks. Without a decoder
    mask the decoder rebuilds exactly what the encoder did not see: its mask is the complement of the encoder mask.
    """
    encoder_mask = MASKS[settings.encoder](grid, settings.encoder_ratio, batch, encoder_generator)
    if settings.decoder == "none":
        return encoder_mask, ~encoder_mask
    decoder_mask = MASKS[settings.decoder](grid, settings.decoder_ratio, batch, decoder_generator)
    return encoder_mask, pruned(encoder_mask, decoder_mask) if settings.prune else decoder_mask


def pruned(encoder_mask: Tensor, decoder_mask: Tensor) -> Tensor:
    """The decoder mask with what the encoder sees masked too, so that just what the loss reads is decoded: bool `(B, N)`.

    Clips where that leaves fewer tokens than in another of the batch keep the first of those that the encoder saw, which the
    loss does not read, up to the same number: a batch is one tensor.
    """
    decoded = ~decoder_mask
    wanted = decoded & encoder_mask
    kept = int(wanted.sum(1).max())
    first = (decoded.int() + wanted.int()).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return torch.ones_like(decoder_mask).scatter_(1, first, False)


def visible_index(mask: Tensor) -> Tensor:
    """Positions of the tokens that are not masked, in token order: bool `(B, N)` -> int64 `(B, V)`.

    On a CPU mask this costs the device no synchronisation: keep masks on the CPU and move the index. DDP and FSDP move masks
    to the device before `forward`, which then waits for it here: a matter of speed alone, not measured.
    Raises ValueError where the clips of the batch have unequal counts, or none at all.
    """
    visible = ~mask
    counts = visible.sum(1)
    if counts.numel() == 0 or counts.min() != counts.max() or counts[0] == 0:
        raise ValueError(f"every clip of a batch needs the same, positive number of unmasked tokens; got {counts.tolist()}")
    return visible.nonzero(as_tuple=True)[1].view(len(mask), -1)


def loss_positions(encoder_mask: Tensor, decoded: Tensor, loss_on: str = "invisible") -> Tensor:
    """Which decoded tokens the loss reads: bool `(B, M)`, True = counted.

    `invisible`: those the encoder did not see (the paper's choice); `all_decoded`: every one ("running cell (1)").
    Raises ValueError where nothing is left to learn from.
    """
    counted = torch.ones_like(decoded, dtype=torch.bool) if loss_on == "all_decoded" else encoder_mask.gather(1, decoded)
    if not counted.any():
        raise ValueError("the loss has no token to read: every decoded token was visible to the encoder")
    return counted


def _uniform(tokens: int, ratio: float, batch: int, generator: torch.Generator, what: str) -> Tensor:
    """Mask `int(ratio * tokens)` of `tokens`, uniformly: bool `(batch, tokens)`."""
    masked = int(ratio * tokens)
    if not 0 < masked < tokens:
        raise ValueError(
            f"a {what} at ratio {ratio:g} masks {masked} of {tokens}: "
            + ("nothing is masked; use a higher ratio" if masked <= 0 else "nothing is left visible; use a lower ratio")
        )
    order = torch.rand(batch, tokens, generator=generator).argsort(1)
    return torch.zeros(batch, tokens, dtype=torch.bool).scatter_(1, order[:, :masked], True)
