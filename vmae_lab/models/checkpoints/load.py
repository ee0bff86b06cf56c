"""Open a checkpoint of any format, from a folder, a file or the hub: its weights in our names, and what model they are of.

The steps: find the file, read it without running code, unwrap the weights, recognise the format, convert (`formats`).
"""

import argparse
import json
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from vmae_lab.models.sizes import SIZES, ClipShape, Size

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = ".index.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Of transformers, then of DeepSpeed, whose folders have other files next to them.
KNOWN_FILES = (WEIGHTS, WEIGHTS + INDEX, "pytorch_model.bin", f"pytorch_model.bin{INDEX}", "mp_rank_00_model_states.pt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The one weight that every encoder has: its names by format, and how they end.
OFFICIAL = (formats.EMBEDDING, f"encoder.{formats.EMBEDDING}")
TRANSFORMERS = ("embeddings.patch_embeddings.projection.weight", "videomae.embeddings.patch_embeddings.projection.weight")
OURS = ("encoder.embed.weight",)
EMBEDDING = re.compile(r"(.*\.)?(patch_embed\.proj|patch_embeddings\.projection|encoder\.embed)\.weight")


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names, and the model that they are of; `where` names them in messages."""

    state: State
    config: ModelConfig
    where: str


def open_checkpoint(where: str | Path, size: Size | str | None = None, revision: str | None = None) -> Checkpoint:
    """Read a folder, a file, or a repository of the hub, in our format, the official one, transformers' or V2's remote code.

    Official files are incomplete: `size` is needed if their widths and depths are of no known size, and their clip is that of a
    config.json next to them, of the script's arguments in them, or 16 frames of 224 pixels. Raises CheckpointError.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise CheckpointError(f"there is no model size '{size}'; sizes are {', '.join(SIZES)}, or a Size of your own")
        size = SIZES[size]
    path, name = _find(where, revision), str(where)
    state, arguments = _read_weights(path)
    state, config = without_prefixes(state, name), _read_config(path)
    unknown = [key for key in state if EMBEDDING.fullmatch(key) and key not in OFFICIAL + TRANSFORMERS + OURS]
    if unknown:
        raise CheckpointError(
            f"{name} has an encoder under an unknown name: {unknown[0]}. Save its weights again without the prefix before the "
            "model's own names"
        )
    if not state.keys().isdisjoint(OFFICIAL):
        opened = _open_official(formats.without_encoder_prefix(state), config, arguments, size, name)
        return _with_names(opened, formats.class_names_in(config, arguments))
    if any(key.startswith(("videomae.", "embeddings.")) for key in state):
        return _with_names(_open_transformers(state, config, name), formats.class_names_in(config, {}))
    if config.get("library") == "vmae_lab":
        return Checkpoint(state, _our_config(config, name), name)
    if any(key.startswith("encoder.trunk.") for key in state):
        raise CheckpointError(
            f"{name} holds weights of this package without the {CONFIG} that save_pretrained writes next to them; build the "
            "model and pass them to load_weights"
        )
    raise CheckpointError(f"{name} holds no VideoMAE: it has no {OFFICIAL[0]}. It has: {', '.join(list(state)[:10])}")


def _with_names(opened: Checkpoint, names: tuple[str, ...] | None) -> Checkpoint:
    """The checkpoint with the names of its classes, unless their number is another one than the head's."""
    if names is None or opened.config.classes is None:
        return opened
    if len(names) != opened.config.classes:
        warnings.warn(
            f"{opened.where} names {len(names)} classes, but its head has {opened.config.classes}; the names are ignored",
            stacklevel=4,
        )
        return opened
    return replace(opened, config=opened.config.model_copy(update={"class_names": names}))


def _open_transformers(state: State, config: dict[str, Any], where: str) -> Checkpoint:
    if config.get("model_type") != formats.HF_TYPE:
        raise CheckpointError(
            f"{where} holds weights in transformers' names without a {CONFIG} of a {formats.HF_TYPE!r} next to them"
        )
    size, clip = formats.read_transformers_config(config, f"{where}: {CONFIG}")
    official, encoder_norm = formats.transformers_weights(state, config, f"{where}: {CONFIG}")
    official = formats.without_encoder_prefix(official)
    return _in_our_names(official, size, clip, where, bool(config.get("norm_pix_loss", True)), encoder_norm)


def _open_official(
    state: State, config: dict[str, Any], arguments: Mapping[str, Any], size: Size | None, where: str
) -> Checkpoint:  # fmt: skip
    """Official weights, with size and clip of a config next to them, of any format, or of the weights and arguments."""
    named, normalise_target = f"{where}: {CONFIG}", True
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
        size, clip = size or formats.size_in(state, where), formats.clip_in(state, arguments, where)
        return _in_our_names(state, size, clip, where, arguments.get("normlize_target") is not False)  # spelled so there
    formats.check_fit_of_config(size, clip, state, named)
    return _in_our_names(state, size, clip, where, normalise_target)


def _in_our_names(
    official: State, size: Size, clip: ClipShape, where: str, normalise_target: bool, encoder_norm: bool = True
) -> Checkpoint:  # fmt: skip
    pretraining = formats.is_pretraining(official)
    formats.check_heads(size, pretraining, where)
    if pretraining:
        config = ModelConfig(
            model="VideoMAE", size=size, clip=clip, normalise_target=normalise_target, encoder_norm=encoder_norm
        )
        return Checkpoint(formats.from_official_pretrain(official), config, where)
    if "norm.weight" in official:  # next to a head: a bare encoder's was left out
        raise CheckpointError(
            f"{where} classifies by its first token (use_mean_pooling false, or the official --use_cls); classifiers of this "
            "package read the mean token"
        )
    state = formats.from_official_classifier(official)
    head = state.get("head.head.weight")
    classes = None if head is None else len(head)
    return Checkpoint(state, ModelConfig(model="VideoClassifier", size=size, clip=clip, classes=classes, readout="mean"), where)


# --- Weights of a state dictionary ------------------------------------------------------------------------------------
SHOWN = 10  # names per kind of problem in a message


def load_weights(model: nn.Module, state: State, where: str) -> None:
    """Load every weight of the model from `state`. Raises CheckpointError, listing what does not fit."""
    check_fit(model.state_dict(), state, where)
    model.load_state_dict(state)


def check_fit(expected: Mapping[str, Tensor], found: State, where: str) -> None:
    """Raise CheckpointError if names, shapes or kinds of number differ from `expected`."""
    common = [key for key in expected if key in found]
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key}: file {tuple(found[key].shape)}, model {tuple(expected[key].shape)}"
            for key in common
            if expected[key].shape != found[key].shape
        ],
        "of another kind of number": [
            key for key in common if expected[key].is_floating_point() != found[key].is_floating_point()
        ],
    }
    lines = [
        f"{len(keys)} {problem}: {', '.join(keys[:SHOWN])}" + (f" and {len(keys) - SHOWN} more" if keys[SHOWN:] else "")
        for problem, keys in problems.items()
        if keys
    ]
    if lines:
        raise CheckpointError(f"{where} does not fit this model; {'; '.join(lines)}")


