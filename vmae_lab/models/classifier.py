"""Heads that turn tokens into class scores, and the classifier that is fine-tuned (VideoMAE V2's recipe)."""

import warnings
from pathlib import Path
from typing import Self

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vmae_lab.models.checkpoints import CheckpointError, State, load_weights, open_checkpoint
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.config import ModelConfig, Readout
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import NORM_EPS, VideoEncoder, initialise
from vmae_lab.utils.seeding import seeded


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


class VideoClassifier(Pretrained):
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
        self.size, self.clip, self.classes = size, clip, classes
        self.encoder = VideoEncoder(size, clip, drop_path, norm=False)
        initialise(self.encoder.trunk)
        self.head = ClassHead(clip.tokens, size.width, size.heads, classes, readout, init_scale, dropout)

    @classmethod
    def from_pretrained(
        cls,
        where: str | Path,
        *,
        classes: int | None = None,
        readout: Readout | None = None,
        frames: int | None = None,
        side: int | None = None,
        size: Size | str | None = None,
        revision: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Open a classifier, or a pre-trained model as one, of any layout that `open_checkpoint` knows, for evaluation.

        Other numbers of `frames` or pixels (`side`) recompute the positions. What of the head does not fit, or is not there
        (all of it after pre-training), is drawn from `seed`, with a warning that names it. Raises CheckpointError, also
        where no number of `classes` is known, and ValueError where the clip does not split into cubes.
        """
        checkpoint = open_checkpoint(where, size, revision)
        config = checkpoint.config
        classes = classes or config.classes
        if classes is None:
            raise CheckpointError(f"{where} holds no class head; say how many classes it is to have: classes=...")
        with seeded(seed, "a head of its own"):
            model = cls(config.size, config.reshaped(frames, side), classes, readout or config.readout or "mean")
        load_weights(model, _with_own_head(model, checkpoint.state, str(where)), str(where))
        return model.eval()

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            model="VideoClassifier", size=self.size, clip=self.clip, classes=self.classes, readout=self.head.readout
        )

    def forward(self, video: Tensor) -> Tensor:
        return self.head(self.encoder(video))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer numbers for timm's layer decay: embedding 0, block i is i + 1, what is not named here (the head) the last."""
        return {"stem": r"^encoder\.embed", "blocks": [(r"^encoder\.trunk\.blocks\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        return {"head.pool.latent"}


def _with_own_head(model: VideoClassifier, state: State, where: str) -> State:
    """A state's encoder and what of its head fits the model; the rest of the head is the model's own, with a warning.

    After pre-training the decoder and the encoder's final LayerNorm are left out: the head norms (as in the reference).
    """
    if "mask_token" in state:
        of_decoder = ("bridge.", "mask_token", "decoder.", "norm.", "head.")
        state = {key: value for key, value in state.items() if not key.startswith((*of_decoder, "encoder.trunk.norm."))}
    own = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
    fitting = {
        key: value
        for key, value in state.items()
        if not key.startswith("head.") or (key in own and own[key].shape == value.shape)
    }
    fresh = [key for key in own if key not in fitting]
    if fresh:
        warnings.warn(f"{where}: newly initialized, so train these weights before use: {', '.join(fresh)}", stacklevel=3)
    return {**fitting, **{key: own[key] for key in fresh}}
