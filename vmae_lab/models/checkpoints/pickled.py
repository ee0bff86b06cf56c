"""Files of weights: identified by content, read without running code, and written in the official layout."""

import argparse
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from vmae_lab.models.checkpoints.weights import CheckpointError, State, read_weights
from vmae_lab.models.checkpoints.wrappers import state_in
from vmae_lab.utils.atomic_io import atomic_write

ZIP = b"PK\x03\x04"
PICKLED = (ZIP, b"\x80")  # how files of torch.save, and other pickles, begin
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file of torch.save before PyTorch 1.6 begins
# What training scripts keep next to the weights: their arguments, NumPy's numbers and arrays, paths. None of it runs code.
HARMLESS: list[Any] = [
    argparse.Namespace, np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *((value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")  # NumPy 2, NumPy 1
      for value, name in ((np.float64(0), "scalar"), (np.empty(0), "_reconstruct")) for core in ("_core", "core")),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]  # fmt: skip


def read_file(path: Path) -> tuple[State, Mapping[str, Any]]:
    """The weights of a safetensors file or of one of `torch.save`, whatever its name, and the arguments that the official
    scripts keep next to them (empty if there are none). Raises CheckpointError."""
    start = _start(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return read_weights(path), {}
    _refuse_other_files(path, start)
    if path.suffix == ".safetensors" and not start.startswith(PICKLED):
        return read_weights(path), {}  # which says what is wrong with it
    content = _unpickled(path, start)
    arguments = content.get("args") if isinstance(content, Mapping) else None
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    return state_in(content, str(path)), arguments if isinstance(arguments, Mapping) else {}


def read_pickled(path: Path) -> State:
    """The weights of a file of `torch.save`, on the CPU. Raises CheckpointError, also if reading it would run code."""
    return read_file(path)[0]


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error


def _refuse_other_files(path: Path, start: bytes) -> None:
    """Raise CheckpointError for a file that is known not to be one of weights, with what it is."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(f"{path} is a web page, not weights; download the file itself, not the page that shows it")
    if text.startswith(b"{"):
        raise CheckpointError(f"{path} is JSON, not weights; give the file of weights or the folder")
    if start.startswith(b"\x1f\x8b"):
        raise CheckpointError(f"{path} is a gzip archive; unpack it and give the file in it")
    if start.startswith(ZIP) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
        if "constants.pkl" in names:
            raise CheckpointError(
                f"{path} is a TorchScript program, which is not read here since it is code. If you trust its source, save its "
                f"weights in Python:\n    import torch\n    model = torch.jit.load({str(path)!r}, map_location='cpu')\n"
                f"    torch.save(model.state_dict(), {_new_name(path)!r})"
            )
        if "data.pkl" not in names:
            raise CheckpointError(f"{path} is a zip archive, but not one of torch.save; unpack it and give the file in it")
    elif not start.startswith(PICKLED) and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            names = set(tar.getnames())
        if {"pickle", "storages"} <= names:  # torch.save before PyTorch 0.1.10
            raise CheckpointError(_refusal(path, start, "it has the old tar format of torch.save, which cannot be read safely"))
        raise CheckpointError(f"{path} is a tar archive; unpack it and give the file in it")


def _unpickled(path: Path, start: bytes) -> Any:
    try:
        # By its content: given a path, torch.load goes by how the name ends.
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not start.startswith(PICKLED):
            raise CheckpointError(f"{path} is not a file of weights (safetensors or torch.save)") from error
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"to be read it would run code ({asked[1]})" if asked else "it is of a kind of pickle that cannot be read safely"
        raise CheckpointError(_refusal(path, start, what)) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError) as error:
        # What PyTorch's reader meets in a file that is cut or is none of its own.
        raise CheckpointError(f"{path} is cut short or not a file of PyTorch weights; copy or download it again") from error


def _refusal(path: Path, start: bytes, what: str) -> str:
    """A message with the lines of Python that save a file's weights alone."""
    plain = start.startswith(b"\x80") and not start.startswith(TORCH_LEGACY)
    load = f"pickle.load(open({str(path)!r}, 'rb'))" if plain else f"torch.load({str(path)!r}, 'cpu', weights_only=False)"
    return (
        f"{path} is refused: {what}. If you trust its source, save its weights alone in Python, where the code that made it is "
        "installed, and open the new file:\n"
        "    import pickle, torch\n"
        f"    content = {load}  # runs the code in the file\n"
        "    def weights(of):\n"
        "        if isinstance(of, torch.nn.Module):\n"
        "            of = of.state_dict()\n"
        "        if isinstance(of, (list, tuple)):\n"
        "            of = dict(enumerate(of))\n"
        "        if isinstance(of, dict):\n"
        "            found = {str(key): weights(value) for key, value in of.items()}\n"
        "            return {key: value for key, value in found.items() if value is not None} or None\n"
        "        return torch.as_tensor(of) if hasattr(of, 'shape') else None\n"
        f"    torch.save(weights(content), {_new_name(path)!r})"
    )


def _new_name(path: Path) -> str:
    return str(path.with_name(f"{path.stem}_weights.pth"))


def write_pickled(path: Path, state: State) -> None:
    """Write weights as the official code does, below `model`, whole or not at all; raises StorageError."""
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    with atomic_write(path) as temporary:
        torch.save({"model": tensors}, temporary)
