"""Register all sizes in timm. After importing this module, `timm.create_model("vmae_base", num_classes=400)` works."""

from dataclasses import replace
from typing import Any

from timm.models import register_model
from torch import nn

from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.config import Readout
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.vit import VideoEncoder
from vmae_lab.utils.shapes import Side

__all__ = [f"vmae_{size}" for size in SIZES]  # timm looks up a module's models here


def _registered(name: str) -> Any:
    size = SIZES[name]

    def build(
        pretrained: bool = False, num_classes: int = 0, img_size: Side = 224, num_frames: int = 16, tubelet_size: int = 2,
        patch_size: int = size.patch, drop_path_rate: float = 0.0, drop_rate: float = 0.0, readout: Readout = "mean",
        init_values: float | None = None, **_ignored: Any,  # timm's own, e.g. pretrained_cfg
    ) -> nn.Module:  # fmt: skip
        """Return a VideoClassifier, or a VideoEncoder if `num_classes` is 0. Raises ValueError if `pretrained`."""
        if pretrained:
            raise ValueError(f"vmae_{name} has no published weights; load a checkpoint with VideoClassifier.from_pretrained")
        scaled, clip = replace(size, layer_scale=init_values), ClipShape(num_frames, img_size, tubelet_size, patch_size)
        if num_classes:
            return VideoClassifier(scaled, clip, num_classes, readout, drop_path_rate, dropout=drop_rate)
        return VideoEncoder(scaled, clip, drop_path_rate)

    build.__name__ = f"vmae_{name}"
    return register_model(build)


globals().update({f"vmae_{name}": _registered(name) for name in SIZES})
