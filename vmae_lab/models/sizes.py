"""Model sizes and clip shapes (VideoMAE V2, table 7 and the official configurations)."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import Field

from vmae_lab.utils.settings import Settings
from vmae_lab.utils.shapes import Grid, Side, height_width, read_side

Positions = Literal["interpolate", "recompute"]


@dataclass(frozen=True)
class Size:
    """Widths, depths, heads and MLP widths of encoder and decoder. `patch` is the side of a patch in pixels.

    `layer_scale` is the initial value of the blocks' layer scale (CaiT, arXiv 2103.17239), or None for blocks without it.
    """

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_mlp_hidden: int
    patch: int = 16
    layer_scale: float | None = None


SIZES: dict[str, Size] = {
    # Ours, for clips of 32 pixels on two CPU cores.
    "micro": Size(64, 3, 2, 256, 48, 2, 3, 192, patch=8),
    "tiny": Size(96, 4, 3, 384, 48, 2, 3, 192, patch=8),
    "mini": Size(160, 6, 5, 640, 48, 2, 3, 192, patch=8),
    # The paper's.
    "small": Size(384, 12, 6, 1536, 192, 4, 3, 768),
    "base": Size(768, 12, 12, 3072, 384, 4, 6, 1536),
    "large": Size(1024, 24, 16, 4096, 512, 4, 8, 2048),
    "huge": Size(1280, 32, 16, 5120, 512, 4, 8, 2048),
    # MLP ratio 48/11 in encoder and decoder.
    "giant": Size(1408, 40, 16, 6144, 512, 4, 8, 2234, patch=14),
}


def size_name(width: int, depth: int, mlp_hidden: int, heads: int | None = None) -> str | None:
    """Return the name of the size whose encoder has these dimensions, or None. Without `heads`, any number of heads matches."""
    for name, size in SIZES.items():
        if (size.width, size.depth, size.mlp_hidden) == (width, depth, mlp_hidden) and heads in (None, size.heads):
            return name
    return None


@dataclass(frozen=True)
class ClipShape:
    """Frames and side of a clip, and where the positions of its tokens come from.

    `side` is in pixels: a number for square clips, else `(height, width)`. A token is a patch of `tubelet` frames x `patch` x
    `patch` pixels. `positions` is the rule for token grids other than the trained one, see `vit.positions_at`. `positions_from`
    is the trained grid if it differs from that of this clip and its positions are interpolated, else None.
    """

    frames: int = 16
    side: Side = 224
    tubelet: int = 2
    patch: int = 16
    channels: int = 3
    positions: Positions = "interpolate"
    positions_from: Grid | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "side", read_side(self.side))
        if self.positions_from is not None:
            object.__setattr__(self, "positions_from", tuple(self.positions_from))
        if self.frames % self.tubelet or self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"a clip of {self.frames} frames x {self.height} x {self.width} pixels cannot be split into patches of "
                f"{self.tubelet} frames x {self.patch} x {self.patch} pixels; frames, height and width must be multiples of "
                "these"
            )

    @property
    def height(self) -> int:
        """Height in pixels."""
        return height_width(self.side)[0]

    @property
    def width(self) -> int:
        """Width in pixels."""
        return height_width(self.side)[1]

    @property
    def pixels(self) -> str:
        """Frames, height and width for texts: `16 x 224 x 224`."""
        return f"{self.frames} x {self.height} x {self.width}"

    @property
    def grid(self) -> Grid:
        """Numbers of tokens in time, height and width."""
        return self.frames // self.tubelet, self.height // self.patch, self.width // self.patch

    @property
    def trained_grid(self) -> Grid:
        """The token grid of the training, from which other positions are interpolated."""
        return self.positions_from or self.grid

    @property
    def as_json(self) -> dict[str, Any]:
        """The shape as JSON values. Where the positions come from is left out if they are computed for this grid."""
        values = asdict(self) | {"side": list(self.side) if isinstance(self.side, tuple) else self.side}
        if self.positions_from:
            values["positions_from"] = list(self.positions_from)
        unused = {"positions": "interpolate", "positions_from": None}
        return {name: value for name, value in values.items() if name not in unused or value != unused[name]}

    def reshaped(self, frames: int | None, side: Side | None, positions: Positions | None = None) -> "ClipShape":
        """Return the clip with other frames, another side or another rule for positions, if given.

        Positions of the new clip are interpolated from the trained grid, or recomputed. Raises ValueError if patches do not
        divide the clip.
        """
        rule = positions or self.positions
        clip = replace(self, frames=frames or self.frames, side=side or self.side, positions=rule, positions_from=None)
        if rule == "interpolate" and self.trained_grid != clip.grid:
            clip = replace(clip, positions_from=self.trained_grid)
        return clip

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def patch_values(self) -> int:
        """Number of values in a patch: channels x tubelet x patch x patch."""
        return self.channels * self.tubelet * self.patch * self.patch


class ModelSettings(Settings):
    """Settings of a model: the name of its size, and its clip."""

    size: str = "base"
    frames: int = Field(16, ge=1)
    side: Side = Field(224, description="height and width of a clip in pixels; [height, width] if they differ")
    tubelet: int = Field(2, ge=1)
    patch: int | None = Field(None, ge=1, description="pixels; if left out, the size's own")
    layer_scale: float | None = Field(
        None, gt=0, description="initial value of a learned scale of each block's branches; if left out, no scale"
    )
    positions: Positions = Field(
        "interpolate",
        description="positions of a loaded checkpoint at clips of another shape than in its training: interpolated over time, "
        "rows and columns, or recomputed for the new grid of tokens",
    )
    positions_from: Grid | None = Field(
        None, description="the token grid [time, rows, columns] of such a training; set by the stage that opens the checkpoint"
    )

    def model_post_init(self, _context: object) -> None:
        if self.size not in SIZES:
            raise ValueError(f"there is no model size '{self.size}'; sizes are {', '.join(SIZES)}")
        self.clip  # raises ValueError if it cannot be split into patches  # noqa: B018

    @property
    def dimensions(self) -> Size:
        return replace(SIZES[self.size], layer_scale=self.layer_scale)

    @property
    def clip(self) -> ClipShape:
        return ClipShape(
            self.frames, self.side, self.tubelet, self.patch or self.dimensions.patch, positions=self.positions,
            positions_from=self.positions_from,
        )  # fmt: skip
