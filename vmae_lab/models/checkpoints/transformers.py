"""Hugging Face transformers' VideoMAE: its names and its config, from and to the official names and our sizes.

Files keep version 4's names of the q and v biases (`q_bias`, `v_bias`): version 5 writes and reads those, and calls them
`query.bias` and `value.bias` in memory only. Both are read. transformers has no decoder mask, and norms with an epsilon
of 1e-5 where a decoder or a pooled mean ends, ours with the official 1e-6.
"""

import re
from typing import Any

import torch

from vmae_lab.models.checkpoints.official import is_pretraining, renamed, turned, with_zero_biases
from vmae_lab.models.checkpoints.settings import COLOURS, check_eps, refuse_others, warn_of_dropout
from vmae_lab.models.checkpoints.weights import CheckpointError, State
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import NORM_EPS

# official -> transformers, by how a key begins
SHARED = {"decoder.blocks.": "decoder.decoder_layers."}
ENCODER = {
    "patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
    "blocks.": "videomae.encoder.layer.",
    "norm.": "videomae.layernorm.",
}
PRETRAINING = {f"encoder.{official}": theirs for official, theirs in ENCODER.items()} | SHARED
CLASSIFIER = ENCODER | {"head.": "classifier."}
# inside a block
BLOCK = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "attn.proj.": "attention.output.dense.",
    "attn.q_bias": "attention.attention.q_bias",
    "attn.v_bias": "attention.attention.v_bias",
    "attn.qkv.weight": "attention.attention.query.weight",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
OF_BLOCK = re.compile(r"((?:.*\.)?(?:blocks|layer|decoder_layers)\.\d+\.)(.+)")
QUERY = "attention.attention.query.weight"
PROJECTIONS = ("query", "key", "value")


def to_transformers(official: State) -> State:
    """An official state dictionary, of pre-training or of a classifier, in the names of transformers' files."""
    names = PRETRAINING if is_pretraining(official) else CLASSIFIER
    theirs: State = {}
    for key, value in official.items():
        name = _renamed(key, names, BLOCK)
        if name.endswith(QUERY):
            stem = name.removesuffix("query.weight")
            theirs |= {f"{stem}{part}.weight": rows for part, rows in zip(PROJECTIONS, value.chunk(3), strict=True)}
        else:
            theirs[name] = value
    return theirs


def from_transformers(theirs: State) -> State:
    """The weights of a transformers file in the official names."""
    names = turned(PRETRAINING if is_pretraining(theirs) else CLASSIFIER)
    official = {}
    for key, value in theirs.items():
        if key.endswith(QUERY):
            stem = key.removesuffix("query.weight")
            value = torch.cat([theirs[f"{stem}{part}.weight"] for part in PROJECTIONS])
        elif key.endswith(("attention.attention.key.weight", "attention.attention.value.weight")):
            continue
        official[_renamed(key, names, turned(BLOCK))] = value
    return official


def _renamed(key: str, names: dict[str, str], block: dict[str, str]) -> str:
    inside = OF_BLOCK.fullmatch(key)
    return renamed(inside[1], names) + renamed(inside[2], block) if inside else renamed(key, names)


def as_in_files(state: State) -> State:
    """transformers' names as its files have them, also where they are those of version 5 in memory."""
    for ending, name in (("query.bias", "q_bias"), ("value.bias", "v_bias")):
        long, short = f"attention.attention.{ending}", f"attention.attention.{name}"
        state = {key.removesuffix(long) + short if key.endswith(long) else key: value for key, value in state.items()}
    return state


def config_of(model: ModelConfig) -> dict[str, Any]:
    """`config.json` for transformers: the class that reads it, and every number it needs."""
    size, clip, classes = model.size, model.clip, model.classes
    config: dict[str, Any] = {
        "model_type": "videomae",
        "architectures": ["VideoMAEForVideoClassification" if classes else "VideoMAEForPreTraining"],
        "image_size": clip.side,
        "patch_size": clip.patch,
        "num_channels": clip.channels,
        "num_frames": clip.frames,
        "tubelet_size": clip.tubelet,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": size.mlp_hidden,
        "decoder_hidden_size": size.decoder_width,
        "decoder_num_hidden_layers": size.decoder_depth,
        "decoder_num_attention_heads": size.decoder_heads,
        "decoder_intermediate_size": size.decoder_mlp_hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": True,
        "use_mean_pooling": classes is not None or not model.encoder_norm,  # then the encoder has no final LayerNorm
        "dtype": "float32",
    }
    if classes is None:
        return config | {"norm_pix_loss": bool(model.normalise_target)}
    labels = {str(row): f"LABEL_{row}" for row in range(classes)}
    return config | {"id2label": labels, "label2id": {name: int(row) for row, name in labels.items()}}


def shapes_of(config: dict[str, Any], where: str) -> tuple[Size, ClipShape]:
    """Size and clip that a transformers config describes. Raises CheckpointError if it is another function than ours."""
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(
            f"{where} has the activation {config['hidden_act']!r} (hidden_act); VideoMAE's, and ours, is 'gelu'"
        )
    refuse_others(config, {"num_channels": COLOURS}, where)
    check_eps(config, "layer_norm_eps", where)
    warn_of_dropout(config, ("hidden_dropout_prob", "attention_probs_dropout_prob"), where)
    try:
        side, patch = _square(config["image_size"]), _square(config["patch_size"])
        size = Size(
            config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"], config["intermediate_size"],
            config["decoder_hidden_size"], config["decoder_num_hidden_layers"], config["decoder_num_attention_heads"],
            config["decoder_intermediate_size"], patch,
        )  # fmt: skip
        clip = ClipShape(config["num_frames"], side, config["tubelet_size"], patch, config["num_channels"])
    except KeyError as error:
        raise CheckpointError(f"{where} has no {error}; transformers writes it with every VideoMAE") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where} does not describe a model of this package (image_size, patch_size, num_frames, tubelet_size): {error}"
        ) from error
    return size, clip


def official_weights(state: State, config: dict[str, Any], where: str) -> tuple[State, bool]:
    """The weights of a transformers file in the official names, and whether the encoder ends in a LayerNorm.

    Follows `qkv_bias` (in version 5 `qv_bias`) and `use_mean_pooling`: with it the encoder has no final LayerNorm, also in
    pre-training; one that is among the weights is used all the same. Raises CheckpointError if settings and weights differ.
    """
    if any(key.startswith("embeddings.") for key in state):  # a bare VideoMAEModel
        state = {f"videomae.{key}": value for key, value in state.items()}
    official = from_transformers(as_in_files(state))
    setting = "qkv_bias" if "qkv_bias" in config else "qv_bias"
    if not config.get(setting, True):
        if any(key.endswith((".q_bias", ".v_bias")) for key in official):
            raise CheckpointError(f"{where} has {setting} {config[setting]!r}, but the weights next to it have such biases")
        official = with_zero_biases(official)
    pooled = config.get("use_mean_pooling", True)
    if not pooled and any(key.startswith("classifier.") for key in state):
        raise CheckpointError(
            f"{where} has use_mean_pooling {pooled!r}: the model classifies by its first token. Classifiers of this package "
            "read the mean token"
        )
    return official, not pooled or any(key.startswith("videomae.layernorm.") for key in state)


def _square(sides: int | list[int]) -> int:
    if isinstance(sides, int):
        return sides
    height, width = sides
    if height != width:
        raise ValueError(f"{height} x {width} pixels; clips and cubes are square")
    return height
