"""Load a checkpoint of any format from a folder, a file or the hub: its weights in our names, and the model's config.

The steps: find the file, read it without running code, unwrap the weights, recognize the format, convert the names
(formats.py).
"""

import argparse
import json
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vmae_lab.models.checkpoints import formats
from vmae_lab.models.checkpoints.formats import CheckpointError, State
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import SIZES, ClipShape, Positions, Size
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import first_of
from vmae_lab.utils.shapes import Side

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = ".index.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Of transformers and DeepSpeed. Their folders also contain other files with such suffixes.
KNOWN_FILES = (WEIGHTS, WEIGHTS + INDEX, "pytorch_model.bin", f"pytorch_model.bin{INDEX}", "mp_rank_00_model_states.pt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The weight that every encoder has: its names by format, and a pattern for all of them with any prefix.
OFFICIAL = (formats.EMBEDDING, f"encoder.{formats.EMBEDDING}")
TRANSFORMERS = ("embeddings.patch_embeddings.projection.weight", "videomae.embeddings.patch_embeddings.projection.weight")
OURS = ("encoder.embed.weight",)
EMBEDDING = re.compile(r"(.*\.)?(patch_embed\.proj|patch_embeddings\.projection|encoder\.embed)\.weight")


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names, and the config of their model. `where` names the checkpoint in messages.

    If `clip_assumed`, the clip is not stored and is the default of the official code.
    """

    state: State
    config: ModelConfig
    where: str
    clip_assumed: bool = False

    def refuse_detector(self) -> None:
        """Raise CheckpointError if the model is an action detector, whose encoder differs from that of a classifier."""
        if self.config.model == "ActionDetector":
            raise CheckpointError(
                f"{self.where} is an action detector, not an encoder or a video classifier. Use the model that it was trained "
                "from"
            )

    def reshaped(self, frames: int | None, side: Side | None, positions: Positions | None = None) -> ClipShape:
        """Return the clip with another shape or rule for positions, see `ClipShape.reshaped`.

        Warns if positions are interpolated from an assumed clip. Raises CheckpointError if patches do not divide the clip.
        """
        try:
            clip = self.config.clip.reshaped(frames, side, positions)
        except ValueError as error:
            raise CheckpointError(f"{self.where}: {error}") from error
        if self.clip_assumed and clip.positions_from:
            warnings.warn(
                f"{self.where} does not store the clip of its training. Positions are interpolated from "
                f"{self.config.clip.pixels}, the default; if it was trained on {clip.pixels}, set positions to 'recompute'",
                stacklevel=3,
            )
        return clip


def open_checkpoint(where: str | Path, size: Size | str | None = None, revision: str | None = None) -> Checkpoint:
    """Read a folder, a file or a hub repository in our format, the official one, transformers' or that of V2's remote code.

    Official files do not describe their model completely. The clip comes from a config.json next to the file, from the training
    script's arguments in it, or is 16 frames of 224 pixels. `size` is needed if widths and depths match no known size.
    Raises CheckpointError.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise CheckpointError(f"there is no model size '{size}'; use one of {', '.join(SIZES)}, or pass size=Size(...)")
        size = SIZES[size]
    path = _find(where, revision)
    name = str(where)
    state, arguments = _read_weights(path)
    state = without_prefixes(state, name)
    file = path / CONFIG if path.is_dir() else path.with_name(CONFIG)
    config = _read_object(file) if file.exists() else {}
    unknown = [key for key in state if EMBEDDING.fullmatch(key) and key not in OFFICIAL + TRANSFORMERS + OURS]
    if unknown:
        raise CheckpointError(
            f"{name} has an encoder with an unknown prefix: {unknown[0]}. Save the weights again without this prefix"
        )
    if not state.keys().isdisjoint(OFFICIAL + TRANSFORMERS):
        return _convert(state, config, arguments, size, name)
    if config.get("library") == "vmae_lab":
        return Checkpoint(state, _our_config(config, name), name)
    if any(key.startswith("encoder.trunk.") for key in state):
        raise CheckpointError(
            f"{name} has weights of this package, but there is no {CONFIG} of save_pretrained next to it; build the model and "
            "load them with load_weights"
        )
    if any(key.startswith("regress.") for key in state):
        raise CheckpointError(
            f"{name} is a temporal detector, which takes features of videos and has no video encoder. `vmae-lab predict` takes "
            "the folder of its stage; other commands take the encoder of the features"
        )
    raise CheckpointError(f"{name} is not a VideoMAE: it has no weight {OFFICIAL[0]}. It has: {first_of(list(state))}")


def _convert(state: State, config: dict[str, Any], arguments: Mapping[str, Any], size: Size | None, where: str) -> Checkpoint:
    """Convert official or transformers' weights to our names.

    Size and clip come from the config next to them (for official weights, of any format), else from weights and arguments.
    """
    named = f"{where}: {CONFIG}"
    has_config = True
    assumed = False
    normalise_target = True
    encoder_norm = True
    if state.keys().isdisjoint(OFFICIAL):
        if config.get("model_type") != formats.HF_TYPE:
            raise CheckpointError(
                f"{where} has weights in transformers' names, but no {CONFIG} with model_type {formats.HF_TYPE!r} next to it"
            )
        state, encoder_norm = formats.transformers_weights(state, config, named)
    state = formats.without_encoder_prefix(state)
    if formats.REMOTE_SECTION in config:
        size, clip = formats.read_remote_code_config(config, state, named)
        section = config[formats.REMOTE_SECTION]
        state = formats.with_qkv_bias(state, section, "qkv_bias", f"{named}: {formats.REMOTE_SECTION}")
    elif config.get("library") == "vmae_lab":
        ours = _our_config(config, where)
        size, clip, normalise_target = ours.size, ours.clip, ours.normalise_target is not False
    elif config.get("model_type") == formats.HF_TYPE:
        size, clip = formats.read_transformers_config(config, named)
        normalise_target = bool(config.get("norm_pix_loss", True))
    else:
        formats.refuse_others(arguments, {"use_mean_pooling": True}, f"{where}: its arguments")
        size = formats.with_layer_scale(size or formats.size_in(state, where), state)
        clip = formats.clip_in(state, arguments, where)
        normalise_target = arguments.get("normlize_target") is not False  # sic
        has_config = False
        assumed = not (arguments.get("num_frames") or arguments.get("input_size"))
    if has_config:
        formats.check_fit_of_config(size, clip, state, named)
    pretraining = formats.is_pretraining(state)
    formats.check_heads(size, pretraining, where)
    stored = formats.training_settings_in(config, arguments)
    if pretraining:
        model = _described(
            where, model="VideoMAE", size=size, clip=clip, normalise_target=normalise_target, encoder_norm=encoder_norm,
            target_eps=stored.get("target_eps"), stride=stored.get("stride"),
        )  # fmt: skip
        return Checkpoint(formats.from_official_pretrain(state), model, where, assumed)
    if "norm.weight" in state:  # of a classifier: without_encoder_prefix removes that of a bare encoder
        raise CheckpointError(
            f"{where} classifies by its first token (use_mean_pooling false, or the official --use_cls); this package supports "
            "only classifiers that use the mean token"
        )
    classes = len(state["head.weight"]) if "head.weight" in state else None
    names = formats.class_names_in(config, arguments) if classes else None
    if names and len(names) != classes:
        warnings.warn(
            f"{where} names {counted(len(names), 'class')}, but its head has {classes}; the names are ignored", stacklevel=4
        )
        names = None
    model = _described(
        where, model="VideoClassifier", size=size, clip=clip, classes=classes, readout="mean", class_names=names,
        stride=stored.get("stride"), sampling=stored.get("sampling"),
    )  # fmt: skip
    return Checkpoint(formats.from_official_classifier(state), model, where, assumed)


def _described(where: str, **values: Any) -> ModelConfig:
    """Return a config. Raises CheckpointError if settings that a file has under the key TRAINING are wrong."""
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise CheckpointError(
            f"{where}: wrong settings under the key '{formats.TRAINING}': {first_of(faults, '; ')}"
        ) from error


# --- State dictionaries ------------------------------------------------------------------------------------


def load_weights(model: nn.Module, state: State, where: str) -> None:
    """Load a state that has exactly the model's weights. Raises CheckpointError, which lists what does not fit."""
    expected = model.state_dict()
    problems: dict[str, list[str]] = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "with another shape": [],
        "with another kind of number": [],
    }
    for key in (key for key in expected if key in state):
        ours, theirs = expected[key], state[key]
        if ours.shape != theirs.shape:
            problems["with another shape"].append(f"{key}: file {tuple(theirs.shape)}, model {tuple(ours.shape)}")
        elif ours.is_floating_point() != theirs.is_floating_point():
            problems["with another kind of number"].append(key)
    lines = [f"{len(keys)} {problem}: {first_of(keys)}" for problem, keys in problems.items() if keys]
    if lines:
        raise CheckpointError(f"{where} does not fit this model; {'; '.join(lines)}")
    model.load_state_dict(state)


