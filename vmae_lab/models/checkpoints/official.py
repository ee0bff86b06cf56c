"""The official VideoMAE layout (V1 and V2; OpenGVLab/VideoMAEv2, MCG-NJU/VideoMAE) in our names, and ours in its names.

The same functions under other names, but for three tensors: the cube embedding is a Conv3d kernel there; q and v have
biases of their own and k none (which cannot change a softmax); the mask token has two leading dimensions of one.
"""

import torch
from torch import Tensor

from vmae_lab.models.checkpoints.weights import CheckpointError, State
from vmae_lab.models.sizes import ClipShape

EMBEDDING = "patch_embed.proj.weight"
# official -> ours, by how a key begins. The rest of a key is the same.
ENCODER = {
    "encoder.patch_embed.proj.": "encoder.embed.",
    "encoder.blocks.": "encoder.trunk.blocks.",
    "encoder.norm.": "encoder.trunk.norm.",
}
PRETRAINING = {
    **ENCODER,
    "encoder_to_decoder.": "bridge.",
    "decoder.norm.": "norm.",
    "decoder.head.": "head.",
}
CLASSIFIER = {
    **{key.removeprefix("encoder."): ours for key, ours in ENCODER.items()},
    "fc_norm.": "head.fc_norm.",
    "head.": "head.head.",
}


def renamed(key: str, names: dict[str, str]) -> str:
    """A key whose beginning is replaced by the first of `names` that it begins with."""
    return next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), key)


def turned(names: dict[str, str]) -> dict[str, str]:
    """The names the other way round."""
    return {new: old for old, new in names.items()}


def is_pretraining(state: State) -> bool:
    """Whether the weights are of a model with a decoder; holds in the official layout, transformers' and ours."""
    return any(key == "mask_token" or key.startswith(("decoder.", "encoder_to_decoder.")) for key in state)


def without_encoder_prefix(state: State) -> State:
    """Official names of an encoder or classifier without the `encoder.` that pre-training puts before them.

    A bare encoder's final LayerNorm is left out: a class head norms after pooling. Weights with a decoder stay as they are.
    """
    if is_pretraining(state):
        return state
    state = {key.removeprefix("encoder."): value for key, value in state.items()}
    headed = any(key.startswith("head.") for key in state)
    return {key: value for key, value in state.items() if headed or not key.startswith("norm.")}


def from_official_pretrain(state: State) -> State:
    """An official pre-training state dictionary in our names and shapes. Raises CheckpointError where half a bias is there."""
    return {renamed(key, PRETRAINING): _as_ours(key, value) for key, value in _fused_biases(state).items()}


def from_official_classifier(state: State) -> State:
    """An official fine-tuned state dictionary (mean pooling) in our names and shapes; as from_official_pretrain."""
    return {renamed(key, CLASSIFIER): _as_ours(key, value) for key, value in _fused_biases(state).items()}


def to_official_pretrain(state: State, clip: ClipShape) -> State:
    """A VideoMAE's state dictionary in the official names and shapes; k biases, which change nothing, are left out."""
    return _to_official(state, clip, turned(PRETRAINING))


def to_official_classifier(state: State, clip: ClipShape) -> State:
    """The same of a VideoClassifier whose readout is the mean."""
    return _to_official(state, clip, turned(CLASSIFIER))


def with_zero_biases(state: State) -> State:
    """An official state of a model without q and v biases as one whose biases are zero, which is the same function."""
    zeros: State = {}
    for key, value in state.items():
        if key.endswith(".attn.qkv.weight"):
            stem = key.removesuffix("qkv.weight")
            zeros |= {f"{stem}{name}": torch.zeros(len(value) // 3, dtype=value.dtype) for name in ("q_bias", "v_bias")}
    return {**state, **zeros}


def _to_official(state: State, clip: ClipShape, names: dict[str, str]) -> State:
    official: State = {}
    for key, value in state.items():
        if key.endswith("attn.qkv.bias"):
            q, _, v = value.chunk(3)
            stem = renamed(key, names).removesuffix("qkv.bias")
            official |= {f"{stem}q_bias": q, f"{stem}v_bias": v}
        elif key == "encoder.embed.weight":
            official[renamed(key, names)] = value.unflatten(1, (clip.channels, clip.tubelet, clip.patch, clip.patch))
        else:
            official[renamed(key, names)] = value[None, None] if key == "mask_token" else value
    return official


def _as_ours(key: str, value: Tensor) -> Tensor:
    """Conv3d kernels `(D, C, t, p, p)` as linear weights over a cube's values; the mask token as one vector."""
    if key == "mask_token":
        return value.flatten()
    return value.flatten(1) if key.endswith(EMBEDDING) else value


def _fused_biases(state: State) -> State:
    """q and v biases as one qkv bias whose k part is zero (a k bias cannot change a softmax)."""
    fused = {}
    for key, value in state.items():
        if key.endswith(".q_bias"):
            other = key.removesuffix("q_bias") + "v_bias"
            if other not in state:
                raise CheckpointError(f"there is {key} but no {other}; the file is not whole")
            fused[key.removesuffix("q_bias") + "qkv.bias"] = torch.cat([value, torch.zeros_like(value), state[other]])
        elif not key.endswith(".v_bias"):
            fused[key] = value
    return fused
