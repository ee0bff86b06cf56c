"""State dictionaries: read, compared with a model, loaded into it."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vmae_lab.utils.atomic_io import atomic_write
from vmae_lab.utils.errors import UserError

State = dict[str, Tensor]
SHOWN = 10  # of each kind of misfit, a message lists so many


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def check_fit(expected: Mapping[str, Tensor], found: State, where: str) -> None:
    """Raise CheckpointError, listing what is missing, unexpected or of another shape, unless `found` is as `expected`."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshaped = [
        f"{key}: file {tuple(found[key].shape)}, model {tuple(expected[key].shape)}"
        for key in expected
        if key in found and expected[key].shape != found[key].shape
    ]
    whole = [key for key in expected if key in found and expected[key].is_floating_point() != found[key].is_floating_point()]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped, "of another kind of number": whole}
    if any(problems.values()):
        lines = [f"{len(keys)} {what}: {_first(keys)}" for what, keys in problems.items() if keys]
        raise CheckpointError(f"{where} does not fit this model; {'; '.join(lines)}")


def _first(keys: list[str]) -> str:
    left = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def load_weights(model: nn.Module, state: State, where: str) -> None:
    """Load every tensor of the model from `state`, or raise CheckpointError listing what does not fit."""
    check_fit(model.state_dict(), state, where)
    model.load_state_dict(state)


def read_weights(path: Path) -> State:
    """Read a safetensors file; raises CheckpointError where it is missing or not whole."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error


def write_weights(path: Path, state: State) -> None:
    """Write a safetensors file, whole or not at all; raises StorageError."""
    # Cloned, since safetensors refuses tensors that are parts of one another.
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})  # transformers refuses a file that does not say so


def weights_digest(*states: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that name the content of states, in the order of their tensors."""
    digest = blake2b(digest_size=6)
    for state in states:
        for name, tensor in state.items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
