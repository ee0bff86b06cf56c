"""Checkpoint formats: names of weights and settings of the model in each, and their conversion to ours and back.

- official: files of OpenGVLab/VideoMAEv2 and MCG-NJU/VideoMAE.
- transformers: Hugging Face's `VideoMAEForPreTraining`, `VideoMAEForVideoClassification` and `VideoMAEModel`.
- remote_code: the V2 models on the hub, which have official names after `model.` and their own code, which we do not run.

Conversions go through the official names: transformers <-> official <-> ours. Each table has (here, there) pairs, which are
used in both directions. `where` names the file in error messages.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import SIZES, ClipShape, Size, size_name
from vmae_lab.models.vit import NORM_EPS
from vmae_lab.utils.errors import UserError, first_of
from vmae_lab.utils.shapes import read_side

State = dict[str, Tensor]
Pairs = Sequence[tuple[str, str]]
Part = TypeVar("Part", Size, ClipShape)


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


# --- Names of weights: (ours, official) and (official, transformers) pairs of prefixes --------------------------------
EMBEDDING = "patch_embed.proj.weight"  # official: the kernel of a Conv3d
ENCODER = (
    ("encoder.embed.", "patch_embed.proj."),
    ("encoder.trunk.blocks.", "blocks."),
    ("encoder.trunk.norm.", "norm."),
)
PRETRAINING = (
    *((ours, f"encoder.{official}") for ours, official in ENCODER),
    ("bridge.", "encoder_to_decoder."),
    ("norm.", "decoder.norm."),
    ("head.", "decoder.head."),
)
CLASSIFIER = (*ENCODER, ("head.fc_norm.", "fc_norm."), ("head.head.", "head."))
SCALES = (("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"))  # layer scale, in a block
# One weight here is several there, in rows of q, k and v. None: zero here, no weight there. A k bias has no effect.
BIASES = ("attn.qkv.bias", ("attn.q_bias", None, "attn.v_bias"))

HF_ENCODER = (
    ("patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection."),
    ("blocks.", "videomae.encoder.layer."),
    ("norm.", "videomae.layernorm."),
)
HF_PRETRAINING = (
    *((f"encoder.{official}", theirs) for official, theirs in HF_ENCODER),
    ("decoder.blocks.", "decoder.decoder_layers."),
)
HF_CLASSIFIER = (*HF_ENCODER, ("head.", "classifier."))
HF_PROJECTIONS = ("attn.qkv.weight", ("attn.q.weight", "attn.k.weight", "attn.v.weight"))
HF_BLOCK = (  # within a block
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj.", "attention.output.dense."),
    ("attn.q_bias", "attention.attention.q_bias"),
    ("attn.v_bias", "attention.attention.v_bias"),
    ("attn.q.", "attention.attention.query."),
    ("attn.k.", "attention.attention.key."),
    ("attn.v.", "attention.attention.value."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)
# Only for reading: transformers 5 has these names in memory. Files have the names of version 4.
HF_IN_MEMORY = (
    ("attn.q_bias", "attention.attention.query.bias"),
    ("attn.v_bias", "attention.attention.value.bias"),
)
IN_BLOCK = re.compile(r"((?:.*\.)?(?:blocks|layer|decoder_layers)\.\d+\.)(.+)")


def is_pretraining(state: State) -> bool:
    """Whether the model has a decoder. The weights may have the names of any format."""
    return any(key == "mask_token" or key.startswith(("decoder.", "encoder_to_decoder.")) for key in state)


def from_official_pretrain(state: State) -> State:
    """Convert an official pre-training model to our names and shapes. Raises CheckpointError if a q or v bias is missing."""
    return _from_official(state, PRETRAINING)


def from_official_classifier(state: State) -> State:
    """Convert an official classifier (of the mean token) or encoder likewise."""
    return _from_official(state, CLASSIFIER)


def _from_official(state: State, pairs: Pairs) -> State:
    ours = _joined(_renamed(state, _inverse(pairs), _inverse(SCALES)), *BIASES)
    if "encoder.embed.weight" in ours:  # (D, C, t, p, p) -> (D, C*t*p*p)
        ours["encoder.embed.weight"] = ours["encoder.embed.weight"].flatten(1)
    if "mask_token" in ours:  # (1, 1, D) -> (D,)
        ours["mask_token"] = ours["mask_token"].flatten()
    return ours


def to_official(state: State, clip: ClipShape) -> State:
    """Convert a VideoMAE, or a VideoClassifier with the readout `mean`, to the official names and shapes."""
    names = PRETRAINING if is_pretraining(state) else CLASSIFIER
    kernel = (clip.channels, clip.tubelet, clip.patch, clip.patch)
    state = {**state, "encoder.embed.weight": state["encoder.embed.weight"].unflatten(1, kernel)}
    if "mask_token" in state:
        state["mask_token"] = state["mask_token"][None, None]
    return _renamed(_split(state, *BIASES), names, SCALES)


def from_transformers(theirs: State) -> State:
    """Convert a transformers model to the official names."""
    if any(key.startswith("embeddings.") for key in theirs):  # a VideoMAEModel
        theirs = {f"videomae.{key}": value for key, value in theirs.items()}
    names = HF_PRETRAINING if is_pretraining(theirs) else HF_CLASSIFIER
    return _joined(_renamed(theirs, _inverse(names), _inverse((*HF_IN_MEMORY, *HF_BLOCK))), *HF_PROJECTIONS)


def to_transformers(official: State) -> State:
    """Convert official names, of a pre-training model or a classifier, to those of transformers' files."""
    names = HF_PRETRAINING if is_pretraining(official) else HF_CLASSIFIER
    return _renamed(_split(official, *HF_PROJECTIONS), names, HF_BLOCK)