def part_of(state: State, prefix: str) -> State:
    """The weights below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def convert_head(state: State, rows: Sequence[int], prefix: str = "head.head.") -> State:
    """A classifier's weights whose head keeps `rows` in their order: Kinetics-710 to 400 classes, for example.

    `prefix` names the head's linear layer: `head.head.` in a VideoClassifier, `head.` in an official state. Raises
    CheckpointError if there is no such layer or row.
    """
    names = [f"{prefix}weight", f"{prefix}bias"]
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"the state has no {' and no '.join(missing)}; its head has another prefix, or there is none")
    classes = len(state[names[0]])
    outside = [row for row in rows if not 0 <= row < classes]
    if outside:
        raise CheckpointError(f"row {outside[0]} does not exist; the head has {classes} classes")
    index = torch.tensor(rows, dtype=torch.int64)
    return {**state, **{name: state[name][index.to(state[name].device)] for name in names}}


def weights_digest(*states: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of the content of states, in the order of their tensors."""
    digest = blake2b(digest_size=6)
    for state in states:
        for name, tensor in state.items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- Find the file ----------------------------------------------------------------------------------------------------
def _find(where: str | Path, revision: str | None) -> Path:
    """The path itself if it exists, else the folder that a repository of the hub is downloaded to."""
    path = Path(where).expanduser()
    if path.exists():
        return path
    if not isinstance(where, str) or not HUB_ID.fullmatch(where):
        raise CheckpointError(f"there is no checkpoint {where}: neither a file or folder, nor an owner/name of the hub")
    try:
        folder = Path(snapshot_download(where, revision=revision, allow_patterns=[CONFIG, "*.safetensors*"]))
        if not list(folder.glob("*.safetensors")):
            patterns = [CONFIG, "*.bin*", "*.pth", "*.pt", "*.ckpt"]
            folder = Path(snapshot_download(where, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"there is no folder {where}, and it cannot be downloaded from the hub ({reason}). Check the name and the network, "
            "log in if it is private, or give the path of a copy"
        ) from error
    return folder


def _read_weights(path: Path) -> tuple[State, Mapping[str, Any]]:
    """Weights of a file, of the parts in an index, or of a folder with one of these; and the official scripts' arguments."""
    path = _file_in(path) if path.is_dir() else path
    if not path.name.endswith(INDEX):
        return read_file(path)
    parts = _read_object(path).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise CheckpointError(f"{path} has no weight_map, which names the file of each weight")
    states = [read_file(path.parent / str(part))[0] for part in sorted(set(parts.values()))]
    return {key: value for state in states for key, value in state.items()}, {}


def _file_in(folder: Path) -> Path:
    """A folder's file of weights, or the index of its parts."""
    known = [folder / name for name in KNOWN_FILES if (folder / name).exists()]
    files = known[:1] or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    if any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{folder} is a distributed checkpoint of PyTorch; convert it to one file, and give that file: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pth"
        )
    found = f"has {len(files)} ({', '.join(file.name for file in files[:10])})" if files else "has none"
    raise CheckpointError(f"{folder} should hold one file of weights ({', '.join(SUFFIXES)}) and {found}; name the file")


