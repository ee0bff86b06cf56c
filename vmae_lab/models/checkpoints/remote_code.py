"""The layout of the V2 models on the hub that bring their own code: official names below `model.`, and a config of theirs.

That code is not part of transformers: who opens such a folder there has to trust it. We read the weights without it.
"""

from typing import Any

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


def clip_and_heads(config: dict[str, Any], where: str) -> tuple[ClipShape, int]:
    """Clip shape and attention heads that such a config names. Raises CheckpointError where it is another model than ours."""
    section = config[SECTION]
    for name, ours in (("cos_attn", False), ("use_learnable_pos_emb", False), ("use_mean_pooling", True), ("init_values", 0.0)):
        if section.get(name, ours) != ours:
            raise CheckpointError(f"{where} has {SECTION}.{name} {section[name]!r}; models of this package have {ours!r}")
    try:
        clip = ClipShape(
            section["num_frames"], section["img_size"], section["tubelet_size"], section["patch_size"], section["in_chans"]
        )  # fmt: skip
        return clip, section["num_heads"]
    except KeyError as error:
        raise CheckpointError(f"{where} has no {SECTION}.{error.args[0]}, which tells how the model is built") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} does not describe a model of ours: {error}") from error
