"""Checkpoints in several formats: load.py reads them, save.py writes them, formats.py converts names and configs."""

from vmae_lab.models.checkpoints.formats import CheckpointError, State, from_official_classifier, from_official_pretrain
from vmae_lab.models.checkpoints.load import (
    Checkpoint,
    convert_head,
    load_weights,
    open_checkpoint,
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
