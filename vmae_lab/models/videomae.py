"""VideoMAE with dual masking: the encoder sees few cubes, the decoder rebuilds some of the others (VideoMAE V2, section 3)."""

from pathlib import Path
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn

from vmae_lab.masking import visible_index
from vmae_lab.models.checkpoints import CheckpointError, load_weights, open_checkpoint
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import NORM_EPS, Trunk, VideoEncoder, initialise, patchify, sincos_positions, take

TARGET_EPS = 1e-6


class VideoMAE(Pretrained):
    """Dual-masked video masked autoencoder.

    The masks come from the caller; with the decoder mask equal to the complement of the encoder mask, or left out, it is
    VideoMAE V1. `target_eps` is added to a cube's standard deviation before dividing (the reference's 1e-6; flat
    synthetic cubes want more, since 1e-6 amplifies their rounding). `encoder_norm=False` leaves the encoder's final LayerNorm
    out, as Hugging Face transformers does by default.
    """

    positions: Tensor

    def __init__(
        self,
        size: Size,
        clip: ClipShape,
        normalise_target: bool = True,
        target_eps: float = TARGET_EPS,
        encoder_norm: bool = True,
    ):
        super().__init__()
        self.size, self.clip, self.normalise_target, self.target_eps = size, clip, normalise_target, target_eps
        self.encoder_norm = encoder_norm
        self.encoder = VideoEncoder(size, clip, norm=encoder_norm)
        self.bridge = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(size.decoder_width))
        self.register_buffer("positions", sincos_positions(clip.tokens, size.decoder_width), persistent=False)
        self.decoder = Trunk(size.decoder_width, size.decoder_depth, size.decoder_heads, size.decoder_mlp_hidden, norm=False)
        self.norm = nn.LayerNorm(size.decoder_width, eps=NORM_EPS)  # only the mask tokens' outputs are normed and read
        self.head = nn.Linear(size.decoder_width, clip.patch_values)
        for part in (self.encoder.trunk, self.bridge, self.decoder, self.head):
            initialise(part)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @classmethod
    def from_pretrained(
        cls,
        where: str | Path,
        *,
        frames: int | None = None,
        side: int | None = None,
        size: Size | str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Open a pre-trained model of any layout that `open_checkpoint` knows, from here or from the hub, for evaluation.

        Other numbers of `frames` or pixels (`side`) than it was trained on recompute the positions. Raises CheckpointError,
        ValueError where the clip does not split into cubes.
        """
        checkpoint = open_checkpoint(where, size, revision)
        config = checkpoint.config
        if config.model != "VideoMAE":
            raise CheckpointError(f"{where} holds no decoder; VideoClassifier.from_pretrained opens what it holds")
        eps = TARGET_EPS if config.target_eps is None else config.target_eps
        normalise = config.normalise_target is not False
        model = cls(config.size, config.reshaped(frames, side), normalise, eps, config.encoder_norm)
        load_weights(model, checkpoint.state, str(where))
        return model.eval()

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            model="VideoMAE", size=self.size, clip=self.clip, normalise_target=self.normalise_target,
            target_eps=self.target_eps, encoder_norm=self.encoder_norm,
        )  # fmt: skip

    def forward(self, video: Tensor, encoder_mask: Tensor, decoder_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rebuild the decoder-visible cubes from the encoder-visible ones.

        video: `(B, C, T, H, W)`, uint8 or normalised float; masks: bool `(B, N)`, True = masked, best left on the CPU.
        Returns the prediction `(B, M, t*p*p*C)` and the positions it is for, int64 `(B, M)`.
        """
        visible = visible_index(encoder_mask).to(video.device, non_blocking=True)
        decoded = visible_index(~encoder_mask if decoder_mask is None else decoder_mask).to(video.device, non_blocking=True)
        return self.decode(self.encoder(video, visible), visible, decoded), decoded

    def decode(self, encoded: Tensor, visible: Tensor, decoded: Tensor) -> Tensor:
        """Decoder: `(B, V, D)`, int64 `(B, V)`, int64 `(B, M)` -> `(B, M, t*p*p*C)`.

        A decoded position that the encoder saw still gets a mask token, as in the reference: it stands twice.
        """
        seen = self.bridge(encoded) + self.positions[visible]
        asked = self.mask_token + self.positions[decoded]
        tokens = self.decoder(torch.cat([seen, asked.to(seen.dtype)], dim=1))
        return self.head(self.norm(tokens[:, visible.shape[1] :]))

    @torch.no_grad()
    def target(self, video: Tensor, decoded: Tensor) -> Tensor:
        """What the decoder should say at `decoded`: float32 `(B, M, t*p*p*C)`, values as time, row, column, colour.

        Pixels in [0, 1], by default standardised per cube and colour: `(x - mean) / (sqrt(var_unbiased) + target_eps)`.
        """
        pixels = self.pixels_at(video, decoded)
        if self.normalise_target:
            mean, deviation = patch_statistics(pixels)
            pixels = (pixels - mean) / (deviation + self.target_eps)
        return rearrange(pixels, "b m v c -> b m (v c)")

    def pixels_at(self, video: Tensor, positions: Tensor) -> Tensor:
        """Un-normalised pixels of some cubes, in [0, 1]: `(B, C, T, H, W)`, int64 `(B, M)` -> float32 `(B, M, t*p*p, C)`."""
        pixels = self.encoder.pixels.raw(take(patchify(video, self.clip), positions)).float()
        return rearrange(pixels, "b m (c v) -> b m v c", c=self.clip.channels)


def patch_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each cube and colour: `(B, M, v, C)` -> two of `(B, M, 1, C)`."""
    return pixels.mean(2, keepdim=True), pixels.var(2, unbiased=True, keepdim=True).sqrt()


def reconstruction_loss(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Squared error, mean over a cube's values, then over the counted tokens of the whole batch (sum over sum).

    prediction, target: `(B, M, values)`; counted: bool `(B, M)`. Returns a float32 scalar.
    """
    per_token = (prediction.float() - target).square().mean(-1)
    return (per_token * counted).sum() / counted.sum().clamp(min=1)  # a part of a batch may have nothing to count
