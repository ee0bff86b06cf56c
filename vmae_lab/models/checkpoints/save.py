"""Save a model to a folder: weights and config in any format, and a model card."""

import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import HfApi, ModelCardData
from packaging.version import Version
from safetensors.torch import save_file
from torch import Tensor, nn

from vmae_lab.models.checkpoints import formats
from vmae_lab.models.checkpoints.formats import CheckpointError, State
from vmae_lab.models.checkpoints.load import CONFIG, WEIGHTS
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.vit import IMAGENET_MEAN, IMAGENET_STD
from vmae_lab.utils.atomic_io import atomic_write, make_folder, write_json, write_text
from vmae_lab.utils.counts import counted

Layout = Literal["vmae_lab", "transformers", "official", "remote_code"]
OFFICIAL = "model.pth"
# These versions of transformers ignore q_bias and v_bias, the names in all files of VideoMAE: from the first one to before the
# second one (huggingface/transformers#48675). The biases are then zero, and the outputs wrong.
WITHOUT_BIASES = (Version("5.5.1"), Version("5.18.0"))
BIASES_LOADED_BY = "Use transformers before 5.5.1, or 5.18.0 and later: the versions between them drop the biases of q and v."


class Pretrained(nn.Module):
    """Base class of models that can be saved to a folder and pushed to the hub."""

    @property
    def config(self) -> ModelConfig:
        """The content of config.json: what is needed to build the model again."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, layout: Layout = "vmae_lab", story: str = "") -> Path:
        """Write weights, config and a model card to a folder. Returns the folder.

        `layout` is `vmae_lab` (ours), `transformers` (VideoMAEForPreTraining or VideoMAEForVideoClassification), `official` (a
        .pth file for the paper's code) or `remote_code` (V2 models on the hub). `story` is Markdown for the card: how the model
        was trained. Raises CheckpointError if the layout does not support the model, StorageError if the folder cannot be
        written.
        """
        return save_checkpoint(self.state_dict(), self.config, Path(folder), layout, story)

    def push_to_hub(self, repository: str, layout: Layout = "vmae_lab", story: str = "", private: bool = True) -> str:
        """Upload the folder of `save_pretrained` to the hub as `owner/name`, after `hf auth login`. Returns its URL."""
        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, layout, story)
            url = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Model in the layout '{layout}'")
        return str(url)


def save_checkpoint(state: Mapping[str, Tensor], config: ModelConfig, folder: Path, layout: Layout, story: str) -> Path:
    """Write weights (given in our names), config and card to a folder, each file atomically. Returns the folder.

    Raises CheckpointError if the layout does not support the model, StorageError if the folder cannot be written.
    """
    if layout not in get_args(Layout):
        raise CheckpointError(f"there is no layout {layout!r}; layouts are {', '.join(get_args(Layout))}")
    check_layout(config, layout)
    converted = dict(state) if layout == "vmae_lab" else formats.to_official(dict(state), config.clip)
    make_folder(folder)
    if layout == "official":
        with atomic_write(folder / OFFICIAL) as temporary:
            names = {formats.CLASS_NAMES: list(config.class_names)} if config.class_names else {}
            arguments = formats.official_arguments(config.clip, config.normalise_target)
            others = {**names, **formats.training_settings(config), **({"args": arguments} if arguments else {})}
            torch.save({"model": _detached(converted), **others}, temporary)
    elif layout == "remote_code":
        write_weights(folder / WEIGHTS, {f"model.{key}": value for key, value in converted.items()})
        write_json(folder / CONFIG, formats.remote_code_config(config))
    elif layout == "transformers":
        _warn_of_dropped_biases()
        write_weights(folder / WEIGHTS, formats.to_transformers(converted))
        write_json(folder / CONFIG, formats.transformers_config(config))
        write_json(folder / "preprocessor_config.json", _preprocessing(config))
    else:
        write_weights(folder / WEIGHTS, converted)
        write_json(folder / CONFIG, config.model_dump(mode="json"))
    write_text(folder / "README.md", model_card(config, layout, story))
    return folder


def check_layout(config: ModelConfig, layout: Layout) -> None:
    """Raise CheckpointError if a layout does not support a model."""
    if layout == "vmae_lab":
        return
    if config.model == "ActionDetector":
        raise CheckpointError(f"the layout '{layout}' does not support action detectors; save as 'vmae_lab'")
    if config.clip.positions_from is not None:
        raise CheckpointError(
            f"the layout '{layout}' has no interpolated positions: its code computes them for the clip. Save as 'vmae_lab', or "
            "load the checkpoint with positions='recompute' (in a recipe model.positions)"
        )
    if layout == "transformers" and config.size.layer_scale is not None:
        raise CheckpointError("the layout 'transformers' does not support layer scale; save as 'official' or 'vmae_lab'")
    if config.model == "VideoMAE" and layout == "remote_code":
        raise CheckpointError("the layout 'remote_code' does not support a decoder; save as 'official' or 'vmae_lab'")
    if config.model == "VideoMAE" and layout == "official" and not config.encoder_norm:
        raise CheckpointError(
            "the layout 'official' needs an encoder with a final LayerNorm; save as 'transformers' or 'vmae_lab'"
        )
    if config.model == "VideoClassifier" and config.readout != "mean":
        raise CheckpointError(
            f"the layout '{layout}' supports only the readout 'mean', not '{config.readout}'; save as 'vmae_lab', or train "
            "with readout: mean"
        )


def _warn_of_dropped_biases() -> None:
    """Warn if the installed transformers would load a wrong model from the files of its layout."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        return
    first, fixed = WITHOUT_BIASES
    if first <= Version(installed) < fixed:
        warnings.warn(
            f"the installed transformers {installed} would load this model without the biases of q and v. {BIASES_LOADED_BY}",
            stacklevel=4,
        )


def write_weights(path: Path, state: State) -> None:
    """Write a safetensors file atomically. Raises StorageError."""
    with atomic_write(path) as temporary:
        save_file(_detached(state), temporary, metadata={"format": "pt"})  # required by transformers


def _detached(state: State) -> State:
    """Copy all tensors to the CPU. safetensors does not accept tensors that share memory."""
    return {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}


def _preprocessing(config: ModelConfig) -> dict[str, Any]:
    """Return the config of transformers' image processor: resize the short side, center crop, ImageNet normalization.

    The short side becomes the longer one of the clip, so that the crop is inside the frame.
    """
    clip = config.clip
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True, "size": {"shortest_edge": max(clip.height, clip.width)},
        "do_center_crop": True, "crop_size": {"height": clip.height, "width": clip.width},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD),
    }  # fmt: skip


