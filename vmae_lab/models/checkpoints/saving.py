"""A model's folder, in our layout or in others', with the card that says what it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from huggingface_hub import ModelCardData
from torch import Tensor

from vmae_lab.models.checkpoints import remote_code, transformers
from vmae_lab.models.checkpoints.official import to_official_classifier, to_official_pretrain
from vmae_lab.models.checkpoints.opening import CONFIG, WEIGHTS
from vmae_lab.models.checkpoints.pickled import write_pickled
from vmae_lab.models.checkpoints.weights import CheckpointError, State, write_weights
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.vit import IMAGENET_MEAN, IMAGENET_STD
from vmae_lab.utils.atomic_io import make_folder, write_json, write_text

Layout = Literal["vmae_lab", "transformers", "official", "remote_code"]
OFFICIAL = "model.pth"


def save_checkpoint(state: Mapping[str, Tensor], config: ModelConfig, folder: Path, layout: Layout, story: str) -> Path:
    """Write weights (in our names), config and card, each whole or not at all; the folder is made. Returns the folder.

    Raises CheckpointError where the layout cannot hold the model, StorageError where the folder cannot be written.
    """
    if layout not in get_args(Layout):
        raise CheckpointError(f"there is no layout {layout!r}; layouts are {', '.join(get_args(Layout))}")
    state = dict(state)
    official: State = {} if layout == "vmae_lab" else _official(state, config, layout)
    make_folder(folder)
    if layout == "vmae_lab":
        write_weights(folder / WEIGHTS, state)
        write_json(folder / CONFIG, config.model_dump(mode="json"))
    elif layout == "official":
        write_pickled(folder / OFFICIAL, official)
    elif layout == "remote_code":
        write_weights(folder / WEIGHTS, remote_code.to_remote_code(official))
        write_json(folder / CONFIG, remote_code.config_of(config))
    else:
        write_weights(folder / WEIGHTS, transformers.to_transformers(official))
        write_json(folder / CONFIG, transformers.config_of(config))
        write_json(folder / "preprocessor_config.json", _preprocessing(config))
    write_text(folder / "README.md", model_card(config, layout, story))
    return folder


def _official(state: State, config: ModelConfig, layout: Layout) -> State:
    if config.model == "ActionDetector":
        raise CheckpointError(f"the layout '{layout}' knows no detectors of actions; save as 'vmae_lab'")
    if config.model == "VideoMAE":
        if layout == "remote_code":
            raise CheckpointError("the layout 'remote_code' is of encoders and classifiers; a model with a decoder has none")
        if layout == "official" and not config.encoder_norm:
            raise CheckpointError(
                "the layout 'official' has no encoder without a final LayerNorm; save as 'transformers' or 'vmae_lab'"
            )
        return to_official_pretrain(state, config.clip)
    if config.readout != "mean":
        raise CheckpointError(
            f"the readout '{config.readout}' is ours; the layout '{layout}' knows the mean over tokens alone. Save as "
            "'vmae_lab', or train with readout: mean"
        )
    return to_official_classifier(state, config.clip)


def _preprocessing(config: ModelConfig) -> dict[str, Any]:
    """How transformers' processor prepares frames: shorter side to the clip's, middle square, ImageNet normalisation."""
    side = config.clip.side
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True, "size": {"shortest_edge": side},
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD),
    }  # fmt: skip


def model_card(config: ModelConfig, layout: Layout, story: str) -> str:
    """The folder's README: what the model is, how it is opened, what it was trained on as far as `story` says it."""
    size, clip, classifies = config.size, config.clip, config.model == "VideoClassifier"
    title = {"VideoMAE": "Video masked autoencoder", "VideoClassifier": "Video classifier"}.get(config.model, "Action detector")
    data = ModelCardData(
        library_name="transformers" if layout == "transformers" else "vmae_lab",
        pipeline_tag="video-classification" if classifies else None,
        tags=["video", "videomae", "masked-autoencoder", "vmae_lab"],
    )
    head = f", {config.classes} classes" if config.classes else ""
    head += f", readout '{config.readout}'" if classifies else ""
    decoder = (
        f"; decoder {size.decoder_depth} blocks, {size.decoder_width} wide, {size.decoder_heads} heads"
        if config.model == "VideoMAE" else ""
    )  # fmt: skip
    return f"""---
{data.to_yaml()}
---

# {title} (VideoMAE V2)

- Model: encoder {size.depth} blocks, {size.width} wide, {size.heads} heads, MLP {size.mlp_hidden}{decoder}{head}.
- Clips: {clip.frames} frames of {clip.side} x {clip.side} pixels, cubes of {clip.tubelet} x {clip.patch} x {clip.patch};
  RGB, ImageNet-normalised.
- Layout: {layout}.

```python
{_how_to_open(config, layout)}
```

## How it was trained

{story.strip() or "Not said by who saved it."}

## What to mind

What it says of videos unlike those it was trained on is not known; evaluate it on yours first.
Method: VideoMAE V2 (Wang et al., CVPR 2023, arXiv 2303.16727), VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
"""


def _how_to_open(config: ModelConfig, layout: Layout) -> str:
    if layout == "transformers":
        name = transformers.config_of(config)["architectures"][0]
        return f'from transformers import {name}\n\nmodel = {name}.from_pretrained("this folder")'
    room = {"VideoMAE": "videomae", "VideoClassifier": "classifier"}.get(config.model, "detector")
    return f'from vmae_lab.models.{room} import {config.model}\n\nmodel = {config.model}.from_pretrained("this folder")'
