"""Weights in and out: our state dictionaries, and the official VideoMAE V2 layout of the same functions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def load_weights(model: nn.Module, state: State, where: str) -> None:
    """Load every tensor of the model from `state`, or raise CheckpointError listing what does not fit."""
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key}: file {tuple(state[key].shape)}, model {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        lines = [f"{len(keys)} {what}: {', '.join(keys[:10])}" for what, keys in problems.items() if keys]
        raise CheckpointError(f"{where} does not fit this model; " + "; ".join(lines))
    model.load_state_dict(state)


def read_weights(path: Path) -> State:
    """Read a safetensors file; raises CheckpointError where it is missing or not whole."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error


def part_of(state: State, prefix: str) -> State:
    """The tensors below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def convert_head(state: State, rows: Sequence[int], prefix: str = "head.head.") -> State:
    """A classifier's state whose head keeps `rows`, in their order: a Kinetics-710 classifier becomes one of 400 classes.

    The head is the linear layer at `prefix`: `head.head.` in a VideoClassifier, `head.` in an official state. Raises
    CheckpointError where it is not there or has no such row.
    """
    missing = [f"{prefix}{part}" for part in ("weight", "bias") if f"{prefix}{part}" not in state]
    if missing:
        raise CheckpointError(
            f"the state has no {' and no '.join(missing)}; its classifier's head has another prefix, or it has none"
        )
    classes = len(state[f"{prefix}weight"])
    strange = [row for row in rows if not 0 <= row < classes]
    if strange:
        raise CheckpointError(f"row {strange[0]} was asked for; the head has {classes} classes")
    index = torch.tensor(rows, dtype=torch.int64)
    picked = {key: state[key][index.to(state[key].device)] for key in (f"{prefix}weight", f"{prefix}bias")}
    return {**state, **picked}


def from_official_pretrain(state: State) -> State:
    """An official pre-training state dictionary in our names and shapes."""
    ours = {}
    for key, value in _fused_biases(state).items():
        if key == "mask_token":
            ours[key] = value.flatten()
        elif key == "encoder_to_decoder.weight":
            ours["bridge.weight"] = value
        elif key.startswith("decoder."):
            ours[key.replace("decoder.norm.", "norm.").replace("decoder.head.", "head.")] = value
        else:
            ours[_encoder_key(key)] = _embedding(key, value)
    return ours


def from_official_classifier(state: State) -> State:
    """An official fine-tuned state dictionary (mean pooling) in our names and shapes."""
    ours = {}
    for key, value in _fused_biases(state).items():
        top = key.startswith(("fc_norm.", "head."))
        ours[f"head.{key}" if top else _encoder_key(f"encoder.{key}")] = _embedding(key, value)
    return ours


def _encoder_key(key: str) -> str:
    return (
        key.replace("encoder.patch_embed.proj.", "encoder.embed.")
        .replace("encoder.blocks.", "encoder.trunk.blocks.")
        .replace("encoder.norm.", "encoder.trunk.norm.")
    )


def _embedding(key: str, value: Tensor) -> Tensor:
    """Conv3d kernels `(D, C, t, p, p)` as linear weights over a cube's values."""
    return value.flatten(1) if key.endswith("patch_embed.proj.weight") else value


def _fused_biases(state: State) -> State:
    """q and v biases as one qkv bias whose k part is zero (a k bias cannot change a softmax)."""
    fused = {}
    for key, value in state.items():
        if key.endswith(".q_bias"):
            stem = key.removesuffix("q_bias")
            fused[stem + "qkv.bias"] = torch.cat([value, torch.zeros_like(value), state[stem + "v_bias"]])
        elif not key.endswith(".v_bias"):
            fused[key] = value
    return fused