def without_encoder_prefix(state: State) -> State:
    """Remove the prefix `encoder.` of pre-training from official weights without a decoder; others are returned unchanged.

    Also removes the final LayerNorm of an encoder without a head, since a class head normalizes after pooling.
    """
    if is_pretraining(state):
        return state
    state = {key.removeprefix("encoder."): value for key, value in state.items()}
    has_head = any(key.startswith("head.") for key in state)
    return {key: value for key, value in state.items() if has_head or not key.startswith("norm.")}


def with_qkv_bias(official: State, settings: Mapping[str, Any], name: str, where: str) -> State:
    """Add zero q and v biases, which is the same function, if the setting `name` of a config is false.

    Raises CheckpointError if the setting is false but the weights have such biases.
    """
    if settings.get(name, True):
        return official
    if any(key.endswith((".q_bias", ".v_bias")) for key in official):
        raise CheckpointError(f"{where} has {name} {settings[name]!r}, but the weights next to it have q and v biases")
    stems = {key.removesuffix("qkv.weight"): value for key, value in official.items() if key.endswith(".attn.qkv.weight")}
    zeros = {
        f"{stem}{bias}": torch.zeros(len(value) // 3, dtype=value.dtype)
        for stem, value in stems.items()
        for bias in ("q_bias", "v_bias")
    }
    return {**official, **zeros}


def _renamed(state: State, pairs: Pairs, block: Pairs = ()) -> State:
    """Replace the first prefix in `pairs` that a name starts with; inside a block, also the first one in `block`."""
    renamed = {}
    for key, value in state.items():
        inside = IN_BLOCK.fullmatch(key)
        name = _replaced(inside[1], pairs) + _replaced(inside[2], block) if inside else _replaced(key, pairs)
        renamed[name] = value
    return renamed


def _replaced(name: str, pairs: Pairs) -> str:
    return next((new + name.removeprefix(old) for old, new in pairs if name.startswith(old)), name)


def _inverse(pairs: Pairs) -> Pairs:
    return [(there, here) for here, there in pairs]


def _split(state: State, whole: str, parts: Sequence[str | None]) -> State:
    """Split each weight whose name ends in `whole` into thirds with the endings `parts`. A third with None is dropped."""
    split: State = {}
    for key, value in state.items():
        if key.endswith(whole):
            stem = key.removesuffix(whole)
            split |= {f"{stem}{part}": rows for part, rows in zip(parts, value.chunk(3), strict=True) if part}
        else:
            split[key] = value
    return split


def _joined(state: State, whole: str, parts: Sequence[str | None]) -> State:
    """Undo `_split`. A third with None is zero. Raises CheckpointError if only some of the parts exist."""
    joined: State = {}
    for key, value in state.items():
        ending = next((part for part in parts if part and key.endswith(part)), None)
        if ending is None:
            joined[key] = value
            continue
        stem = key.removesuffix(ending)
        missing = [f"{stem}{part}" for part in parts if part and f"{stem}{part}" not in state]
        if missing:
            raise CheckpointError(f"the checkpoint has {key} but no {missing[0]}; it is incomplete")
        if ending == parts[0]:
            joined[stem + whole] = torch.cat([state[f"{stem}{part}"] if part else torch.zeros_like(value) for part in parts])
    return joined


# --- Size and clip from the shapes of official weights ----------------------------------------------------------------
CHANNELS = 3
HEAD_WIDTH = 64  # in all official decoders
OFFICIAL_LAYER_SCALE = 1e-5  # initial value for files that do not state it; the weights replace it


def has_layer_scale(official: State) -> bool:
    """Whether the blocks of official weights have layer scale."""
    return any(key.endswith(".gamma_1") for key in official)


def with_layer_scale(size: Size, official: State) -> Size:
    """Add layer scale to the size if the weights have it."""
    missing = size.layer_scale is None and has_layer_scale(official)
    return replace(size, layer_scale=OFFICIAL_LAYER_SCALE) if missing else size


def size_in(official: State, where: str, heads: int | None = None) -> Size:
    """Return the size of official weights. `heads` defaults to that of the known size with the same widths and depth.

    Raises CheckpointError if the weights are not a VideoMAE, or if the number of heads is unknown.
    """
    prefix = "encoder." if is_pretraining(official) else ""
    width, depth, _, _, patch = _encoder_shape(official, where)
    hidden = len(_require(official, f"{prefix}blocks.0.mlp.fc1.weight", where))
    known = size_name(width, depth, hidden)
    if known is None and heads is None:
        raise CheckpointError(
            f"{where} has {depth} blocks of width {width} with MLPs of {hidden}, which is none of {', '.join(SIZES)}. Its "
            "number of attention heads is unknown; pass size=Size(...)"
        )
    base = SIZES[known or "base"]
    size = replace(base, width=width, depth=depth, mlp_hidden=hidden, heads=heads or base.heads, patch=patch)
    if not prefix:
        return size
    decoder_width = len(_require(official, "encoder_to_decoder.weight", where))
    return replace(
        size, decoder_width=decoder_width, decoder_depth=_depth(official, "decoder.blocks."),
        decoder_heads=max(1, decoder_width // HEAD_WIDTH),
        decoder_mlp_hidden=len(_require(official, "decoder.blocks.0.mlp.fc1.weight", where)),
    )  # fmt: skip


def clip_in(official: State, arguments: Mapping[str, Any], where: str) -> ClipShape:
    """Return the clip of an official file: patch from the embedding's kernel, frames and side from the script's arguments.

    Without arguments: the paper's 16 frames and 224 pixels. `input_size` may be a pair (height, width), which our own files
    have for clips that are not square. Raises CheckpointError.
    """
    _, _, channels, tubelet, patch = _encoder_shape(official, where)
    refuse_others({"channels": channels}, {"channels": CHANNELS}, where)
    try:
        frames = int(arguments.get("num_frames") or 16) * int(arguments.get("num_segments") or 1)
        side = arguments.get("input_size") or 224
        return ClipShape(frames, read_side(side if isinstance(side, list | tuple) else int(side)), tubelet, patch, channels)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its arguments num_frames and input_size do not fit its model: {error}") from error


def official_arguments(clip: ClipShape, normalise_target: bool | None = None) -> dict[str, Any]:
    """Return the arguments that describe a model in an official file, without defaults: the official name and value of each.

    The defaults are clips of 16 frames of 224 pixels and normalized targets.
    """
    arguments = {} if (clip.frames, clip.side) == (16, 224) else {"num_frames": clip.frames, "input_size": clip.side}
    return {**arguments, **({"normlize_target": False} if normalise_target is False else {})}  # sic


def check_fit_of_config(size: Size, clip: ClipShape, official: State, where: str) -> None:
    """Raise CheckpointError if a config describes a different encoder than the weights next to it."""
    described = (size.width, size.depth, clip.channels, clip.tubelet, clip.patch, size.layer_scale is not None)
    names = ("width", "depth", "channels", "tubelet", "patch", "layer_scale")
    found = (*_encoder_shape(official, where), has_layer_scale(official))
    differences = [
        f"{name} {theirs} (weights: {ours})"
        for name, theirs, ours in zip(names, described, found, strict=True)
        if theirs != ours
    ]
    if differences:
        raise CheckpointError(
            f"{where} describes a different model than the weights next to it: {', '.join(differences)}. Put them in separate "
            "folders"
        )


def check_heads(size: Size, decoder: bool, where: str) -> None:
    """Raise CheckpointError if the number of heads does not divide the encoder's width or, if `decoder`, the decoder's."""
    parts = [("encoder", size.width, size.heads), ("decoder", size.decoder_width, size.decoder_heads)]
    for part, width, heads in parts if decoder else parts[:1]:
        if not 0 < heads <= width or width % heads:
            raise CheckpointError(f"{where}: {heads} attention heads do not divide the {part}'s width {width}")


def _encoder_shape(official: State, where: str) -> tuple[int, int, int, int, int]:
    """Return the width, depth, channels, tubelet and patch of the encoder."""
    key = next((key for key in official if key.endswith(EMBEDDING)), None)
    if key is None or official[key].ndim != 5:
        raise CheckpointError(
            f"{where} is not a VideoMAE: it has no {EMBEDDING} with five dimensions. It has: {first_of(list(official))}"
        )
    width, channels, tubelet, patch, _ = official[key].shape
    return width, _depth(official, key.removesuffix(EMBEDDING) + "blocks."), channels, tubelet, patch


def _depth(state: State, prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _require(state: State, key: str, where: str) -> Tensor:
    if key not in state:
        raise CheckpointError(f"{where} has no {key}; it is incomplete or not a VideoMAE")
    return state[key]


# --- Configs: names of settings (ours to theirs), and settings with one supported value --------------------------------
# Models here have the official eps of 1e-6. transformers' default is 1e-12, also for converted official weights.
LARGEST_EPS = 1e-5

HF_TYPE = "videomae"  # the `model_type` of transformers' configs
HF_CLIP = {
    "frames": "num_frames", "side": "image_size", "tubelet": "tubelet_size", "patch": "patch_size", "channels": "num_channels",
}  # fmt: skip
HF_SIZE = {
    "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "mlp_hidden": "intermediate_size",
    "decoder_width": "decoder_hidden_size", "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads", "decoder_mlp_hidden": "decoder_intermediate_size", "patch": "patch_size",
}  # fmt: skip
HF_FIXED = {"hidden_act": "gelu", "num_channels": CHANNELS}

CLASS_NAMES = "class_names"  # in our configs and in the official files that we write
TRAINING = "vmae_lab"  # in the files of other formats that we write: settings of ours that these formats do not have
TRAINING_FIELDS = ("target_eps", "stride", "sampling")
PLACEHOLDER = re.compile(r"LABEL_\d+")  # transformers' name of a class without a name

REMOTE_SECTION = "model_config"
REMOTE_CODE = "OpenGVLab/VideoMAEv2-Base"  # the repository with the model's code
REMOTE_CLIP = {**HF_CLIP, "side": "img_size", "channels": "in_chans"}
REMOTE_SIZE = {"width": "embed_dim", "depth": "depth", "heads": "num_heads"}
REMOTE_FIXED = {
    "cos_attn": False, "use_learnable_pos_emb": False, "use_mean_pooling": True, "norm_layer": "nn.LayerNorm",
    "in_chans": CHANNELS,
}  # fmt: skip


def training_settings(model: ModelConfig) -> dict[str, dict[str, Any]]:
    """Return the settings of a model for which other formats have no place, under the key TRAINING. Empty if none is known.

    The code of these formats ignores the key. Without them, a loaded model would have another target or other frames.
    """
    values = {name: value for name in TRAINING_FIELDS if (value := getattr(model, name)) is not None}
    return {TRAINING: values} if values else {}


def training_settings_in(config: Mapping[str, Any], contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `training_settings` stored: in an official file's contents, or in a config of any format."""
    stored = contents.get(TRAINING) or (config if config.get("library") == "vmae_lab" else config.get(TRAINING))
    return {name: stored.get(name) for name in TRAINING_FIELDS} if isinstance(stored, Mapping) else {}


def transformers_config(model: ModelConfig) -> dict[str, Any]:
    """Return the content of `config.json` for transformers."""
    config = {
        **_theirs(model.size, HF_SIZE),
        **_theirs(model.clip, HF_CLIP),
        **HF_FIXED,
        "model_type": HF_TYPE, "dtype": "float32", "layer_norm_eps": NORM_EPS, "qkv_bias": True,
        "architectures": ["VideoMAEForVideoClassification" if model.classes else "VideoMAEForPreTraining"],
        "use_mean_pooling": model.classes is not None or not model.encoder_norm,  # true: no final LayerNorm in the encoder
        **training_settings(model),
    }  # fmt: skip
    if model.classes is None:
        return {**config, "norm_pix_loss": bool(model.normalise_target)}
    return {**config, **_named_labels(model.class_names or [f"LABEL_{row}" for row in range(model.classes)])}


def _named_labels(names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of transformers' configs that name the classes."""
    return {
        "id2label": {str(row): name for row, name in enumerate(names)},
        "label2id": {name: row for row, name in enumerate(names)},
    }


def class_names_in(config: Mapping[str, Any], contents: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes in label order: of an official file's contents, or of a config of any format.

    None if there are none, or only transformers' placeholders (`LABEL_0`).
    """
    names = contents.get(CLASS_NAMES) or config.get(CLASS_NAMES)
    if not names and isinstance(config.get("id2label"), Mapping):
        labels = {str(row): name for row, name in config["id2label"].items()}
        names = [labels.get(str(row)) for row in range(len(labels))]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return None if all(PLACEHOLDER.fullmatch(name) for name in names) else tuple(names)


def read_transformers_config(config: Mapping[str, Any], where: str) -> tuple[Size, ClipShape]:
    """Return the size and clip in a transformers config. Raises CheckpointError if our model does not support its settings."""
    _check_settings(config, HF_FIXED, ("hidden_dropout_prob", "attention_probs_dropout_prob"), where)
    return _built(Size, config, HF_SIZE, where), _built(ClipShape, config, HF_CLIP, where)


def transformers_weights(state: State, config: Mapping[str, Any], where: str) -> tuple[State, bool]:
    """Convert a transformers model to official names. Also returns whether the encoder has a final LayerNorm.

    Applies `qkv_bias` (`qv_bias` in version 5) and `use_mean_pooling`. If the latter is true, the encoder has no final
    LayerNorm, unless the weights have one. Raises CheckpointError if settings and weights do not fit.
    """
    official = from_transformers(state)
    official = with_qkv_bias(official, config, "qkv_bias" if "qkv_bias" in config else "qv_bias", where)
    pooled = config.get("use_mean_pooling", True)
    if not pooled and any(key.startswith("head.") for key in official):
        raise CheckpointError(
            f"{where} has use_mean_pooling {pooled!r}: the model classifies by its first token. This package supports only "
            "classifiers that use the mean token"
        )
    return official, not pooled or any(key.removeprefix("encoder.").startswith("norm.") for key in official)


def remote_code_config(model: ModelConfig) -> dict[str, Any]:
    """Return the content of `config.json` for V2's remote code. It refers to the authors' code on the hub."""
    section = {
        **_theirs(model.size, REMOTE_SIZE),
        **_theirs(model.clip, REMOTE_CLIP),
        **REMOTE_FIXED,
        "num_classes": model.classes or 0,
        "init_values": model.size.layer_scale or 0.0,
        "mlp_ratio": (model.size.mlp_hidden + 0.5) / model.size.width,  # the 0.5 keeps int(width * ratio) exact
        "qkv_bias": True, "qk_scale": None, "layer_norm_eps": NORM_EPS, "with_cp": False,
        "drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0,
    }  # fmt: skip
    return {
        "model_type": "VideoMAEv2", "architectures": ["VideoMAEv2"], REMOTE_SECTION: section,
        "auto_map": {
            "AutoConfig": f"{REMOTE_CODE}--modeling_config.VideoMAEv2Config",
            "AutoModel": f"{REMOTE_CODE}--modeling_videomaev2.VideoMAEv2",
        },
        **(_named_labels(model.class_names) if model.class_names else {}),
        **training_settings(model),
    }  # fmt: skip


def read_remote_code_config(config: Mapping[str, Any], official: State, where: str) -> tuple[Size, ClipShape]:
    """Return the size and clip in a remote-code config. The MLP width comes from the weights. Raises CheckpointError."""
    section = config[REMOTE_SECTION]
    named = f"{where}: {REMOTE_SECTION}"
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{named} is {section!r}; it must contain the model's settings")
    _check_settings(section, REMOTE_FIXED, ("drop_rate", "attn_drop_rate"), named)
    found = size_in(official, where, section.get("num_heads"))
    scale = section.get("init_values") or None
    if (scale is not None) != has_layer_scale(official):
        found_scale = "no layer scale (gamma_1)" if scale else "layer scale (gamma_1)"
        raise CheckpointError(f"{named} has init_values {scale!r}, but the weights next to it have {found_scale}")
    clip = _built(ClipShape, section, REMOTE_CLIP, named)
    size = _built(partial(replace, found, layer_scale=scale), {"depth": found.depth, **section}, REMOTE_SIZE, named)
    check_heads(size, decoder=False, where=named)
    scale = (size.width / size.heads) ** -0.5
    if not math.isclose(section.get("qk_scale") or scale, scale):
        raise CheckpointError(
            f"{named} has qk_scale {section['qk_scale']!r}; this package supports only {scale!r}, the default"
        )
    return size, clip


def _theirs(values: Size | ClipShape, names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(values, ours) for ours, theirs in names.items()}


def _built(kind: Callable[..., Part], settings: Mapping[str, Any], names: Mapping[str, str], where: str) -> Part:
    try:
        return kind(**{ours: _number(theirs, settings[theirs]) for ours, theirs in names.items()})
    except KeyError as error:
        raise CheckpointError(f"{where} has no {error}; it must have {', '.join(names.values())}") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{where} is not the config of a VideoMAE ({', '.join(names.values())}): {error}") from error


def _number(name: str, setting: Any) -> int | tuple[int, int]:
    """Return a setting as a whole number; the side of a clip can be a pair (height, width). Raises TypeError, ValueError."""
    if isinstance(setting, list | tuple) and name in (HF_CLIP["side"], REMOTE_CLIP["side"]):
        return read_side(setting)
    if isinstance(setting, list | tuple) and name == HF_CLIP["patch"]:
        height, setting = setting
        if height != setting:
            raise ValueError(f"{name} is {height} x {setting} pixels; patches must be square")
    if int(setting) != setting:
        raise ValueError(f"{name} {setting!r} is not a whole number")
    return int(setting)


def refuse_others(settings: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError, naming the setting, if one of `settings` differs from its value in `fixed`."""
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            raise CheckpointError(f"{where} has {name} {settings[name]!r}; this package supports only {value!r}")


def _check_settings(settings: Mapping[str, Any], fixed: Mapping[str, Any], dropout: Sequence[str], where: str) -> None:
    """Raise CheckpointError, naming the setting, if our model does not support it. Warn if there is dropout."""
    refuse_others(settings, fixed, where)
    eps = settings.get("layer_norm_eps", NORM_EPS)
    if not isinstance(eps, int | float) or not 0 <= eps <= LARGEST_EPS:
        raise CheckpointError(
            f"{where} has layer_norm_eps {eps!r}; this package supports at most {LARGEST_EPS:g}, and uses {NORM_EPS:g}"
        )
    dropped = [f"{name} {settings[name]!r}" for name in dropout if settings.get(name)]
    if dropped:
        warnings.warn(f"{where} has {', '.join(dropped)}; this dropout is not applied in further training", stacklevel=5)