def _read_config(path: Path) -> dict[str, Any]:
    """The config of a folder, or the one next to a file; empty if there is none."""
    file = path / CONFIG if path.is_dir() else path.with_name(CONFIG)
    return _read_object(file) if file.exists() else {}


def _our_config(config: dict[str, Any], where: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(config)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:10])
        raise CheckpointError(f"{where}: {CONFIG} is not as save_pretrained writes it: {faults}") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object, so it describes no model")
    return content


# --- Read a file: recognised by its content, read without running code ------------------------------------------------
ZIP = b"PK\x03\x04"
PICKLED = (ZIP, b"\x80")  # how files of torch.save, and other pickles, begin
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file of torch.save before PyTorch 1.6 begins
# What training scripts save with the weights: arguments, NumPy's numbers and arrays, paths. None of it runs code.
HARMLESS: list[Any] = [
    argparse.Namespace, np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *((value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")  # NumPy 2, NumPy 1
      for value, name in ((np.float64(0), "scalar"), (np.empty(0), "_reconstruct")) for core in ("_core", "core")),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]  # fmt: skip
NO_WEIGHTS = (  # how a file begins, lower case, and what it is instead
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights; run `git lfs pull` in its repository"),
    *((tag, "is a web page, not weights; download the file itself") for tag in (b"<!doctype", b"<html", b"<?xml", b"<head")),
    (b"{", "is JSON, not weights; give the file of weights or the folder"),
    (b"\x1f\x8b", "is a gzip archive; unpack it and give the file in it"),
)


def read_weights(path: Path) -> State:
    """Read a safetensors file. Raises CheckpointError if it is missing or incomplete."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error


def read_file(path: Path) -> tuple[State, Mapping[str, Any]]:
    """The weights of a safetensors file or a file of `torch.save`, whatever its name, on the CPU; and the arguments that the
    official scripts save with them, if any, with the `class_names` that we save.

    Raises CheckpointError, also if reading the file would run code.
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
        return read_weights(path), {}  # safetensors says what is wrong
    content = _unpickled(path, start)
    arguments = content.get("args") if isinstance(content, Mapping) else None
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    arguments = dict(arguments) if isinstance(arguments, Mapping) else {}
    if isinstance(content, Mapping) and formats.CLASS_NAMES in content:
        arguments[formats.CLASS_NAMES] = content[formats.CLASS_NAMES]
    return state_in(content, str(path)), arguments


def _refuse_other_files(path: Path, start: bytes) -> None:
    """Raise CheckpointError, with what it is, if a file is known to hold no weights."""
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
                f"{path} is a TorchScript program, which is code and not read. If you trust its source, save its weights in "
                f"Python:\n    import torch\n    model = torch.jit.load({str(path)!r}, map_location='cpu')\n"
                f"    torch.save(model.state_dict(), {_new_name(path)!r})"
            )
        if "data.pkl" not in names:
            raise CheckpointError(f"{path} is a zip archive, but not of torch.save; unpack it and give the file in it")
    elif not start.startswith(PICKLED) and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            names = set(tar.getnames())
        if {"pickle", "storages"} <= names:  # torch.save before PyTorch 0.1.10
            raise _refusal(path, start, "the old tar format of torch.save cannot be read safely")
        raise CheckpointError(f"{path} is a tar archive; unpack it and give the file in it")


