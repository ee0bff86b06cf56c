"""Cubes, positions and the encoder trunk: a plain ViT with joint space-time attention over the tokens it is given."""

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


def sincos_positions(tokens: int, dim: int) -> Tensor:
    """Fixed 1-D sine/cosine positions over the flattened token index: float32 `(tokens, dim)`.

    Even dimensions sine, odd cosine, base 10000, frequency exponent `2*(j//2)/dim` (VideoMAE, section 3.2).
    """
    exponent = torch.arange(dim, dtype=torch.float64).div(2, rounding_mode="floor") * 2 / dim
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / 10000**exponent
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle.float()


def patchify(video: Tensor, clip: ClipShape) -> Tensor:
    """Cut a clip batch into cubes: `(B, C, T, H, W)` -> `(B, N, C*t*p*p)`, values in the order colour, time, row, column."""
    shape = (clip.channels, clip.frames, clip.side, clip.side)
    if tuple(video.shape[1:]) != shape:
        raise ValueError(f"this model takes clips of (B, {', '.join(map(str, shape))}); got {tuple(video.shape)}")
    return _cut(video, clip)


def _cut(video: Tensor, clip: ClipShape) -> Tensor:
    if video.dtype == torch.uint8 and clip.patch % 4 == 0 and video.is_contiguous() and video.storage_offset() % 4 == 0:
        # Copy four pixels of a row at a time: the copy's cost is per element, not per byte.
        return _rearranged(video.view(torch.int32), clip, clip.patch // 4).view(torch.uint8)
    return _rearranged(video, clip, clip.patch)


def _rearranged(video: Tensor, clip: ClipShape, columns: int) -> Tensor:
    return rearrange(video, "b c (t k) (h p) (w q) -> b (t h w) (c k p q)", k=clip.tubelet, p=clip.patch, q=columns)


def interpolated_positions(positions: Tensor, grid: tuple[int, int, int], rows: int, columns: int) -> Tensor:
    """Positions of a token grid, `(T'*H'*W', D)`, for other numbers of rows and columns: bicubic, `(T'*rows*columns, D)`.

    Positions count along the flattened grid, so computing them anew for another width would give a place another meaning.
    """
    if grid[1:] == (rows, columns):
        return positions
    maps = rearrange(positions, "(t h w) d -> t d h w", t=grid[0], h=grid[1])
    return rearrange(functional.interpolate(maps, (rows, columns), mode="bicubic"), "t d h w -> (t h w) d")


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens at an index: `(B, N, D)`, `(B, V)` -> `(B, V, D)`."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


class PixelScale(nn.Module):
    """ImageNet normalisation of cubes, and back. Raw pixels are uint8; floating pixels count as normalised already."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: ClipShape):
        super().__init__()
        per_colour = clip.patch_values // clip.channels
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).repeat_interleave(per_colour), persistent=False)

    def normalised(self, cubes: Tensor) -> Tensor:
        """`(..., C*t*p*p)`, uint8 or normalised float -> normalised float."""
        return cubes if cubes.is_floating_point() else (cubes / 255 - self.mean) / self.std

    def raw(self, cubes: Tensor) -> Tensor:
        """`(..., C*t*p*p)`, uint8 or normalised float -> float in [0, 1]."""
        return cubes * self.std + self.mean if cubes.is_floating_point() else cubes / 255


class Trunk(nn.Module):
    """Pre-norm transformer blocks and a final LayerNorm: `(B, V, D)` -> `(B, V, D)`."""

    def __init__(self, width: int, depth: int, heads: int, mlp_hidden: int, drop_path: float = 0.0, norm: bool = True):
        super().__init__()
        # The half keeps int(width * ratio), which is what the block computes, from falling below mlp_hidden.
        block: Callable[..., nn.Module] = partial(
            Block, width, heads, mlp_ratio=(mlp_hidden + 0.5) / width, qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),  # type: ignore[arg-type]  # timm calls it, whatever its type says
        )  # fmt: skip
        self.blocks = nn.ModuleList(block(drop_path=rate) for rate in calculate_drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class VideoEncoder(nn.Module):
    """Cube embedding, positions and trunk. Embeds only the cubes it is asked for; no class token.

    `norm=False` leaves the final LayerNorm out, for heads that pool first and norm after (`fc_norm`).
    """

    positions: Tensor

    def __init__(self, size: Size, clip: ClipShape, drop_path: float = 0.0, norm: bool = True):
        super().__init__()
        self.clip = clip
        self.width = size.width
        self.pixels = PixelScale(clip)
        self.embed = nn.Linear(clip.patch_values, size.width)  # equal to a Conv3d whose stride is its kernel
        self.register_buffer("positions", sincos_positions(clip.tokens, size.width), persistent=False)
        self.trunk = Trunk(size.width, size.depth, size.heads, size.mlp_hidden, drop_path, norm)

    def forward(self, video: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode the visible tokens: `(B, C, T, H, W)`, int64 `(B, V)` or None for all -> `(B, V, D)`.

        `video` is uint8 (0..255) or floating and already ImageNet-normalised.
        """
        tokens = patchify(video, self.clip)
        positions = self.positions
        if visible is not None:
            tokens, positions = take(tokens, visible), positions[visible]
        return self._encoded(tokens, positions)

    def maps(self, video: Tensor) -> Tensor:
        """Encode frames of any height and width that cubes divide, as feature maps: `(B, C, T, H, W)` -> `(B, D, T', H', W')`.

        Positions are interpolated from the encoder's own grid. Raises ValueError where the clip does not split into cubes.
        """
        clip, (frames, height, width) = self.clip, video.shape[2:]
        if frames != clip.frames or height % clip.patch or width % clip.patch:
            raise ValueError(
                f"this model takes clips of {clip.frames} frames whose sides are multiples of {clip.patch} pixels; got "
                f"{frames} frames of {height} x {width}"
            )
        rows, columns = height // clip.patch, width // clip.patch
        tokens = self._encoded(_cut(video, clip), interpolated_positions(self.positions, clip.grid, rows, columns))
        return rearrange(tokens, "b (t h w) d -> b d t h w", h=rows, w=columns)

    def _encoded(self, cubes: Tensor, positions: Tensor) -> Tensor:
        return self.trunk(self.embed(self.pixels.normalised(cubes)) + positions)


def initialise(module: nn.Module) -> None:
    """The reference initialisation: Xavier-uniform linear weights, zero biases; LayerNorms at one and zero.

    The cube embedding keeps PyTorch's convolution default, as in the reference, so it is not passed through here.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
