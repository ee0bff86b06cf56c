"""What a model is, as data: enough to build it anew before its weights are read."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from vmae_lab.models.sizes import ClipShape, Size

Readout = Literal["mean", "flat", "attentive"]


class ModelConfig(BaseModel):
    """`config.json` of a folder that `save_pretrained` wrote. Fields of other kinds of models are None.

    A VideoClassifier without `classes` is an encoder whose head is still to come.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: Literal["vmae_lab"] = "vmae_lab"
    model: Literal["VideoMAE", "VideoClassifier", "ActionDetector"]
    size: Size
    clip: ClipShape
    classes: int | None = Field(None, ge=1)
    readout: Readout | None = None
    normalise_target: bool | None = None
    target_eps: float | None = Field(None, ge=0)
    encoder_norm: bool = Field(
        True, description="false: a VideoMAE whose encoder has no final LayerNorm (transformers' default)"
    )

    @model_serializer(mode="wrap")
    def _without_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`encoder_norm` was added later: without it, files and the stages named by them stay as they were."""
        values: dict[str, Any] = handler(self)
        return values if not self.encoder_norm else {name: value for name, value in values.items() if name != "encoder_norm"}

    def reshaped(self, frames: int | None, side: int | None) -> ClipShape:
        """Its clip with other numbers of frames or pixels; None keeps its own. Raises ValueError where cubes do not fit."""
        clip = self.clip
        return ClipShape(frames or clip.frames, side or clip.side, clip.tubelet, clip.patch, clip.channels)
