"""What a model is, as data: enough to build it anew before its weights are read."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.models.sizes import ClipShape, Size

Readout = Literal["mean", "flat", "attentive"]


class ModelConfig(BaseModel):
    """`config.json` of a folder that `save_pretrained` wrote. Fields of the other kind of model are None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: Literal["vmae_lab"] = "vmae_lab"
    model: Literal["VideoMAE", "VideoClassifier"]
    size: Size
    clip: ClipShape
    classes: int | None = Field(None, ge=1)
    readout: Readout | None = None
    normalise_target: bool | None = None
    target_eps: float | None = Field(None, ge=0)
