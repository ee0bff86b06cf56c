"""`config.json` of a saved model: enough to build it again before its weights are read."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vmae_lab.models.sizes import ClipShape, Size

Readout = Literal["mean", "flat", "attentive"]


class ModelConfig(BaseModel):
    """What a model is. Fields of other kinds of models are None.

    A VideoClassifier without `classes` is an encoder that has no head yet.
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
    class_names: tuple[str, ...] | None = Field(None, description="in label order; null if they are not known")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, but classes is {self.classes}")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `encoder_norm` if true and `class_names` if null: older files and stage keys do not have these fields."""
        unused = {"encoder_norm": True, "class_names": None}
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name not in unused or value != unused[name]}

    def reshaped(self, frames: int | None, side: int | None) -> ClipShape:
        """Its clip with another number of frames or pixels if given. Raises ValueError if patches do not fit."""
        clip = self.clip
        return ClipShape(frames or clip.frames, side or clip.side, clip.tubelet, clip.patch, clip.channels)
