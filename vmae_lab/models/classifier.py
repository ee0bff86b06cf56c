"""Heads that turn tokens into class scores, and the classifier that is fine-tuned (METHOD: fine-tuning)."""

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vmae_lab.models.config import Readout
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import NORM_EPS, VideoEncoder, initialise


class ClassHead(nn.Module):
    """Tokens to class scores: `(B, N, D)` -> `(B, classes)`.

    `mean`: mean over tokens, then LayerNorm (`fc_norm`), the paper's head. `flat`: LayerNorm, then all tokens side by
    side, so that where and when is kept. `attentive`: one learned query attends over the tokens (timm's latent pooling).
    The linear layer's initial weights are scaled by `init_scale` (.001 in the paper); in training `dropout` of its inputs
    are left out.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        heads: int,
        classes: int,
        readout: Readout = "mean",
        init_scale: float = 0.001,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.readout = readout
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.pool = AttentionPoolLatent(width, num_heads=heads, mlp_ratio=4.0) if readout == "attentive" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * tokens if readout == "flat" else width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.dropout(self._pooled(tokens)))

    def _pooled(self, tokens: Tensor) -> Tensor:
        """What the linear layer reads: `(B, D)`, or `(B, N * D)` where flat."""
        if self.readout == "flat":
            return self.fc_norm(tokens).flatten(1)
        if self.pool is not None:
            return self.pool(self.fc_norm(tokens))
        return self.fc_norm(tokens.mean(1))


class VideoClassifier(nn.Module):
    """The encoder on all tokens under a `ClassHead`. The encoder's own final LayerNorm is left out, as in the reference.

    forward: `(B, C, T, H, W)`, uint8 or normalised float -> scores `(B, classes)`.
    """

    def __init__(
        self,
        size: Size,
        clip: ClipShape,
        classes: int,
        readout: Readout = "mean",
        drop_path: float = 0.0,
        init_scale: float = 0.001,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.encoder = VideoEncoder(size, clip, drop_path, norm=False)
        initialise(self.encoder.trunk)
        self.head = ClassHead(clip.tokens, size.width, size.heads, classes, readout, init_scale, dropout)

    def forward(self, video: Tensor) -> Tensor:
        return self.head(self.encoder(video))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer numbers for timm's layer decay: embedding 0, block i is i + 1, what is not named here (the head) the last."""
        return {"stem": r"^encoder\.embed", "blocks": [(r"^encoder\.trunk\.blocks\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        return {"head.pool.latent"}
