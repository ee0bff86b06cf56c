"""The encoder, a plain ViT with joint space-time attention over the visible tokens; patches and positions.

A token is a patch of `tubelet` frames x `patch` x `patch` pixels. Shapes: B clips, N tokens per clip, V visible tokens, D
width.
"""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from timm.layers import calculate_drop_path_rates
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.models.sizes import ClipShape, Size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORM_EPS = 1e-6


def patchify(video: Tensor, clip: ClipShape) -> Tensor:
    """Split clips into patches: `(B, C, T, H, W)` -> `(B, N, C*t*p*p)`, values in the order channel, time, row, column."""
    shape = (clip.channels, clip.frames, clip.side, clip.side)
    if tuple(video.shape[1:]) != shape:
        raise ValueError(f"this model takes clips of shape (B, {', '.join(map(str, shape))}); got {tuple(video.shape)}")
    return _cut(video, clip)


def _cut(video: Tensor, clip: ClipShape) -> Tensor:
    # If possible, copy four uint8 pixels of a row as one int32: a copy costs time per element, not per byte.
    packed = video.dtype == torch.uint8 and clip.patch % 4 == 0 and video.is_contiguous() and video.storage_offset() % 4 == 0
    columns = clip.patch // 4 if packed else clip.patch
    patches = rearrange(
        video.view(torch.int32) if packed else video, "b c (t k) (h p) (w q) -> b (t h w) (c k p q)",
        k=clip.tubelet, p=clip.patch, q=columns,
    )  # fmt: skip
    return patches.view(torch.uint8) if packed else patches


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select tokens by index: `(B, N, D)`, int64 `(B, V)` -> `(B, V, D)`."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def sincos_positions(tokens: int, dim: int) -> Tensor:
    """Return fixed 1-D sine/cosine positions of the flattened token index: float32 `(tokens, dim)`.

    Sine in even dimensions j, cosine in odd ones, frequency `10000 ** -(2*(j//2)/dim)` (VideoMAE, section 3.2).
    """
    exponent = torch.arange(dim, dtype=torch.float64).div(2, rounding_mode="floor") * 2 / dim
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / 10000**exponent
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle.float()


def interpolated_positions(positions: Tensor, grid: tuple[int, int, int], rows: int, columns: int) -> Tensor:
    """Interpolate the positions of a token grid to other rows and columns, bicubic: `(T'*H'*W', D)` -> `(T'*rows*columns, D)`.

    Positions are numbered along the flattened grid. If they were computed for another width, one location would get another
    position.
    """
    if grid[1:] == (rows, columns):
        return positions
    maps = rearrange(positions, "(t h w) d -> t d h w", t=grid[0], h=grid[1])
    return rearrange(functional.interpolate(maps, (rows, columns), mode="bicubic"), "t d h w -> (t h w) d")


class PixelScale(nn.Module):
    """ImageNet normalization of patches, and its inverse. uint8 pixels are raw; floating pixels are already normalized."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: ClipShape):
        super().__init__()
        per_channel = clip.patch_values // clip.channels
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).repeat_interleave(per_channel), persistent=False)

    def normalised(self, patches: Tensor) -> Tensor:
        """`(..., C*t*p*p)`, uint8 or normalized float -> normalized float."""
        return patches if patches.is_floating_point() else (patches / 255 - self.mean) / self.std

    def raw(self, patches: Tensor) -> Tensor:
        """`(..., C*t*p*p)`, uint8 or normalized float -> float in [0, 1]."""
        return patches * self.std + self.mean if patches.is_floating_point() else patches / 255


class Trunk(nn.Module):
    """Pre-norm transformer blocks and, if `norm`, a final LayerNorm: `(B, V, D)` -> `(B, V, D)`.

    With `layer_scale`, each branch of a block is multiplied by a learned vector with this initial value.
    """

    def __init__(
        self, width: int, depth: int, heads: int, mlp_hidden: int, drop_path: float = 0.0, norm: bool = True,
        layer_scale: float | None = None,
    ):  # fmt: skip
        super().__init__()
        # The block computes int(width * mlp_ratio). The 0.5 keeps rounding errors from making that mlp_hidden - 1.
        block: Callable[..., nn.Module] = partial(
            Block, width, heads, mlp_ratio=(mlp_hidden + 0.5) / width, qkv_bias=True, init_values=layer_scale,
            norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),  # type: ignore[arg-type]  # timm only calls it
        )  # fmt: skip
        self.blocks = nn.ModuleList(block(drop_path=rate) for rate in calculate_drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class VideoEncoder(nn.Module):
    """Patch embedding, positions and trunk. Only the visible patches are embedded. There is no class token.

    `norm=False` omits the final LayerNorm, for heads that normalize after pooling (`fc_norm`).
    """

    positions: Tensor

    def __init__(self, size: Size, clip: ClipShape, drop_path: float = 0.0, norm: bool = True):
        super().__init__()
        self.clip = clip
        self.width = size.width
        self.pixels = PixelScale(clip)
        self.embed = nn.Linear(clip.patch_values, size.width)  # equal to a Conv3d whose stride is its kernel
        self.register_buffer("positions", sincos_positions(clip.tokens, size.width), persistent=False)
        self.trunk = Trunk(size.width, size.depth, size.heads, size.mlp_hidden, drop_path, norm, size.layer_scale)

    def forward(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode the visible tokens: `(B, C, T, H, W)`, int64 `(B, V)` or None for all -> `(B, V, D)`.

        `video` is uint8 (0 to 255), or floating and already ImageNet-normalized.
        """
        patches, positions = patchify(video, self.clip), self.positions  # (B, N, C*t*p*p), (N, D)
        if visible is not None:
            patches, positions = gather_tokens(patches, visible), positions[visible]  # (B, V, C*t*p*p), (B, V, D)
        return self._encode(patches, positions)

    def maps(self, video: Tensor) -> Tensor:
        """Encode frames of any size that is a multiple of the patch as maps: `(B, C, T, H, W)` -> `(B, D, T', H', W')`.

        Positions are interpolated from the encoder's own grid. Raises ValueError if patches do not divide the clip.
        """
        clip, (frames, height, width) = self.clip, video.shape[2:]
        if frames != clip.frames or height % clip.patch or width % clip.patch:
            raise ValueError(
                f"this model takes clips of {clip.frames} frames with height and width multiples of {clip.patch} pixels; got "
                f"{frames} frames of {height} x {width}"
            )
        rows, columns = height // clip.patch, width // clip.patch
        tokens = self._encode(_cut(video, clip), interpolated_positions(self.positions, clip.grid, rows, columns))
        return rearrange(tokens, "b (t h w) d -> b d t h w", h=rows, w=columns)

    def _encode(self, patches: Tensor, positions: Tensor) -> Tensor:
        return self.trunk(self.embed(self.pixels.normalised(patches)) + positions)


def initialise(module: nn.Module) -> None:
    """Initialize linear layers as the official code: Xavier-uniform weights and zero biases.

    LayerNorms keep their default (ones and zeros). The patch embedding keeps PyTorch's default for convolutions, so do not pass
    it.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def class_layer(width: int, classes: int, scale: float) -> nn.Linear:
    """Build the linear layer of a class head: zero biases, truncated normal weights (deviation 0.02), times `scale`."""
    layer = nn.Linear(width, classes)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer
