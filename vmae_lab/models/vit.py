"""The encoder, a plain ViT with joint space-time attention over the visible tokens; patches and positions.

A token is a patch of `tubelet` frames x `patch` x `patch` pixels. Shapes: B clips, N tokens per clip, V visible tokens, D
width.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from einops import rearrange
from timm.layers import calculate_drop_path_rates
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.utils.shapes import Grid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORM_EPS = 1e-6


def patchify(video: Tensor, clip: ClipShape) -> Tensor:
    """Split clips into patches: `(B, C, T, H, W)` -> `(B, N, C*t*p*p)`, values in the order channel, time, row, column."""
    shape = (clip.channels, clip.frames, clip.height, clip.width)
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


def positions_at(clip: ClipShape, dim: int, grid: Grid | None = None) -> Tensor:
    """Positions of a token grid, by default that of the clip: float32 `(T'*H'*W', dim)`.

    At the grid of the training, these are the sine/cosine positions. At another grid, the clip's rule decides. `interpolate`:
    the positions of the trained grid are interpolated. `recompute`: the tokens of the new grid are numbered, as the official
    fine-tuning code does. A token at the same location then gets another position if the number of columns or rows differs.
    """
    grid = grid or clip.grid
    if clip.positions == "recompute" or grid == clip.trained_grid:
        return sincos_positions(math.prod(grid), dim)
    return interpolated_positions(sincos_positions(math.prod(clip.trained_grid), dim), clip.trained_grid, grid)


def interpolated_positions(positions: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """Interpolate the positions of a token grid to another one: float `(T*H*W, D)` -> `(T'*H'*W', D)`.

    Linear over time, then bicubic over rows and columns, as OpenGVLab's InternVideo2 (`interpolate_pos_embed_internvideo2`).
    At the same number of time steps, this is the interpolation of VideoMAE's action detector.
    """
    if trained == grid:
        return positions
    maps = rearrange(positions, "(t h w) d -> t d h w", t=trained[0], h=trained[1])
    if trained[0] != grid[0]:
        series = functional.interpolate(rearrange(maps, "t d h w -> (h w) d t"), grid[0], mode="linear")
        maps = rearrange(series, "(h w) d t -> t d h w", h=trained[1])
    if trained[1:] != grid[1:]:
        maps = functional.interpolate(maps, grid[1:], mode="bicubic")
    return rearrange(maps, "t d h w -> (t h w) d")


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

    def forward(self, tokens: Tensor, layer: int | None = None) -> Tensor:
        """With `layer`, return the output of this block (1 is the first). Only the last block's output is normalized."""
        if layer is not None:
            return next(islice(self.layers(tokens), layer - 1, None))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def layers(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield the output of each block. Only the last block's output is normalized."""
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            yield self.norm(tokens) if number == len(self.blocks) else tokens


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
        self.register_buffer("positions", positions_at(clip, size.width), persistent=False)
        self.trunk = Trunk(size.width, size.depth, size.heads, size.mlp_hidden, drop_path, norm, size.layer_scale)

    @property
    def depth(self) -> int:
        return len(self.trunk.blocks)

    def forward(self, video: Tensor, visible: Tensor | None = None, layer: int | None = None) -> Tensor:
        """Encode the visible tokens: `(B, C, T, H, W)`, int64 `(B, V)` or None for all -> `(B, V, D)`.

        `video` is uint8 (0 to 255), or floating and already ImageNet-normalized. `layer` is the block (1 to `depth`) whose
        output is returned; the final LayerNorm follows only the last block, the default.
        """
        patches, positions = patchify(video, self.clip), self.positions  # (B, N, C*t*p*p), (N, D)
        if visible is not None:
            patches, positions = gather_tokens(patches, visible), positions[visible]  # (B, V, C*t*p*p), (B, V, D)
        return self.trunk(self._embed(patches, positions), layer)

    def layers(self, video: Tensor) -> Iterator[Tensor]:
        """Yield the tokens after each block, `(B, N, D)`, in one pass. The last ones are those of `forward`."""
        return self.trunk.layers(self._embed(patchify(video, self.clip), self.positions))

    def maps(self, video: Tensor) -> Tensor:
        """Encode frames of any size that is a multiple of the patch as maps: `(B, C, T, H, W)` -> `(B, D, T', H', W')`.

        Positions at another grid than the trained one follow the clip's rule, see `positions_at`. Raises ValueError if patches
        do not divide the clip.
        """
        clip, (frames, height, width) = self.clip, video.shape[2:]
        if frames != clip.frames or height % clip.patch or width % clip.patch:
            raise ValueError(
                f"this model takes clips of {clip.frames} frames with height and width multiples of {clip.patch} pixels; got "
                f"{frames} frames of {height} x {width}"
            )
        grid = clip.grid[0], height // clip.patch, width // clip.patch
        tokens = self.trunk(self._embed(_cut(video, clip), self._positions_at(grid)))
        return rearrange(tokens, "b (t h w) d -> b d t h w", t=grid[0], h=grid[1])

    def _positions_at(self, grid: Grid) -> Tensor:
        if grid == self.clip.grid:
            return self.positions
        if self.clip.positions == "interpolate" and self.clip.positions_from is None:  # interpolate on the device
            return interpolated_positions(self.positions, self.clip.grid, grid)
        return positions_at(self.clip, self.width, grid).to(self.positions)

    def _embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        return self.embed(self.pixels.normalised(patches)) + positions


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
