"""`config.json` of a saved model: enough to build it again before its weights are read."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vmae_lab.models.sizes import ClipShape, Size

Readout = Literal["mean", "flat", "attentive"]
# What a saved model tells about its classes and its training clips. It decides no result, so stage keys leave it out. Models
# of other formats, and files that were written before, do not have it.
UNHASHED = ("class_names", "stride", "sampling")


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
    stride: int | None = Field(None, ge=1, description="frames between two frames of a training clip; null if not known")
    sampling: Literal["dense", "sparse"] | None = Field(None, description="of a classifier's training clips")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, but classes is {self.classes}")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit fields that were added later while they are not used: older files and stage keys do not have them."""
        unused = {"encoder_norm": True, **dict.fromkeys(UNHASHED)}
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name not in unused or value != unused[name]}

    @property
    def hashed(self) -> Self:
        """The same without what a stage's key leaves out."""
        return self.model_copy(update=dict.fromkeys(UNHASHED))

    def reshaped(self, frames: int | None, side: int | None) -> ClipShape:
        """Its clip with another number of frames or pixels if given. Raises ValueError if patches do not fit."""
        clip = self.clip
        return ClipShape(frames or clip.frames, side or clip.side, clip.tubelet, clip.patch, clip.channels)
