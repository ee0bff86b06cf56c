"""VideoMAE with dual masking (VideoMAE V2, section 3): the encoder sees a few patches, the decoder reconstructs other patches.

Shapes: B clips, N tokens per clip, V visible to the encoder, M decoded, D the encoder's width, E the decoder's.
"""

from pathlib import Path
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn

from vmae_lab.masking import visible_index
from vmae_lab.models.checkpoints import CheckpointError, load_weights, open_checkpoint
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ClipShape, Positions, Size
from vmae_lab.models.vit import NORM_EPS, Trunk, VideoEncoder, gather_tokens, initialise, patchify, positions_at
from vmae_lab.utils.shapes import Side

TARGET_EPS = 1e-6


class VideoMAE(Pretrained):
    """Video masked autoencoder with an encoder mask and a decoder mask, which the caller passes.

    If the decoder mask is None or the complement of the encoder mask, this is VideoMAE V1. `target_eps` is added to a patch's
    standard deviation before the division. Synthetic patches without texture need more than the official 1e-6, which amplifies
    rounding errors. `encoder_norm=False` omits the encoder's final LayerNorm, as transformers does by default. `stride` between
    the frames of training clips is saved with the weights; None if not known.
    """

    stride: int | None = None
    positions: Tensor

    def __init__(
        self, size: Size, clip: ClipShape, normalise_target: bool = True, target_eps: float = TARGET_EPS,
        encoder_norm: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.size, self.clip, self.normalise_target, self.target_eps = size, clip, normalise_target, target_eps
        self.encoder_norm = encoder_norm
        self.encoder = VideoEncoder(size, clip, norm=encoder_norm)
        self.bridge = nn.Linear(size.width, size.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(size.decoder_width))
        self.register_buffer("positions", positions_at(clip, size.decoder_width), persistent=False)
        self.decoder = Trunk(
            size.decoder_width, size.decoder_depth, size.decoder_heads, size.decoder_mlp_hidden, norm=False,
            layer_scale=size.layer_scale,
        )  # fmt: skip
        self.norm = nn.LayerNorm(size.decoder_width, eps=NORM_EPS)  # applied only to the outputs of mask tokens
        self.head = nn.Linear(size.decoder_width, clip.patch_values)
        for part in (self.encoder.trunk, self.bridge, self.decoder, self.head):
            initialise(part)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    @classmethod
    def from_pretrained(
        cls, where: str | Path, *, frames: int | None = None, side: Side | None = None, positions: Positions | None = None,
        size: Size | str | None = None, revision: str | None = None,
    ) -> Self:  # fmt: skip
        """Load a pre-trained model from any format that `open_checkpoint` reads, in evaluation mode.

        `frames` and `side` (pixels, or height and width) are those of the checkpoint if None. At another shape, `positions` are
        interpolated by default, or recomputed, see `vit.positions_at`.

        Raises CheckpointError, also if patches do not divide the clip.
        """
        checkpoint = open_checkpoint(where, size, revision)
        config = checkpoint.config
        if config.model != "VideoMAE":
            raise CheckpointError(
                f"{where} has no decoder, so it cannot reconstruct. Use a pre-trained model; VideoClassifier loads this one"
            )
        eps = TARGET_EPS if config.target_eps is None else config.target_eps
        normalise = config.normalise_target is not False
        model = cls(config.size, checkpoint.reshaped(frames, side, positions), normalise, eps, config.encoder_norm)
        load_weights(model, checkpoint.state, str(where))
        model.stride = config.stride
        return model.eval()

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            model="VideoMAE", size=self.size, clip=self.clip, normalise_target=self.normalise_target,
            target_eps=self.target_eps, encoder_norm=self.encoder_norm, stride=self.stride,
        )  # fmt: skip

    def forward(self, video: Tensor, encoder_mask: Tensor, decoder_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict the patches that the decoder mask leaves unmasked from those that the encoder mask leaves unmasked.

        video: `(B, C, T, H, W)`, uint8 or normalized float. Masks: bool `(B, N)`, True = masked, preferably on the CPU.
        Training passes the positions of the unmasked tokens instead of both masks, int64 `(B, V)` and `(B, M)`: then forward
        does not synchronize the device, and compiles to one graph.

        Returns the prediction `(B, M, t*p*p*C)` and the decoded positions, int64 `(B, M)`.
        """
        visible, decoded = encoder_mask, decoder_mask
        if encoder_mask.dtype == torch.bool:
            visible = visible_index(encoder_mask)  # (B, V)
            decoded = visible_index(~encoder_mask if decoder_mask is None else decoder_mask)  # (B, M)
        elif decoded is None:
            raise ValueError("without masks, forward needs the positions of both the visible and the decoded tokens")
        visible, decoded = (positions.to(video.device, non_blocking=True) for positions in (visible, decoded))
        encoded = self.forward_encoder(video, visible)  # (B, V, D)
        return self.forward_decoder(encoded, visible, decoded), decoded  # (B, M, t*p*p*C), (B, M)

    def forward_encoder(self, video: Tensor, visible: Tensor) -> Tensor:
        """Encode the visible patches: `(B, C, T, H, W)`, int64 `(B, V)` -> `(B, V, D)`."""
        return self.encoder(video, visible)

    def forward_decoder(self, encoded: Tensor, visible: Tensor, decoded: Tensor) -> Tensor:
        """Predict the decoded patches: `(B, V, D)`, int64 `(B, V)`, int64 `(B, M)` -> `(B, M, t*p*p*C)`.

        A decoded position that the encoder saw also gets a mask token, so it occurs twice, as in the official code.
        """
        visible_tokens = self.bridge(encoded) + self.positions[visible]  # (B, V, E)
        mask_tokens = self.mask_token + self.positions[decoded]  # (B, M, E)
        tokens = self.decoder(torch.cat([visible_tokens, mask_tokens.to(visible_tokens.dtype)], dim=1))  # (B, V + M, E)
        return self.head(self.norm(tokens[:, visible.shape[1] :]))

    def forward_loss(self, video: Tensor, prediction: Tensor, decoded: Tensor, counted: Tensor) -> Tensor:
        """Return the mean squared error of a prediction over the counted tokens of the batch: a float32 scalar.

        video: `(B, C, T, H, W)`; prediction: `(B, M, t*p*p*C)` for the positions `decoded`, int64 `(B, M)`; counted: bool `(B,
        M)`.
        """
        return reconstruction_loss(prediction, self.target(video, decoded), counted)

    @torch.no_grad()
    def target(self, video: Tensor, decoded: Tensor) -> Tensor:
        """Return the decoder's targets at `decoded`: float32 `(B, M, t*p*p*C)`, values in the order time, row, column, channel.

        Targets are pixels in [0, 1], by default standardized per patch and channel: `(x - mean) / (sqrt(var_unbiased) +
        target_eps)`.
        """
        pixels = self.pixels_at(video, decoded)  # (B, M, t*p*p, C)
        if self.normalise_target:
            mean, deviation = patch_statistics(pixels)
            pixels = (pixels - mean) / (deviation + self.target_eps)
        return rearrange(pixels, "b m v c -> b m (v c)")

    def pixels_at(self, video: Tensor, positions: Tensor) -> Tensor:
        """Select patches as pixels in [0, 1]: `(B, C, T, H, W)`, positions int64 `(B, M)` -> float32 `(B, M, t*p*p, C)`."""
        pixels = self.encoder.pixels.raw(gather_tokens(patchify(video, self.clip), positions)).float()
        return rearrange(pixels, "b m (c v) -> b m v c", c=self.clip.channels)


def patch_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and unbiased standard deviation of each patch and channel: `(B, M, v, C)` -> two of `(B, M, 1, C)`."""
    return pixels.mean(2, keepdim=True), pixels.var(2, unbiased=True, keepdim=True).sqrt()


def reconstruction_loss(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Return the squared error, averaged over the values of a patch, then over the counted tokens of the whole batch.

    prediction, target: `(B, M, values)`; counted: bool `(B, M)`. Returns a float32 scalar.
    """
    per_token = (prediction.float() - target).square().mean(-1)  # (B, M)
    return (per_token * counted).sum() / counted.sum().clamp(min=1)  # a micro-batch may have no counted token
