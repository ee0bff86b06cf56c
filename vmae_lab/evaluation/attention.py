"""Maps of attention: rollout (Abnar and Zuidema 2020), and relevance for a class (Chefer, Gur and Wolf 2021)."""

from copy import deepcopy
from typing import Any

import torch
from timm.utils import AttentionExtract
from torch import Tensor

from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.vit import VideoEncoder


@torch.no_grad()
def attention_rollout(encoder: VideoEncoder, video: Tensor) -> Tensor:
    """Return the share of each input token in the mean output token: `(B, C, T, H, W)` -> `(B, N)`; rows sum to 1.

    Heads are averaged, the skip connection of a block has weight 1/2, and blocks are multiplied. Values and MLPs are ignored,
    so the result shows where information can come from, not what is used (arXiv 2005.00928).
    """
    unfused = deepcopy(encoder)
    _unfuse(unfused)
    maps = AttentionExtract(unfused, method="hook")(video)
    tokens = encoder.clip.tokens
    skip = torch.eye(tokens, device=video.device)
    rolled = torch.full((len(video), 1, tokens), 1 / tokens, device=video.device)  # mean over output tokens
    for weights in reversed(list(maps.values())):
        rolled = rolled @ ((weights.float().mean(1) + skip) / 2)
    return rolled[:, 0]


def class_relevance(model: VideoClassifier, video: Tensor, labels: Tensor) -> Tensor:
    """Return the share of each input token in what speaks for a class: `(B, C, T, H, W)`, int64 `(B,)` -> `(B, N)`.

    Each clip has its own class. Rows sum to 1. This is gradient-weighted rollout (Chefer, Gur and Wolf 2021, arXiv 2103.15679,
    equations 5 and 6): the attention of a block is multiplied by the gradient of the class's logit, negative products are set
    to zero, and the result is averaged over heads and accumulated over blocks. It works for all readouts. The paper reads the
    row of the class token. These models have none, so rows are averaged, without the share that each token has in itself.
    """
    unfused = deepcopy(model).eval()
    attention: list[Tensor] = []
    for block in _unfuse(unfused.encoder):
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: attention.append(output))
    with torch.enable_grad():
        logits = unfused(video)
        gradients = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), attention)
    tokens = model.clip.tokens
    start = torch.full((len(video), 1, tokens), 1 / tokens, device=video.device)  # mean over output tokens
    rolled = start
    for weights, gradient in zip(reversed(attention), reversed(gradients), strict=True):
        rolled = rolled + rolled @ (weights * gradient).detach().float().clamp(min=0).mean(1)
    relevance = (rolled - start)[:, 0]
    total = relevance.sum(1, keepdim=True)
    return torch.where(total > 0, relevance / total.clamp(min=torch.finfo(total.dtype).tiny), 1 / tokens)


def _unfuse(encoder: VideoEncoder) -> Any:
    """Let the blocks compute attention weights, which the fused kernel does not return. Returns timm's blocks."""
    blocks: Any = encoder.trunk.blocks
    for block in blocks:
        block.attn.fused_attn = False
    return blocks
