"""Files of `torch.save`, such as the official ones: read without running what they hold, and written in their layout."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae_lab.files import whole_file
from vmae_lab.models.checkpoints.weights import CheckpointError, State

NESTS = ("model", "module", "state_dict")  # where the official code, DeepSpeed and detectors put the weights


def read_pickled(path: Path) -> State:
    """The weights of a `.pth` or `.bin` file, from wherever it nests them, on the CPU.

    Only tensors, plain containers and `argparse.Namespace` (the official files keep their arguments in one) are made;
    a file that asks for anything else is refused before it runs. Raises CheckpointError.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise CheckpointError(
                f"{path} is not a file of PyTorch weights, or not a whole one; copy or download it again"
            ) from error
        raise CheckpointError(
            f"{path} is refused: to be read it would run code ({asked[1]}), which weights do not need and which could do "
            "anything to this machine. Take the file from its authors, or ask for a safetensors file"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # What PyTorch's reader meets in a file that is cut or is none of its own.
        raise CheckpointError(f"{path} is cut short or not a file of PyTorch weights; copy or download it again") from error
    return _weights_in(content, path)


def _weights_in(content: Any, path: Path) -> State:
    if isinstance(content, dict):
        content = next((content[nest] for nest in NESTS if isinstance(content.get(nest), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        nests = " or ".join(repr(nest) for nest in NESTS)
        raise CheckpointError(f"{path} holds no weights: neither it nor its {nests} is a dictionary of tensors")
    return content


def write_pickled(path: Path, state: State) -> None:
    """Write weights as the official code does, below `model`, whole or not at all; raises StorageError."""
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    with whole_file(path) as temporary:
        torch.save({"model": tensors}, temporary)