def part_of(state: State, prefix: str) -> State:
    """Return the weights whose names start with a prefix, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def convert_head(state: State, rows: Sequence[int], prefix: str = "head.head.") -> State:
    """Select the `rows` (classes) of a classifier's head, in this order: for example Kinetics-710 to Kinetics-400.

    `prefix` is that of the head's linear layer: `head.head.` in a VideoClassifier, `head.` in an official state. Raises
    CheckpointError if the layer or a row does not exist.
    """
    names = [f"{prefix}weight", f"{prefix}bias"]
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"the state has no {' and no '.join(missing)}; pass the prefix of its head")
    classes = len(state[names[0]])
    outside = [row for row in rows if not 0 <= row < classes]
    if outside:
        raise CheckpointError(f"row {outside[0]} does not exist; the head has {counted(classes, 'class')}")
    index = torch.tensor(rows, dtype=torch.int64)
    return {**state, **{name: state[name][index.to(state[name].device)] for name in names}}


def weights_digest(*states: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values of all tensors, in their order: twelve hexadecimal digits."""
    digest = blake2b(digest_size=6)
    for state in states:
        for name, tensor in state.items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- Find the file ----------------------------------------------------------------------------------------------------
def _find(where: str | Path, revision: str | None) -> Path:
    """Return the path if it exists, else the folder to which the hub repository is downloaded."""
    path = Path(where).expanduser()
    if path.exists():
        return path
    if not isinstance(where, str) or not HUB_ID.fullmatch(where):
        raise CheckpointError(f"there is no checkpoint {where}: it is neither a file or folder nor an owner/name on the hub")
    try:
        folder = Path(snapshot_download(where, revision=revision, allow_patterns=[CONFIG, "*.safetensors*"]))
        if not list(folder.glob("*.safetensors")):
            patterns = [CONFIG, "*.bin*", "*.pth", "*.pt", "*.ckpt"]
            folder = Path(snapshot_download(where, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"there is no folder {where}, and it cannot be downloaded from the hub ({reason}). Check the name and the network, "
            "and log in if it is private"
        ) from error
    return folder


def _read_weights(path: Path) -> tuple[State, Mapping[str, Any]]:
    """Read the weights of a file, of all parts in an index, or of the file in a folder, and the official scripts' arguments."""
    path = _file_in(path) if path.is_dir() else path
    if not path.name.endswith(INDEX):
        return read_file(path)
    parts = _read_object(path).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise CheckpointError(f"{path} has no weight_map with the file of each weight")
    states = [read_file(path.parent / str(part))[0] for part in sorted(set(parts.values()))]
    return {key: value for state in states for key, value in state.items()}, {}


def _file_in(folder: Path) -> Path:
    """Return the weights file in a folder, or the index of its parts."""
    known = [folder / name for name in KNOWN_FILES if (folder / name).exists()]
    files = known[:1] or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    if any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{folder} is a distributed checkpoint of PyTorch; convert it to one file and load that: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pth"
        )
    found = f"has {len(files)} ({first_of([file.name for file in files])})" if files else "has none"
    raise CheckpointError(f"{folder} must have one weights file ({', '.join(SUFFIXES)}) but {found}; pass the path of the file")


