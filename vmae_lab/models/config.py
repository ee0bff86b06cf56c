"""`config.json` of a saved model: what is needed to build the model before its weights are loaded."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from vmae_lab.models.sizes import ClipShape, Size

Readout = Literal["mean", "flat", "attentive"]


class ModelConfig(BaseModel):
    """Kind, size and clip of a model, and settings of some kinds, which are None for the other kinds.

    A VideoClassifier with `classes` None is an encoder without a head.
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
        True, description="whether a VideoMAE's encoder has a final LayerNorm; transformers' default is false"
    )

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit fields that were added later if they have their defaults: older files and stage keys do not have them."""
        values: dict[str, Any] = handler(self)
        if self.encoder_norm:
            del values["encoder_norm"]
        if self.size.layer_scale is None:
            values["size"] = {name: value for name, value in values["size"].items() if name != "layer_scale"}
        return values

    def reshaped(self, frames: int | None, side: int | None) -> ClipShape:
        """The clip, with other `frames` or `side` if given. Raises ValueError if patches do not divide it."""
        clip = self.clip
        return ClipShape(frames or clip.frames, side or clip.side, clip.tubelet, clip.patch, clip.channels)
