"""Who does what where: the encoder as a backbone, features of boxes by RoIAlign, independent scores (VideoMAE on AVA)."""

from pathlib import Path
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import roi_align

from vmae_lab.models.checkpoints import CheckpointError, State, load_weights, open_checkpoint
from vmae_lab.models.checkpoints.save import Pretrained
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import VideoEncoder, initialise

BINS = 7  # of a box, along each side


class ActionDetector(Pretrained):
    """Scores of each class for each box of a clip's key frame.

    Tokens after the final LayerNorm -> mean over time -> RoIAlign (7 x 7, unaligned, as many samples a bin as fit) -> maximum
    over bins -> linear, whose initial weights are scaled by `init_scale`. Scores are logits of independent classes.
    """

    def __init__(self, size: Size, clip: ClipShape, classes: int, drop_path: float = 0.0, init_scale: float = 0.001):
        super().__init__()
        self.size, self.clip, self.classes = size, clip, classes
        self.encoder = VideoEncoder(size, clip, drop_path)
        initialise(self.encoder.trunk)
        self.head = nn.Linear(size.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)

    @classmethod
    def from_pretrained(cls, where: str | Path) -> Self:
        """Open a folder that `save_pretrained` wrote, for evaluation. Raises CheckpointError."""
        checkpoint = open_checkpoint(where)
        config = checkpoint.config
        if config.model != "ActionDetector":
            raise CheckpointError(f"{where} holds a {config.model}; an ActionDetector is trained from it: `vmae-lab detect`")
        if config.classes is None:
            raise CheckpointError(f"{where} does not say how many classes its detector has (classes in config.json)")
        model = cls(config.size, config.clip, config.classes)
        load_weights(model, checkpoint.state, str(where))
        return model.eval()

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(model="ActionDetector", size=self.size, clip=self.clip, classes=self.classes)

    def load_encoder(self, state: State) -> None:
        """Take up an encoder's weights. A classifier's has no final LayerNorm: the fresh one stays. Raises CheckpointError."""
        own = {key: value for key, value in self.encoder.state_dict().items() if key.startswith("trunk.norm.")}
        load_weights(self.encoder, {**own, **state}, "the pre-trained encoder")

    def forward(self, video: Tensor, boxes: Tensor) -> Tensor:
        """`(B, C, T, H, W)` of any height and width that cubes divide, boxes `(B, M, 4)` in pixels -> `(B, M, classes)`."""
        maps = self.encoder.maps(video).float().mean(2)
        rois = list(boxes.to(maps.dtype).unbind())
        bins = roi_align(maps, rois, BINS, spatial_scale=1 / self.clip.patch, sampling_ratio=0, aligned=False)
        return rearrange(self.head(bins.amax((2, 3))), "(b m) k -> b m k", b=len(video))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer numbers for timm's layer decay: embedding 0, block i is i + 1, what is not named here the last."""
        return {"stem": r"^encoder\.embed", "blocks": [(r"^encoder\.trunk\.blocks\.(\d+)", None)]}
