"""Analytic cost of the models: multiply-accumulates (MACs) and bytes per clip.

There are two conventions. `macs` counts convolutions, linear layers and the two products of attention (half of what PyTorch's
FLOP counter reports). `fvcore` also counts 5 per LayerNorm element, as the paper's tables do. By default all patches are
embedded, as in the official code; with `embed_visible` only the visible ones are, as in this package.
"""

from dataclasses import dataclass

import torch

from vmae_lab.masking import MaskSettings, draw_masks
from vmae_lab.models.sizes import ClipShape, Size

NORM_COST = 5
DRAWS = 64  # number of masks that are drawn to count tokens


@dataclass(frozen=True)
class Cost:
    """Cost of one clip's forward pass, in both conventions."""

    macs: int
    fvcore: int

    @property
    def giga(self) -> float:
        """The fvcore count in the paper's unit, 1e9."""
        return self.fvcore / 1e9


@dataclass(frozen=True)
class TokenCounts:
    """Numbers of tokens per clip with a pair of masks. `counted` are in the loss; it is a mean if the number varies."""

    tokens: int
    visible: int
    decoded: int
    counted: float

    @classmethod
    def of(cls, masks: MaskSettings, clip: ClipShape) -> "TokenCounts":
        """Draw masks and count, so that the numbers cannot differ from the masks' code."""
        encoder_mask, decoder_mask = draw_masks(
            masks, clip.grid, DRAWS, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
        )
        counted = ~decoder_mask if masks.loss_on == "all_decoded" else ~decoder_mask & encoder_mask
        visible, decoded = (int((~mask[0]).sum()) for mask in (encoder_mask, decoder_mask))
        return cls(clip.tokens, visible, decoded, counted.sum(1).float().mean().item())


def trunk_macs(tokens: int, width: int, depth: int, mlp_hidden: int) -> int:
    """Return the MACs of transformer blocks: projections, MLP and the two products of attention."""
    return depth * (tokens * (4 * width**2 + 2 * width * mlp_hidden) + 2 * tokens**2 * width)


def encoder_macs(size: Size, clip: ClipShape, visible: int, embed_visible: bool = False) -> int:
    """Return the MACs of the encoder in pre-training, one clip's forward pass: patch embedding and blocks."""
    embedded = visible if embed_visible else clip.tokens
    return embedded * clip.patch_values * size.width + trunk_macs(visible, size.width, size.depth, size.mlp_hidden)


def pretrain_cost(size: Size, clip: ClipShape, visible: int, decoded: int, embed_visible: bool = False) -> Cost:
    """Count the cost of one pre-training clip: embedding, encoder (`visible` tokens), decoder (`visible + decoded`), head."""
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
    """Return the MACs of one pre-training clip, forward and backward, with only the visible patches embedded.

    The backward pass computes two products for each product of the forward pass, with two exceptions: one for the embedding,
    since pixels need no gradient, and five for the two of attention, whose scores are recomputed.
    """
    forward = pretrain_cost(size, clip, visible, decoded, embed_visible=True).macs
    embedding = visible * clip.patch_values * size.width
    joint = visible + decoded
    attention = 2 * (size.depth * visible**2 * size.width + size.decoder_depth * joint**2 * size.decoder_width)
    return 3 * forward - embedding + attention // 2


def saved_bytes(size: Size, clip: ClipShape, visible: int, decoded: int, half: bool = False) -> int:
    """Count the bytes of activations that autograd saves for one pre-training clip, in float32 or, if `half`, with bf16.

    Under autocast, the residual stream, the statistics of LayerNorm and the normalizers of attention stay float32. Weights and
    their copies are not included (see `state_bytes`).
    """
    cast, joint = 2 if half else 4, visible + decoded
    scaled = size.layer_scale is not None
    encoder = _trunk_saved_bytes(visible, size.width, size.depth, size.heads, size.mlp_hidden, scaled, cast)
    decoder = _trunk_saved_bytes(
        joint, size.decoder_width, size.decoder_depth, size.decoder_heads, size.decoder_mlp_hidden, scaled, cast
    )
    final_norm = visible * (4 * size.width + 8) + joint * 4 * size.decoder_width + decoded * 8
    linear_inputs = cast * (visible * (clip.patch_values + size.width) + decoded * size.decoder_width)
    loss = decoded * (4 * clip.patch_values + 1)
    return encoder + decoder + final_norm + linear_inputs + loss


def _trunk_saved_bytes(tokens: int, width: int, depth: int, heads: int, mlp_hidden: int, scaled: bool, cast: int) -> int:
    stream = 2 * (4 * width + 8)  # inputs, means and standard deviations of both LayerNorms
    products = cast * (6 * width + 2 * mlp_hidden)  # qkv's input, q, k, v, attention's output, MLP's input and hidden layer
    layer_scales = cast * 2 * width if scaled else 0  # inputs of both
    return depth * tokens * (stream + products + layer_scales + 4 * heads)


def state_bytes(parameters: int, half: bool = False) -> int:
    """Count the bytes of float32 weights, gradients and AdamW's two moments and, if `half`, of the bf16 copies for autocast."""
    return parameters * (18 if half else 16)


def classify_cost(size: Size, clip: ClipShape, classes: int) -> Cost:
    """Return the cost of one clip through the classifier: all tokens, mean pooling, `fc_norm`, linear head."""
    n = clip.tokens
    macs = n * clip.patch_values * size.width + trunk_macs(n, size.width, size.depth, size.mlp_hidden) + size.width * classes
    return Cost(macs, macs + NORM_COST * (2 * size.depth * n * size.width + size.width))
