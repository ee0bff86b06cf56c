"""`config.json` of a saved model: what is needed to build the model before its weights are loaded."""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.utils.counts import counted
from vmae_lab.utils.settings import Settings

Readout = Literal["mean", "flat", "attentive"]
# Facts about the classes and the training clips. They do not change a result, so they are not in stage keys. Checkpoints of
# other formats, and older files, do not have them.
UNHASHED = ("class_names", "stride", "sampling")


class ModelConfig(Settings):
    """Kind, size and clip of a model, and settings of some kinds, which are None for the other kinds.

    A VideoClassifier with `classes` None is an encoder without a head.
    """

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
    class_names: tuple[str, ...] | None = Field(None, description="in label order; null if they are not known")
    stride: int | None = Field(None, ge=1, description="a training clip took every stride-th frame; null if not known")
    sampling: Literal["dense", "sparse"] | None = Field(None, description="of a classifier's training clips")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"class_names has {counted(len(self.class_names), 'name')}, but classes is {self.classes}")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit fields that were added later if they have their defaults: older files and stage keys do not have them."""
        defaults = {"encoder_norm": True, **dict.fromkeys(UNHASHED)}
        values: dict[str, Any] = handler(self)
        values = {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}
        if self.size.layer_scale is None:
            values["size"] = {name: value for name, value in values["size"].items() if name != "layer_scale"}
        return {**values, "clip": self.clip.as_json}

    @property
    def hashed(self) -> Self:
        """The config without the fields that a stage's key leaves out."""
        return self.model_copy(update=dict.fromkeys(UNHASHED))
