"""Weights in and out: our folders, the official VideoMAE files, Hugging Face transformers' folders, the hub."""

from vmae_lab.models.checkpoints.official import from_official_classifier, from_official_pretrain
from vmae_lab.models.checkpoints.opening import Checkpoint, open_checkpoint
from vmae_lab.models.checkpoints.weights import (
    CheckpointError,
    State,
    convert_head,
    load_weights,
    part_of,
    read_weights,
    weights_digest,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "State",
    "convert_head",
    "from_official_classifier",
    "from_official_pretrain",
    "load_weights",
    "open_checkpoint",
    "part_of",
    "read_weights",
    "weights_digest",
]
