"""Temporal action detection: a pyramid of local attention over the features of a long video.

Our implementation of ActionFormer (Zhang et al., ECCV 2022, arXiv 2202.07925). Level l of the pyramid has every 2^l-th time
step of the features. At each point of a level the model predicts which actions happen and the distances to their start and end.
Padding is bool, True = padded: padded features are zero, and no time step attends to them.

Shapes: B videos, T time steps, C feature width, D model width, H heads, P points of all levels.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from einops import rearrange
from pydantic import Field, ValidationError
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.models.checkpoints import CheckpointError, load_weights, read_weights
from vmae_lab.models.checkpoints.save import write_weights
from vmae_lab.utils.atomic_io import make_folder, read_json, write_json
from vmae_lab.utils.settings import Settings

WEIGHTS, CONFIG = "model.safetensors", "localiser.json"
CHUNK = 64  # queries that share one chunk of keys in local attention
PRIOR = 0.01  # initial probability of every class (focal loss, arXiv 1708.02002, section 4.1)


class ActionFormerShape(Settings):
    """Widths and depths. The defaults are ActionFormer's on THUMOS14."""

    width: int = Field(512, ge=1)
    heads: int = Field(4, ge=1)
    window: int = Field(19, ge=1, description="time steps in a level that a time step attends to, centered on it; odd")
    embed_layers: int = Field(2, ge=1, description="convolutions that embed the features")
    stem_layers: int = Field(2, ge=0, description="blocks at the features' rate")
    levels: int = Field(6, ge=1, description="levels of the pyramid; the first has the features' rate")
    head_layers: int = Field(2, ge=0, description="hidden convolutions of a head")
    layer_scale: float = Field(1e-4, gt=0, description="initial layer scale of a block's branches")

    def model_post_init(self, _context: object) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.window % 2 == 0:
            raise ValueError(f"window {self.window} is even; use an odd number")

    @property
    def multiple(self) -> int:
        """T must be a multiple of this number, so that every level has half as many time steps as the one before."""
        return 2 ** (self.levels - 1)


def pyramid_points(length: int, levels: int) -> tuple[Tensor, Tensor]:
    """Return the time and stride of each pyramid point, in time steps of the features: two float32 `(P,)`, ordered by level."""
    times = [torch.arange(0, length, 2**level) for level in range(levels)]
    strides = [torch.full_like(time, 2**level) for level, time in enumerate(times)]
    return torch.cat(times).float(), torch.cat(strides).float()


def pyramid_padding(padding: Tensor, levels: int) -> Tensor:
    """Return which points of the pyramid are padding: bool `(B, T)` -> `(B, P)`, ordered like `pyramid_points`."""
    return torch.cat([padding[:, :: 2**level] for level in range(levels)], dim=1)


