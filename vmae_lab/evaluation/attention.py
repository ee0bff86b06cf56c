"""Where an encoder looks: attention rolled out from the last block to the first (Abnar and Zuidema 2020, arXiv 2005.00928)."""

from copy import deepcopy
from typing import Any

import torch
from timm.utils import AttentionExtract
from torch import Tensor

from vmae_lab.models.vit import VideoEncoder


@torch.no_grad()
def attention_rollout(encoder: VideoEncoder, video: Tensor) -> Tensor:
    """How much of each input token reaches the mean of the output tokens: `(B, C, T, H, W)` -> `(B, N)`, each row sums to 1.

    Heads are averaged, a block's skip connection counts for half, and blocks are multiplied. It follows attention alone:
    what values and MLPs do with a token is not seen, so it says where information could have come from, not what was used.
    """
    opened = deepcopy(encoder)  # the fused kernel, which shows no weights, is given up in the copy alone
    blocks: Any = opened.trunk.blocks  # timm's, whose parts PyTorch's types do not know
    for block in blocks:
        block.attn.fused_attn = False
    maps = AttentionExtract(opened, method="hook")(video)
    tokens = encoder.clip.tokens
    skip = torch.eye(tokens, device=video.device)
    rolled = torch.full((len(video), 1, tokens), 1 / tokens, device=video.device)  # the mean over output tokens
    for weights in reversed(list(maps.values())):
        rolled = rolled @ ((weights.float().mean(1) + skip) / 2)
    return rolled[:, 0]
