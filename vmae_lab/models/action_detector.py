"""Spatio-temporal action detection, as VideoMAE on AVA: RoIAlign on the encoder's feature maps, one logit per class."""

from pathlib import Path
from typing import Self

from einops import rearrange
from torch import Tensor
from torchvision.ops import roi_align

from vmae_lab.models.checkpoints import CheckpointError, State, load_weights, open_checkpoint
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import VideoEncoder, class_layer, initialise

BINS = 7  # RoIAlign bins per side of a box


class ActionDetector(Pretrained):
    """Predicts a logit for each class and each box in a clip's key frame. Classes are independent.

    Tokens after the final LayerNorm -> mean over time -> RoIAlign (7 x 7 bins, unaligned, adaptive sampling) -> maximum over
    bins -> linear. The linear layer's initial weights are scaled by `init_scale`. `class_names`, in the order of
    the logits, are saved with the weights; None if they are not known.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(self, size: Size, clip: ClipShape, classes: int, drop_path: float = 0.0, init_scale: float = 0.001):
        super().__init__()
        self.size, self.clip, self.classes = size, clip, classes
        self.encoder = VideoEncoder(size, clip, drop_path)
        initialise(self.encoder.trunk)
        self.head = class_layer(size.width, classes, init_scale)

    @classmethod
    def from_pretrained(cls, where: str | Path) -> Self:
        """Load a model from a folder that `save_pretrained` wrote, in evaluation mode. Raises CheckpointError."""
        checkpoint = open_checkpoint(where)
        config = checkpoint.config
        if config.model != "ActionDetector":
            raise CheckpointError(f"{where} is a {config.model}, no ActionDetector; train one from it with `vmae-lab detect`")
        if config.classes is None:
            raise CheckpointError(f"{where}: config.json has no `classes` (number of classes)")
        model = cls(config.size, config.clip, config.classes)
        load_weights(model, checkpoint.state, str(where))
        model.class_names = config.class_names
        return model.eval()

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            model="ActionDetector", size=self.size, clip=self.clip, classes=self.classes, class_names=self.class_names
        )

    def load_encoder(self, state: State) -> None:
        """Load an encoder's weights. If they have no final LayerNorm (a classifier's), keep ours. Raises CheckpointError."""
        own = {key: value for key, value in self.encoder.state_dict().items() if key.startswith("trunk.norm.")}
        load_weights(self.encoder, {**own, **state}, "the pre-trained encoder")

    def forward(self, video: Tensor, boxes: Tensor) -> Tensor:
        """Video `(B, C, T, H, W)` and boxes `(B, M, 4)` in pixels -> logits `(B, M, classes)`.

        Height and width are any multiples of the patch.
        """
        maps = self.encoder.maps(video).float().mean(2)  # (B, D, H', W')
        rois = list(boxes.to(maps.dtype).unbind())
        bins = roi_align(maps, rois, BINS, spatial_scale=1 / self.clip.patch, sampling_ratio=0, aligned=False)
        return rearrange(self.head(bins.amax((2, 3))), "(b m) k -> b m k", b=len(video))  # bins: (B*M, D, 7, 7)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Group layers for timm's layer decay: the embedding is layer 0, block i is layer i + 1, the rest is the last layer."""
        return {"stem": r"^encoder\.embed", "blocks": [(r"^encoder\.trunk\.blocks\.(\d+)", None)]}