def _unpickled(path: Path, start: bytes) -> Any:
    try:
        # An open file, since torch.load treats paths by their suffix.
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not start.startswith(PICKLED):
            raise CheckpointError(f"{path} is not a file of weights (safetensors or torch.save)") from error
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"reading it would run code ({code[1]})" if code else "its kind of pickle cannot be read safely"
        raise _refusal(path, start, reason) from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError) as error:
        # PyTorch's reader raises these for incomplete or foreign files.
        raise CheckpointError(f"{path} is cut short or not a file of PyTorch weights; copy or download it again") from error


def _refusal(path: Path, start: bytes, reason: str) -> CheckpointError:
    """An error with the lines of Python that save only the weights of a file."""
    plain = start.startswith(b"\x80") and not start.startswith(TORCH_LEGACY)
    load = f"pickle.load(open({str(path)!r}, 'rb'))" if plain else f"torch.load({str(path)!r}, 'cpu', weights_only=False)"
    return CheckpointError(
        f"{path} is refused: {reason}. If you trust its source, run these lines where the code that made it is installed. They "
        "save only the weights; open the new file:\n"
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


# --- Unwrap: nested dictionaries in a file, and prefixes in names, that training tools add ----------------------------
# Parts of names that no model has: DDP, torch.compile, DeepSpeed and Fabric, FSDP, checkpointed activations.
TRANSPARENT = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Attributes that hold the model in a trainer, a detector or an average of weights.
HOLDERS = {"model", "encoder", "backbone", "student", "net", "network"}
AVERAGES = {"ema", "model_ema", "ema_model", "averaged_model"}
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
# How names begin in the official format, in transformers' and in ours.
BEGINNING = re.compile(
    r"(patch_embed|blocks|norm|fc_norm|head|encoder_to_decoder|decoder|mask_token|encoder\.(patch_embed|blocks|norm)"
    r"|videomae|embeddings|encoder\.layer|layernorm|classifier|encoder\.(trunk|embed)|bridge)(\.|$)"
)
Place = tuple[str, ...]  # the keys of nested dictionaries


def state_in(content: Any, where: str) -> State:
    """The weights in a file's content, however deeply nested.

    A moving average is taken only if there are no other weights of an encoder. Raises CheckpointError if there are several
    models, or no weights.
    """
    found = dict(_find_states(content, ()))
    models = {place: state for place, state in found.items() if not _is_average(place)}
    if models and len(models) < len(found):
        averages = ", ".join(repr(_text(place)) for place in found if place not in models)
        _warn_of_average(where, repr(_text(next(iter(models)))), averages)
    candidates = models or found
    if len(candidates) > 1:
        index = "".join(f"[{key!r}]" for key in next(iter(candidates)))
        raise CheckpointError(
            f"{where} holds {len(candidates)} models: {', '.join(map(_text, candidates))}. Save one of them in its own file, "
            f"e.g. torch.save(torch.load(file, weights_only=True){index}, 'weights.pth')"
        )
    state = next(iter(candidates.values())) if candidates else _any_tensors(content, where)
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{where} holds values that are no tensors among its weights: {', '.join(strange[:10])}")
    return dict(state)


def without_prefixes(state: State, where: str) -> State:
    """The same weights without the prefixes of wrappers, in any order and depth.

    A name that does not begin like a VideoMAE's even then is kept as it is. Weights of a moving average are left out if the
    model's own exist. Raises CheckpointError if two weights get the same name.
    """
    names = {key: _without_prefix(key) for key in state if key.rsplit(".", 1)[-1] != COUNTER}
    averaged = [key for key, (_, average) in names.items() if average]
    if averaged and any(EMBEDDING.fullmatch(name) for name, average in names.values() if not average):
        _warn_of_average(where, "the model", f"{len(averaged)} weights such as {averaged[0]}")
        names = {key: name for key, name in names.items() if not name[1]}
    keys: dict[str, str] = {}
    for key, (name, _) in names.items():
        if name in keys:
            raise CheckpointError(
                f"{where} has two weights for {name}: {keys[name]} and {key}. Save the model that you want in its own file"
            )
        keys[name] = key
    return {name: state[key] for name, key in keys.items()}


def _without_prefix(key: str) -> tuple[str, bool]:
    """A name without its wrappers, and whether one of them is a moving average."""
    parts, before = _parts(key), []
    while parts[1:] and parts[0] in HOLDERS | AVERAGES and not BEGINNING.match(".".join(parts)):
        before.append(parts.pop(0))
    name = ".".join(parts)
    return name if BEGINNING.match(name) else key, not AVERAGES.isdisjoint(before)


def _parts(key: str) -> list[str]:
    return [part for part in key.split(".") if part not in TRANSPARENT]


def _find_states(content: Any, place: Place) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Every dictionary in the content that has an encoder's embedding, and its place."""
    if not isinstance(content, Mapping):
        return
    if any(isinstance(key, str) and EMBEDDING.fullmatch(".".join(_parts(key))) for key in content):
        yield place, content
        return
    for key, value in content.items():
        yield from _find_states(value, (*place, str(key)))


def _any_tensors(content: Any, where: str) -> Mapping[str, Any]:
    """The first dictionary of tensors, so that a message can list its names. Raises CheckpointError if there is none."""
    nested = ("model", "module", "state_dict")
    for state in [content, *map(content.get, nested)] if isinstance(content, Mapping) else []:
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return state
    raise CheckpointError(
        f"{where} holds no weights: neither it nor any dictionary in it has a tensor named patch_embed.proj.weight "
        "(official), patch_embeddings.projection.weight (transformers) or encoder.embed.weight (ours)"
    )


def _is_average(place: Place) -> bool:
    return any(re.search(r"(^|[_.])(ema|averaged)($|[_.])", key.lower()) for key in place)


def _text(place: Place) -> str:
    return ".".join(place) or "the file itself"


def _warn_of_average(where: str, loaded: str, skipped: str) -> None:
    warnings.warn(
        f"{where}: {loaded} is loaded, without the moving average next to it ({skipped}). To load it, save it in its own file",
        stacklevel=5,
    )