# --- Model card -------------------------------------------------------------------------------------------------------
KINDS = {  # title and module of each kind of model
    "VideoMAE": ("Video masked autoencoder", "videomae"),
    "VideoClassifier": ("Video classifier", "classifier"),
    "ActionDetector": ("Action detector", "action_detector"),
}


def model_card(config: ModelConfig, layout: Layout, story: str) -> str:
    """Return the folder's README: what the model is, how to load it, and how it was trained (`story`)."""
    size = config.size
    clip = config.clip
    title, module = KINDS[config.model]
    classifies = config.model == "VideoClassifier"
    data = ModelCardData(
        library_name="transformers" if layout == "transformers" else "vmae_lab",
        pipeline_tag="video-classification" if classifies else None,
        tags=["video", "videomae", "masked-autoencoder", "vmae_lab"],
    )
    parts = [
        f"encoder: {counted(size.depth, 'block')}, width {size.width}, {counted(size.heads, 'head')}, MLP {size.mlp_hidden}"
    ]
    if config.model == "VideoMAE":
        parts[0] += (
            f"; decoder: {counted(size.decoder_depth, 'block')}, width {size.decoder_width}, "
            f"{counted(size.decoder_heads, 'head')}"
        )
    parts += [counted(config.classes, "class")] if config.classes else []
    parts += [f"readout '{config.readout}'"] if classifies else []
    source = f"vmae_lab.models.{module}"
    kind: str = config.model
    note = ""
    if layout == "transformers":
        source = "transformers"
        kind = formats.transformers_config(config)["architectures"][0]
        note = f"\n{BIASES_LOADED_BY}\n"
    return f"""---
{data.to_yaml()}
---

# {title} (VideoMAE V2)

- Model: {", ".join(parts)}.
- Clips: {clip.frames} frames of {clip.height} x {clip.width} pixels, patches of {clip.tubelet} x {clip.patch} x {clip.patch};
  RGB, ImageNet-normalized.
- Layout: {layout}.

```python
from {source} import {kind}

model = {kind}.from_pretrained("this folder")
```
{note}
## How it was trained

{story.strip() or "Not described by the author."}

## Limitations

Predictions are unreliable for videos that differ from the training data. Evaluate the model on your own videos first.
Method: VideoMAE V2 (Wang et al., CVPR 2023, arXiv 2303.16727), VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
"""
