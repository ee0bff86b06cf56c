"""The paper's encoders and ours in timm's registry: `timm.create_model("vmae_base", num_classes=400)`.

Importing this module registers them.
"""

from typing import Any

from timm.models import register_model
from torch import nn

from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.config import Readout
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.vit import VideoEncoder

__all__ = [f"vmae_{size}" for size in SIZES]  # where timm looks up what a module registers


def _registered(name: str) -> Any:
    size = SIZES[name]

    def build(
        pretrained: bool = False,
        num_classes: int = 0,
        img_size: int = 224,
        num_frames: int = 16,
        tubelet_size: int = 2,
        patch_size: int = size.patch,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        readout: Readout = "mean",
        **_timms_own: Any,  # pretrained_cfg and the like
    ) -> nn.Module:
        """A VideoClassifier, or with `num_classes` 0 a VideoEncoder. Raises ValueError where `pretrained`."""
        if pretrained:
            raise ValueError(f"vmae_{name} comes without weights; VideoClassifier.from_pretrained opens weights of any layout")
        clip = ClipShape(num_frames, img_size, tubelet_size, patch_size)
        if num_classes:
            return VideoClassifier(size, clip, num_classes, readout, drop_path_rate, dropout=drop_rate)
        return VideoEncoder(size, clip, drop_path_rate)

    build.__name__ = f"vmae_{name}"
    return register_model(build)


globals().update({f"vmae_{name}": _registered(name) for name in SIZES})
