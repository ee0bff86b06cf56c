"""The layout of the V2 models on the hub that bring their own code: official names below `model.`, and a config of theirs.

That code is not part of transformers: who opens such a folder there has to trust it. We read the weights without it.
"""

import math
from typing import Any

from vmae_lab.models.checkpoints.official import with_zero_biases
from vmae_lab.models.checkpoints.settings import COLOURS, check_eps, refuse_others, warn_of_dropout
from vmae_lab.models.checkpoints.weights import CheckpointError, State
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import ClipShape
from vmae_lab.models.vit import NORM_EPS

PREFIX = "model."
SECTION = "model_config"
CODE = "OpenGVLab/VideoMAEv2-Base"  # the repository whose code builds the model


def to_remote_code(official: State) -> State:
    """An official classifier's state dictionary in the names of that layout."""
    return {PREFIX + key: value for key, value in official.items()}


def config_of(model: ModelConfig) -> dict[str, Any]:
    """`config.json` of that layout, pointing at its authors' code."""
    size, clip = model.size, model.clip
    return {
        "model_type": "VideoMAEv2",
        "architectures": ["VideoMAEv2"],
        "auto_map": {
            "AutoConfig": f"{CODE}--modeling_config.VideoMAEv2Config",
            "AutoModel": f"{CODE}--modeling_videomaev2.VideoMAEv2",
        },
        SECTION: {
            "img_size": clip.side,
            "patch_size": clip.patch,
            "in_chans": clip.channels,
            "num_classes": model.classes or 0,
            "embed_dim": size.width,
            "depth": size.depth,
            "num_heads": size.heads,
            # The half keeps int(width * ratio), which is what that code computes, from falling below.
            "mlp_ratio": (size.mlp_hidden + 0.5) / size.width,
            "qkv_bias": True,
            "qk_scale": None,
            "drop_rate": 0.0,
            "attn_drop_rate": 0.0,
            "drop_path_rate": 0.0,
            "norm_layer": "nn.LayerNorm",
            "layer_norm_eps": NORM_EPS,
            "init_values": 0.0,
            "use_learnable_pos_emb": False,
            "tubelet_size": clip.tubelet,
            "num_frames": clip.frames,
            "use_mean_pooling": True,
            "with_cp": False,
            "cos_attn": False,
        },
    }


OURS = {
    "cos_attn": False, "use_learnable_pos_emb": False, "use_mean_pooling": True, "init_values": 0.0,
    "norm_layer": "nn.LayerNorm", "in_chans": COLOURS,
}  # fmt: skip


def clip_and_heads(config: dict[str, Any], where: str) -> tuple[ClipShape, int]:
    """Clip shape and attention heads that such a config names. Raises CheckpointError if it is another function than ours."""
    section, where = config[SECTION], f"{where}: {SECTION}"
    if not isinstance(section, dict):
        raise CheckpointError(f"{where} is {section!r}; the settings of a model were expected")
    refuse_others(section, OURS, where)
    check_eps(section, "layer_norm_eps", where)
    warn_of_dropout(section, ("drop_rate", "attn_drop_rate"), where)
    try:
        clip = ClipShape(
            section["num_frames"], section["img_size"], section["tubelet_size"], section["patch_size"], section["in_chans"]
        )  # fmt: skip
        heads = int(section["num_heads"])
        usual = (section["embed_dim"] / heads) ** -0.5
    except KeyError as error:
        raise CheckpointError(f"{where} has no {error.args[0]}, which tells how the model is built") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{where} does not describe a model of this package: {error}") from error
    if not math.isclose(section.get("qk_scale") or usual, usual):
        raise CheckpointError(
            f"{where} has qk_scale {section['qk_scale']!r}; models of this package have {usual!r}, its default"
        )
    return clip, heads


def official_weights(state: State, config: dict[str, Any], where: str) -> State:
    """The weights in the official names; follows `qkv_bias`. Raises CheckpointError if it and the weights differ."""
    if config[SECTION].get("qkv_bias", True):
        return state
    if any(key.endswith((".q_bias", ".v_bias")) for key in state):
        raise CheckpointError(f"{where}: {SECTION} has qkv_bias false, but the weights next to it have such biases")
    return with_zero_biases(state)
