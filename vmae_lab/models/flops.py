"""Analytic cost of the models: multiply-accumulates (MACs) and bytes per clip.

Two conventions. `macs`: convolution, linear and attention products (half of PyTorch's FLOP counter). `fvcore`: the
paper's tables, which add 5 per LayerNorm element. Both count all patches as embedded, as the reference does; with
`embed_visible` only the visible ones, as this package does.
"""

from dataclasses import dataclass

import torch

from vmae_lab.masking import MaskSettings, draw_masks
from vmae_lab.models.sizes import ClipShape, Size

NORM_COST = 5
DRAWS = 64  # masks that are drawn to count tokens


@dataclass(frozen=True)
class Cost:
    """MACs of one clip's forward pass."""

    macs: int
    fvcore: int

    @property
    def giga(self) -> float:
        """The paper's unit: 1e9 of fvcore's count."""
        return self.fvcore / 1e9


@dataclass(frozen=True)
class TokenCounts:
    """Tokens per clip under a pair of masks. `counted`: those that the loss reads, a mean if the number varies."""

    tokens: int
    visible: int
    decoded: int
    counted: float

    @classmethod
    def of(cls, masks: MaskSettings, clip: ClipShape) -> "TokenCounts":
        """Counted in drawn masks, so that they cannot differ from a formula."""
        encoder_mask, decoder_mask = draw_masks(
            masks, clip.grid, DRAWS, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        )
        counted = ~decoder_mask if masks.loss_on == "all_decoded" else ~decoder_mask & encoder_mask
        visible, decoded = (int((~mask[0]).sum()) for mask in (encoder_mask, decoder_mask))
        return cls(clip.tokens, visible, decoded, counted.sum(1).float().mean().item())


def trunk_macs(tokens: int, width: int, depth: int, mlp_hidden: int) -> int:
    """Transformer blocks: projections, MLP and the two attention products."""
    return depth * (tokens * (4 * width**2 + 2 * width * mlp_hidden) + 2 * tokens**2 * width)


def encoder_macs(size: Size, clip: ClipShape, visible: int, embed_visible: bool = False) -> int:
    """The encoder's part of one pre-training clip's forward pass: embedding of all (or the visible) patches, and blocks."""
    embedded = visible if embed_visible else clip.tokens
    return embedded * clip.patch_values * size.width + trunk_macs(visible, size.width, size.depth, size.mlp_hidden)


def pretrain_cost(size: Size, clip: ClipShape, visible: int, decoded: int, embed_visible: bool = False) -> Cost:
    """One pre-training clip: embedding, encoder on `visible` tokens, decoder on `visible + decoded`, head on `decoded`."""
    joint = visible + decoded
    macs = (
        encoder_macs(size, clip, visible, embed_visible)
        + visible * size.width * size.decoder_width
        + trunk_macs(joint, size.decoder_width, size.decoder_depth, size.decoder_mlp_hidden)
        + decoded * size.decoder_width * clip.patch_values
    )
    norms = (
        (2 * size.depth + 1) * visible * size.width
        + 2 * size.decoder_depth * joint * size.decoder_width
        + decoded * size.decoder_width
    )
    return Cost(macs, macs + NORM_COST * norms)


def training_macs(size: Size, clip: ClipShape, visible: int, decoded: int) -> int:
    """One pre-training clip, forward and backward, with only the visible patches embedded.

    Backward computes two products per product of the forward pass, but one for the embedding (pixels need no gradient) and
    five for attention's two, whose scores are not kept but computed again.
    """
    forward = pretrain_cost(size, clip, visible, decoded, embed_visible=True).macs
    embedding = visible * clip.patch_values * size.width
    joint = visible + decoded
    attention = 2 * (size.depth * visible**2 * size.width + size.decoder_depth * joint**2 * size.decoder_width)
    return 3 * forward - embedding + attention // 2


def saved_bytes(size: Size, clip: ClipShape, visible: int, decoded: int, half: bool = False) -> int:
    """Bytes of activations that one pre-training clip keeps for backward; `half`: bf16 autocast, else float32.

    The residual stream, LayerNorm's statistics and attention's normalisers stay float32 under autocast. Weights and their
    copies do not depend on the clips and are not included (see `state_bytes`).
    """
    cast, joint = 2 if half else 4, visible + decoded
    encoder = _trunk_saved_bytes(visible, size.width, size.depth, size.heads, size.mlp_hidden, cast)
    decoder = _trunk_saved_bytes(
        joint, size.decoder_width, size.decoder_depth, size.decoder_heads, size.decoder_mlp_hidden, cast
    )
    final_norm = visible * (4 * size.width + 8) + joint * 4 * size.decoder_width + decoded * 8
    linear_inputs = cast * (visible * (clip.patch_values + size.width) + decoded * size.decoder_width)
    loss = decoded * (4 * clip.patch_values + 1)
    return encoder + decoder + final_norm + linear_inputs + loss


def _trunk_saved_bytes(tokens: int, width: int, depth: int, heads: int, mlp_hidden: int, cast: int) -> int:
    stream = 2 * (4 * width + 8)  # inputs, means and deviations of both LayerNorms
    products = cast * (6 * width + 2 * mlp_hidden)  # qkv's input, q, k, v, attention's output, MLP's input and hidden layer
    return depth * tokens * (stream + products + 4 * heads)


def state_bytes(parameters: int, half: bool = False) -> int:
    """Bytes of float32 weights, gradients and AdamW's two moments, and with autocast of bf16 copies of the weights."""
    return parameters * (18 if half else 16)


def classify_cost(size: Size, clip: ClipShape, classes: int) -> Cost:
    """One clip through the classifier: all tokens, mean pooling, `fc_norm`, linear head."""
    n = clip.tokens
    macs = n * clip.patch_values * size.width + trunk_macs(n, size.width, size.depth, size.mlp_hidden) + size.width * classes
    return Cost(macs, macs + NORM_COST * (2 * size.depth * n * size.width + size.width))
