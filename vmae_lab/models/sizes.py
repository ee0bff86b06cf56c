"""Model sizes and clip shapes (VideoMAE V2, table 7 and the official configurations)."""

from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field


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


@dataclass(frozen=True)
class ClipShape:
    """Frames and side (pixels) of a clip. A token is a patch of `tubelet` frames x `patch` x `patch` pixels."""

    frames: int = 16
    side: int = 224
    tubelet: int = 2
    patch: int = 16
    channels: int = 3

    def __post_init__(self) -> None:
        if self.frames % self.tubelet or self.side % self.patch:
            raise ValueError(
                f"a clip of {self.frames} frames x {self.side} pixels cannot be split into patches of "
                f"{self.tubelet} frames x {self.patch} pixels; frames and side must be multiples of these"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Numbers of tokens in time, height and width."""
        return self.frames // self.tubelet, self.side // self.patch, self.side // self.patch

    @property
    def tokens(self) -> int:
        time, height, width = self.grid
        return time * height * width

    @property
    def patch_values(self) -> int:
        """Number of values in a patch: channels x tubelet x patch x patch."""
        return self.channels * self.tubelet * self.patch * self.patch


class ModelSettings(BaseModel):
    """Settings of a model: the name of its size, and its clip."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: str = "base"
    frames: int = Field(16, ge=1)
    side: int = Field(224, ge=1, description="height and width of a clip, pixels")
    tubelet: int = Field(2, ge=1)
    patch: int | None = Field(None, ge=1, description="pixels; if left out, the size's own")
    layer_scale: float | None = Field(
        None, gt=0, description="initial value of a learned scale of each block's branches; if left out, no scale"
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
        return ClipShape(self.frames, self.side, self.tubelet, self.patch or self.dimensions.patch)
