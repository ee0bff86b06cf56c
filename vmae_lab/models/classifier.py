"""Video classifier for fine-tuning: the encoder and a class head (VideoMAE V2's recipe)."""

import warnings
from pathlib import Path
from typing import Literal, Self

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vmae_lab.models.checkpoints import CheckpointError, State, load_weights, open_checkpoint
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.config import ModelConfig, Readout
from vmae_lab.models.sizes import ClipShape, Positions, Size
from vmae_lab.models.vit import NORM_EPS, VideoEncoder, class_layer, initialise
from vmae_lab.utils.seeding import seeded
from vmae_lab.utils.shapes import Side


class ClassHead(nn.Module):
    """Predicts class logits from tokens: `(B, N, D)` -> `(B, classes)`.

    `readout` is how tokens are pooled. `mean`: mean over tokens, then LayerNorm (`fc_norm`), as in the paper. `flat`:
    LayerNorm, then all tokens concatenated, which keeps position and time. `attentive`: one learned query attends to all tokens
    (timm's latent pooling). A linear layer follows. Its initial weights are scaled by `init_scale` (0.001 in the paper), and
    `dropout` applies to its inputs.
    """

    def __init__(
        self, tokens: int, width: int, heads: int, classes: int, readout: Readout = "mean", init_scale: float = 0.001,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.readout = readout
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.pool = AttentionPoolLatent(width, num_heads=heads, mlp_ratio=4.0) if readout == "attentive" else None
        self.dropout = nn.Dropout(dropout)
        self.head = class_layer(width * tokens if readout == "flat" else width, classes, init_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.readout == "flat":
            pooled = self.fc_norm(tokens).flatten(1)  # (B, N * D)
        elif self.pool is not None:
            pooled = self.pool(self.fc_norm(tokens))  # (B, D)
        else:
            pooled = self.fc_norm(tokens.mean(1))  # (B, D)
        return self.head(self.dropout(pooled))


class VideoClassifier(Pretrained):
    """The encoder on all tokens, and a `ClassHead`. The encoder has no final LayerNorm, as in the official code.

    Saved with the weights, and None if not known: `class_names` in label order, and how training clips were sampled (`stride`
    between their frames, `sampling`).
    """

    class_names: tuple[str, ...] | None = None
    stride: int | None = None
    sampling: Literal["dense", "sparse"] | None = None

    def __init__(
        self, size: Size, clip: ClipShape, classes: int, readout: Readout = "mean", drop_path: float = 0.0,
        init_scale: float = 0.001, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.size, self.clip, self.classes = size, clip, classes
        self.encoder = VideoEncoder(size, clip, drop_path, norm=False)
        initialise(self.encoder.trunk)
        self.head = ClassHead(clip.tokens, size.width, size.heads, classes, readout, init_scale, dropout)

    @classmethod
    def from_pretrained(
        cls, where: str | Path, *, classes: int | None = None, readout: Readout | None = None, frames: int | None = None,
        side: Side | None = None, positions: Positions | None = None, size: Size | str | None = None,
        revision: str | None = None, seed: int = 0,
    ) -> Self:  # fmt: skip
        """Load a classifier or a pre-trained encoder from any format that `open_checkpoint` reads, in evaluation mode.

        `frames` and `side` (pixels, or height and width) are those of the checkpoint if None. At another shape, `positions` are
        interpolated by default, or recomputed, see `vit.positions_at`.

        Head weights that are missing or do not fit (all of them after pre-training) are initialized from `seed`, with a warning
        that names them.

        Raises CheckpointError, also for an action detector, if the number of `classes` is unknown, or if patches do not divide
        the clip.
        """
        checkpoint = open_checkpoint(where, size, revision)
        checkpoint.refuse_detector()
        config = checkpoint.config
        classes = classes or config.classes
        if classes is None:
            raise CheckpointError(f"{where} has no class head; pass the number of classes: classes=...")
        clip = checkpoint.reshaped(frames, side, positions)
        with seeded(seed, "a head of its own"):
            model = cls(config.size, clip, classes, readout or config.readout or "mean")
        model.describe(config)
        load_weights(model, _with_own_head(model, checkpoint.state, str(where)), str(where))
        return model.eval()

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            model="VideoClassifier", size=self.size, clip=self.clip, classes=self.classes, readout=self.head.readout,
            class_names=self.class_names, stride=self.stride, sampling=self.sampling,
        )  # fmt: skip

    def describe(self, config: ModelConfig) -> None:
        """Copy the sampling of the training clips from a config, and the class names if their number is that of the head."""
        self.class_names = config.class_names if self.classes == config.classes else None
        self.stride, self.sampling = config.stride, config.sampling

    def forward(self, video: Tensor) -> Tensor:
        """`(B, C, T, H, W)`, uint8 or normalized float -> logits `(B, classes)`."""
        return self.head(self.encoder(video))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Group layers for timm's layer decay: the embedding is layer 0, block i is layer i + 1, the head is the last layer."""
        return {"stem": r"^encoder\.embed", "blocks": [(r"^encoder\.trunk\.blocks\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        return {"head.pool.latent"}


def _with_own_head(model: VideoClassifier, state: State, where: str) -> State:
    """Return the state, with the model's own head weights if those are missing or have another shape. Warns about them.

    For a pre-trained model, the decoder and the encoder's final LayerNorm are removed: the head has its own LayerNorm, as in
    the official code.
    """
    if "mask_token" in state:
        dropped = ("bridge.", "mask_token", "decoder.", "norm.", "head.", "encoder.trunk.norm.")
        state = {key: value for key, value in state.items() if not key.startswith(dropped)}
    own = {key: value for key, value in model.state_dict().items() if key.startswith("head.")}
    fitting = {
        key: value
        for key, value in state.items()
        if not key.startswith("head.") or (key in own and own[key].shape == value.shape)
    }
    new = {key: value for key, value in own.items() if key not in fitting}
    if new:
        warnings.warn(f"{where}: newly initialized weights, train them before use: {', '.join(new)}", stacklevel=3)
    return {**fitting, **new}
