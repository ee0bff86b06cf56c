"""Model sizes and clip shapes (VideoMAE V2, table 7 and the official configurations)."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Size:
    """Widths, depths, heads and MLP widths of an encoder and its decoder; `patch` is a patch's side in pixels."""

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_mlp_hidden: int
    patch: int = 16


SIZES: dict[str, Size] = {
    # micro, tiny and mini are ours, for clips of 32 pixels on two CPU cores; the others are the paper's.
    "micro": Size(64, 3, 2, 256, 48, 2, 3, 192, patch=8),
    "tiny": Size(96, 4, 3, 384, 48, 2, 3, 192, patch=8),
    "mini": Size(160, 6, 5, 640, 48, 2, 3, 192, patch=8),
    "small": Size(384, 12, 6, 1536, 192, 4, 3, 768),
    "base": Size(768, 12, 12, 3072, 384, 4, 6, 1536),
    "large": Size(1024, 24, 16, 4096, 512, 4, 8, 2048),
    "huge": Size(1280, 32, 16, 5120, 512, 4, 8, 2048),
    # mlp ratio 48/11 in both towers
    "giant": Size(1408, 40, 16, 6144, 512, 4, 8, 2234, patch=14),
}


@dataclass(frozen=True)
class ClipShape:
    """Frames and side (pixels) of a clip, and the patch that becomes a token: `tubelet` frames x `patch` x `patch` pixels."""

    frames: int = 16
    side: int = 224
    tubelet: int = 2
    patch: int = 16
    channels: int = 3

    def __post_init__(self) -> None:
        if self.frames % self.tubelet or self.side % self.patch:
            raise ValueError(
                f"a clip of {self.frames} frames x {self.side} pixels does not split into patches of "
                f"{self.tubelet} frames x {self.patch} pixels"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens in time, rows, columns."""
        return self.frames // self.tubelet, self.side // self.patch, self.side // self.patch

    @property
    def tokens(self) -> int:
        time, height, width = self.grid
        return time * height * width

    @property
    def patch_values(self) -> int:
        """Values in a patch: channels x tubelet x patch x patch."""
        return self.channels * self.tubelet * self.patch * self.patch


class ModelSettings(BaseModel):
    """A size and a clip."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: str = "base"
    frames: int = Field(16, ge=1)
    side: int = Field(224, ge=1, description="height and width of a clip, pixels")
    tubelet: int = Field(2, ge=1)
    patch: int | None = Field(None, ge=1, description="pixels; default: the size's own")

    def model_post_init(self, _context: object) -> None:
        if self.size not in SIZES:
            raise ValueError(f"no model size '{self.size}'; sizes are {', '.join(SIZES)}")
        self.clip  # raises ValueError if it does not split into patches  # noqa: B018

    @property
    def dimensions(self) -> Size:
        return SIZES[self.size]

    @property
    def clip(self) -> ClipShape:
        return ClipShape(self.frames, self.side, self.tubelet, self.patch or self.dimensions.patch)