class ActionFormer(nn.Module):
    """Predicts class logits and the distances to start and end at each point of the pyramid. Classes are independent.

    `features` is the width of the features; `classes` are the names, in the order of the logits.
    """

    def __init__(self, shape: ActionFormerShape, features: int, classes: Sequence[str], drop_path: float = 0.0):
        super().__init__()
        self.shape, self.features, self.classes = shape, features, tuple(classes)
        width = shape.width
        self.embed = nn.ModuleList(Conv(features if i == 0 else width, width) for i in range(shape.embed_layers))
        self.stem = nn.ModuleList(self._block(1, drop_path) for _ in range(shape.stem_layers))
        self.branch = nn.ModuleList(self._block(2, drop_path) for _ in range(shape.levels - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(shape.levels))
        self.classify = Head(width, len(classes), shape.head_layers)
        self.regress = Head(width, 2, shape.head_layers)
        self.scales = nn.Parameter(torch.ones(shape.levels))
        bias = self.classify.last.conv.bias
        assert bias is not None, "a Conv without norm has a bias"
        nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))

    def _block(self, stride: int, drop_path: float) -> "LocalBlock":
        return LocalBlock(self.shape.width, self.shape.heads, self.shape.window, stride, drop_path, self.shape.layer_scale)

    def forward(self, features: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, T, C)` and padding, bool `(B, T)` -> logits `(B, P, classes)` and distances `(B, P, 2)`.

        Distances are to start and end, in strides of the point's level. Raises ValueError if T is not a multiple of
        `shape.multiple` or C is not the width of the features.
        """
        if features.shape[-1] != self.features or features.shape[1] % self.shape.multiple:
            raise ValueError(
                f"this model takes features (B, T, {self.features}) with T a multiple of {self.shape.multiple}; got "
                f"{tuple(features.shape)}"
            )
        x = features
        for conv in self.embed:
            x = functional.relu(conv(x, padding))  # (B, T, D)
        for block in self.stem:
            x, padding = block(x, padding)
        logits, distances = [], []
        for level, norm in enumerate(self.norms):
            if level:
                x, padding = self.branch[level - 1](x, padding)  # (B, T / 2^level, D)
            normed = norm(x)
            logits.append(self.classify(normed, padding))
            distances.append(functional.relu(self.regress(normed, padding) * self.scales[level]))
        return torch.cat(logits, dim=1), torch.cat(distances, dim=1)

    def save(self, folder: Path) -> None:
        """Write weights and config to a folder, each file atomically. Raises StorageError."""
        make_folder(folder)
        write_weights(folder / WEIGHTS, self.state_dict())
        config = {"shape": self.shape.model_dump(), "features": self.features, "classes": list(self.classes)}
        write_json(folder / CONFIG, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a model from a folder that `save` wrote, in evaluation mode. Raises CheckpointError."""
        folder = Path(folder)
        try:
            config = read_json(folder / CONFIG)
            model = cls(ActionFormerShape(**config["shape"]), config["features"], config["classes"])
        except (OSError, KeyError, TypeError, ValidationError) as error:
            raise CheckpointError(
                f"{folder} is not a temporal detector ({CONFIG}: {error}); train one with `vmae-lab localise`"
            ) from error
        load_weights(model, read_weights(folder / WEIGHTS), str(folder))
        return model.eval()


class Conv(nn.Module):
    """A convolution over three time steps and, if `norm`, a LayerNorm: `(B, T, C)` -> `(B, T / stride, D)`. Padding stays 0."""

    def __init__(self, width: int, out: int, stride: int = 1, groups: int = 1, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv1d(width, out, 3, stride, padding=1, groups=groups, bias=not norm)  # the LayerNorm has a bias
        self.norm = nn.LayerNorm(out) if norm else nn.Identity()

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = _cleared(x, padding).transpose(1, 2)
        x = self.norm(self.conv(x).transpose(1, 2))
        return _cleared(x, padding[:, :: self.conv.stride[0]])


class Head(nn.Module):
    """Convolutions that predict `out` values at each time step of a level. All levels share one head."""

    def __init__(self, width: int, out: int, layers: int):
        super().__init__()
        self.hidden = nn.ModuleList(Conv(width, width) for _ in range(layers))
        self.last = Conv(width, out, norm=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        for conv in self.hidden:
            x = functional.relu(conv(x, padding))
        return self.last(x, padding)


class LocalBlock(nn.Module):
    """A pre-norm transformer block with local attention. With stride 2 it halves T and max-pools the skip connection."""

    def __init__(self, width: int, heads: int, window: int, stride: int, drop_path: float, layer_scale: float):
        super().__init__()
        self.stride, self.heads, self.window = stride, heads, window
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # There are no positional embeddings: depth-wise convolutions before the projections encode the order of time steps.
        self.near = nn.ModuleList(Conv(width, width, stride, groups=width) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)
        self.scale1, self.scale2 = LayerScale(width, layer_scale), LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, T, D)` and padding, bool `(B, T)` -> both at T / stride."""
        normed, skip = self.norm1(x), x
        if self.stride > 1:
            skip = functional.max_pool1d(x.transpose(1, 2), 3, self.stride, padding=1).transpose(1, 2)
        after = padding[:, :: self.stride]
        q, k, v = (
            rearrange(linear(near(normed, padding)), "b t (h d) -> b h t d", h=self.heads)
            for near, linear in zip(self.near, self.qkv, strict=True)
        )
        attended = rearrange(local_attention(q, k, v, after, self.window), "b h t d -> b t (h d)")
        x = skip + self.drop_path(self.scale1(self.proj(attended)))
        x = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return _cleared(x, after), after


def local_attention(q: Tensor, k: Tensor, v: Tensor, padding: Tensor, window: int) -> Tensor:
    """Compute the attention of each time step to unpadded ones at most `window // 2` away, and to itself.

    q, k, v: `(B, H, T, D / H)`; padding: bool `(B, T)`. Returns `(B, H, T, D / H)`. Time and memory grow linearly with T.
    """
    batch, length = q.shape[0], q.shape[2]
    half, chunk = window // 2, min(CHUNK, length)
    chunks, span = -(-length // chunk), chunk + 2 * half
    rest = chunks * chunk - length
    q = rearrange(functional.pad(q, (0, 0, 0, rest)), "b h (n c) d -> (b n) h c d", n=chunks)
    k, v = (
        rearrange(functional.pad(x, (0, 0, half, half + rest)).unfold(2, span, chunk), "b h n d s -> (b n) h s d")
        for x in (k, v)
    )
    valid = ~functional.pad(padding, (half, half + rest), value=True).unfold(1, span, chunk)
    distance = torch.arange(span, device=q.device) - half - torch.arange(chunk, device=q.device)[:, None]
    # A padded time step attends to itself, since a softmax over an empty set is NaN.
    mask = (distance.abs() <= half) & valid.reshape(batch * chunks, 1, 1, span) | (distance == 0)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "(b n) h c d -> b h (n c) d", n=chunks)[:, :, :length]


def _cleared(x: Tensor, padding: Tensor) -> Tensor:
    return x.masked_fill(padding[..., None], 0.0)
