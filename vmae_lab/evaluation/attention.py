"""Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928)."""

from copy import deepcopy
from typing import Any

import torch
from timm.utils import AttentionExtract
from torch import Tensor

from vmae_lab.models.vit import VideoEncoder


@torch.no_grad()
def attention_rollout(encoder: VideoEncoder, video: Tensor) -> Tensor:
    """Return the share of each input token in the mean output token: `(B, C, T, H, W)` -> `(B, N)`; rows sum to 1.

    Heads are averaged, the skip connection of a block has weight 1/2, and blocks are multiplied. Values and MLPs are ignored,
    so the result shows where information can come from, not what is used.
    """
    unfused = deepcopy(encoder)  # the fused kernel does not return attention weights
    blocks: Any = unfused.trunk.blocks  # timm's blocks
    for block in blocks:
        block.attn.fused_attn = False
    maps = AttentionExtract(unfused, method="hook")(video)
    tokens = encoder.clip.tokens
    skip = torch.eye(tokens, device=video.device)
    rolled = torch.full((len(video), 1, tokens), 1 / tokens, device=video.device)  # mean over output tokens
    for weights in reversed(list(maps.values())):
        rolled = rolled @ ((weights.float().mean(1) + skip) / 2)
    return rolled[:, 0]