def _our_config(config: dict[str, Any], where: str) -> ModelConfig:
    try:
        opened = ModelConfig.model_validate(config)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise CheckpointError(f"{where}: {CONFIG} is not a config of save_pretrained: {first_of(faults, '; ')}") from error
    formats.refuse_others(vars(opened.clip), {"channels": 3}, where)
    return opened


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must contain a JSON object")
    return content


# --- Read a file: recognized by its content, read without running code ------------------------------------------------
ZIP = b"PK\x03\x04"
PICKLED = (ZIP, b"\x80")  # first bytes of files of torch.save and of other pickles
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of torch.save before PyTorch 1.6
# Types that training scripts save with the weights: arguments, NumPy numbers and arrays, paths. Reading them runs no code.
HARMLESS: list[Any] = [
    argparse.Namespace, np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *((value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")  # NumPy 2, NumPy 1
      for value, name in ((np.float64(0), "scalar"), (np.empty(0), "_reconstruct")) for core in ("_core", "core")),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]  # fmt: skip
NO_WEIGHTS = (  # first bytes of other files, in lower case, and how a message continues after the path
    (b"version https://git-lfs", "is a Git LFS pointer, not weights; run `git lfs pull` in its repository"),
    *((tag, "is a web page, not weights; download the file itself") for tag in (b"<!doctype", b"<html", b"<?xml", b"<head")),
    (b"{", "is JSON, not weights; pass the weights file or the folder"),
    (b"\x1f\x8b", "is a gzip archive; unpack it and pass the file in it"),
)


def read_weights(path: Path) -> State:
    """Read a safetensors file. Raises CheckpointError if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error


def read_file(path: Path) -> tuple[State, Mapping[str, Any]]:
    """Read a file of safetensors or `torch.save` with any name: its weights on the CPU, and the official scripts' arguments.

    The arguments also have the `class_names` and settings that we save, and are empty if the file has none of these. Raises
    CheckpointError, also if reading the file would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return read_weights(path), {}
    _refuse_other_files(path, start)
    if path.suffix == ".safetensors" and not start.startswith(PICKLED):
        return read_weights(path), {}  # raises the error of safetensors
    content = _unpickled(path, start)
    arguments = content.get("args") if isinstance(content, Mapping) else None
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    arguments = dict(arguments) if isinstance(arguments, Mapping) else {}
    if isinstance(content, Mapping):
        arguments |= {name: content[name] for name in (formats.CLASS_NAMES, formats.TRAINING) if name in content}
    return state_in(content, str(path)), arguments


def _refuse_other_files(path: Path, start: bytes) -> None:
    """Raise CheckpointError, naming the kind of file, if a file is known not to contain weights."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    for beginning, what in NO_WEIGHTS:
        if text.startswith(beginning):
            raise CheckpointError(f"{path} {what}")
    if start.startswith(ZIP) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
        if "constants.pkl" in names:
            raise CheckpointError(
                f"{path} is a TorchScript program and is not read, since it contains code. If you trust its source, save its "
                f"weights in Python:\n    import torch\n    model = torch.jit.load({str(path)!r}, map_location='cpu')\n"
                f"    torch.save(model.state_dict(), {_new_name(path)!r})"
            )
        if "data.pkl" not in names:
            raise CheckpointError(f"{path} is a zip archive, but not of torch.save; unpack it and pass the file in it")
    elif not start.startswith(PICKLED) and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            names = set(tar.getnames())
        if {"pickle", "storages"} <= names:  # torch.save before PyTorch 0.1.10
            raise _refusal(path, start, "the old tar format of torch.save cannot be read safely")
        raise CheckpointError(f"{path} is a tar archive; unpack it and pass the file in it")


def _unpickled(path: Path, start: bytes) -> Any:
    try:
        # An open file, since torch.load treats paths by their suffix.
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not start.startswith(PICKLED):
            raise CheckpointError(f"{path} is not a weights file (safetensors or torch.save)") from error
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"reading it would run code ({code[1]})" if code else "this kind of pickle cannot be read safely"
        raise _refusal(path, start, reason) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError) as error:
        # PyTorch raises these for incomplete and for other files.
        raise CheckpointError(f"{path} is truncated or not a PyTorch weights file; copy or download it again") from error


def _refusal(path: Path, start: bytes, reason: str) -> CheckpointError:
    """Return an error that shows the Python code that saves only the weights of a file."""
    plain = start.startswith(b"\x80") and not start.startswith(TORCH_LEGACY)
    load = f"pickle.load(open({str(path)!r}, 'rb'))" if plain else f"torch.load({str(path)!r}, 'cpu', weights_only=False)"
    return CheckpointError(
        f"{path} is refused: {reason}. If you trust its source, run these lines where the code that wrote it is installed; "
        "they save only the weights. Then load the new file:\n"
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


# --- Unwrap the weights: remove nested dictionaries and prefixes that training tools add -------------------------------
# Parts of names that wrappers add: DDP, torch.compile, DeepSpeed and Fabric, FSDP, activation checkpointing.
TRANSPARENT = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Attributes of a trainer, a detector or a moving average that hold the model.
HOLDERS = {"model", "encoder", "backbone", "student", "net", "network"}
AVERAGES = {"ema", "model_ema", "ema_model", "averaged_model"}
AVERAGE = re.compile(r"(^|[_.])(ema|averaged)($|[_.])")  # in the key of a moving average's dictionary
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
# First parts of names in the official format, in transformers' and in ours.
BEGINNING = re.compile(
    r"(patch_embed|blocks|norm|fc_norm|head|encoder_to_decoder|decoder|mask_token|encoder\.(patch_embed|blocks|norm)"
    r"|videomae|embeddings|encoder\.layer|layernorm|classifier|encoder\.(trunk|embed)|bridge)(\.|$)"
)
KeyPath = tuple[str, ...]  # keys of nested dictionaries, from the outermost


def state_in(content: Any, where: str) -> State:
    """Find the weights in a file's content, at any depth.

    A moving average is used only if there is no other model. Raises CheckpointError if there are several models or no weights.
    """
    found = dict(_find_states(content, ()))
    models = {keys: state for keys, state in found.items() if not any(AVERAGE.search(key.lower()) for key in keys)}
    if models and len(models) < len(found):
        averages = ", ".join(repr(_dotted(keys)) for keys in found if keys not in models)
        _warn_of_average(where, repr(_dotted(next(iter(models)))), averages)
    candidates = models or found
    if len(candidates) > 1:
        index = "".join(f"[{key!r}]" for key in next(iter(candidates)))
        raise CheckpointError(
            f"{where} contains {len(candidates)} models: {', '.join(map(_dotted, candidates))}. Save one of them in its own "
            f"file, e.g. torch.save(torch.load(file, weights_only=True){index}, 'weights.pth')"
        )
    state = next(iter(candidates.values())) if candidates else _any_tensors(content, where)
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{where} has values among its weights that are not tensors: {first_of(others)}")
    return dict(state)


def without_prefixes(state: State, where: str) -> State:
    """Remove the prefixes of wrappers from the names, in any order and depth.

    A name that is still not a VideoMAE's stays unchanged. Weights of a moving average are dropped if the model's own exist.
    Raises CheckpointError if two weights get the same name.
    """
    names = {key: _without_prefix(key) for key in state if key.rsplit(".", 1)[-1] != COUNTER}
    averaged = [key for key, (_, average) in names.items() if average]
    if averaged and any(EMBEDDING.fullmatch(name) for name, average in names.values() if not average):
        _warn_of_average(where, "the model", f"{counted(len(averaged), 'weight')} such as {averaged[0]}")
        names = {key: name for key, name in names.items() if not name[1]}
    keys: dict[str, str] = {}
    for key, (name, _) in names.items():
        if name in keys:
            raise CheckpointError(
                f"{where} has two weights for {name}: {keys[name]} and {key}. Save the model you want in its own file"
            )
        keys[name] = key
    return {name: state[key] for name, key in keys.items()}


def _without_prefix(key: str) -> tuple[str, bool]:
    """Return the name without prefixes of wrappers, and whether one of them is a moving average."""
    parts = _parts(key)
    holders = []
    while parts[1:] and parts[0] in HOLDERS | AVERAGES and not BEGINNING.match(".".join(parts)):
        holders.append(parts.pop(0))
    name = ".".join(parts)
    return name if BEGINNING.match(name) else key, not AVERAGES.isdisjoint(holders)


def _parts(key: str) -> list[str]:
    """Return the parts of a name, without those of wrappers."""
    return [part for part in key.split(".") if part not in TRANSPARENT]


def _find_states(content: Any, keys: KeyPath) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Yield all dictionaries in the content that have an encoder's embedding, with their keys."""
    if not isinstance(content, Mapping):
        return
    if any(isinstance(key, str) and EMBEDDING.fullmatch(".".join(_parts(key))) for key in content):
        yield keys, content
        return
    for key, value in content.items():
        yield from _find_states(value, (*keys, str(key)))


def _any_tensors(content: Any, where: str) -> Mapping[str, Any]:
    """Return the first dictionary of tensors, for the names in an error message. Raises CheckpointError if there is none."""
    nested = ("model", "module", "state_dict")
    for state in [content, *map(content.get, nested)] if isinstance(content, Mapping) else []:
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return state
    raise CheckpointError(
        f"{where} has no weights of a VideoMAE: no dictionary in it has a tensor patch_embed.proj.weight (official), "
        "patch_embeddings.projection.weight (transformers) or encoder.embed.weight (ours)"
    )


def _dotted(keys: KeyPath) -> str:
    return ".".join(keys) or "the file itself"


def _warn_of_average(where: str, loaded: str, skipped: str) -> None:
    warnings.warn(
        f"{where}: loading {loaded}, not the moving average next to it ({skipped}). To load that, save it in its own file",
        stacklevel=5,
    )
