"""Analytic cost of every configuration, in multiply-accumulates (MACs) a clip, forward pass.

Two conventions. `macs`: convolution, linear and attention products (half of PyTorch's FLOP counter). `fvcore`: the
paper's tables, which add 5 per LayerNorm element. Both count all cubes as embedded, as the reference does; `embed_visible`
counts what this package computes.
"""

from dataclasses import dataclass

import torch

from vmae_lab.masking import MaskSettings, draw_masks
from vmae_lab.models.sizes import ClipShape, Size

NORM_COST = 5


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one clip's forward pass."""

    macs: int
    fvcore: int

    @property
    def giga(self) -> float:
        """The paper's unit: fvcore's count in 1e9."""
        return self.fvcore / 1e9


@dataclass(frozen=True)
class TokenCounts:
    """What a pair of masks leaves, in tokens a clip: `counted` is what the loss reads (a mean where it varies)."""

    tokens: int
    visible: int
    decoded: int
    counted: float

    @classmethod
    def of(cls, masks: MaskSettings, clip: ClipShape, draws: int = 64) -> "TokenCounts":
        """Counted on real draws rather than derived, so that no formula can drift from the masks."""
        encoder_mask, decoder_mask = draw_masks(
            masks, clip.grid, draws, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        )
        counted = ~decoder_mask if masks.loss_on == "all_decoded" else ~decoder_mask & encoder_mask
        return cls(
            clip.tokens,
            int((~encoder_mask[0]).sum()),
            int((~decoder_mask[0]).sum()),
            counted.sum(1).float().mean().item(),
        )


def trunk_macs(tokens: int, width: int, depth: int, mlp_hidden: int) -> int:
    """Transformer blocks: projections, MLP and the two attention products."""
    return depth * (tokens * (4 * width**2 + 2 * width * mlp_hidden) + 2 * tokens**2 * width)


def pretrain_cost(size: Size, clip: ClipShape, visible: int, decoded: int, embed_visible: bool = False) -> Cost:
    """One pre-training clip: embedding, encoder on `visible` tokens, decoder on `visible + decoded`, head on `decoded`."""
    joint = visible + decoded
    embedded = visible if embed_visible else clip.tokens
    macs = (
        embedded * clip.cube_values * size.width
        + trunk_macs(visible, size.width, size.depth, size.mlp_hidden)
        + visible * size.width * size.decoder_width
        + trunk_macs(joint, size.decoder_width, size.decoder_depth, size.decoder_mlp_hidden)
        + decoded * size.decoder_width * clip.cube_values
    )
    norms = (
        (2 * size.depth + 1) * visible * size.width
        + 2 * size.decoder_depth * joint * size.decoder_width
        + decoded * size.decoder_width
    )
    return Cost(macs, macs + NORM_COST * norms)


def classify_cost(size: Size, clip: ClipShape, classes: int) -> Cost:
    """One clip through the classifier: all tokens, mean pooling, `fc_norm`, linear head."""
    n = clip.tokens
    macs = n * clip.cube_values * size.width + trunk_macs(n, size.width, size.depth, size.mlp_hidden) + size.width * classes
    return Cost(macs, macs + NORM_COST * (2 * size.depth * n * size.width + size.width))
