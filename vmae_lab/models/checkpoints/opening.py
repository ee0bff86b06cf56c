"""Any checkpoint, wherever it is and whatever its layout: its weights in our names, and what they are of."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import ValidationError

from vmae_lab.models.checkpoints import remote_code, transformers
from vmae_lab.models.checkpoints.official import (
    from_official_classifier,
    from_official_pretrain,
    is_pretraining,
    without_encoder_prefix,
)
from vmae_lab.models.checkpoints.pickled import read_file
from vmae_lab.models.checkpoints.settings import check_fits_config, check_heads, refuse_others
from vmae_lab.models.checkpoints.shapes import clip_in, encoder_in, size_in
from vmae_lab.models.checkpoints.weights import CheckpointError, State
from vmae_lab.models.checkpoints.wrappers import EMBEDDING, without_prefixes
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import SIZES, ClipShape, Size

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = ".index.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Of transformers, then of DeepSpeed, whose folders have other files next to them.
KNOWN_FILES = (WEIGHTS, WEIGHTS + INDEX, "pytorch_model.bin", f"pytorch_model.bin{INDEX}", "mp_rank_00_model_states.pt")
OFFICIAL = ("patch_embed.proj.weight", "encoder.patch_embed.proj.weight")  # an encoder's embedding, by layout
THEIRS = ("embeddings.patch_embeddings.projection.weight", "videomae.embeddings.patch_embeddings.projection.weight")
OURS = ("encoder.embed.weight",)
TRANSFORMERS = "videomae"  # the model_type of its configs
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names, and what they are of; `where` names them in messages."""

    state: State
    config: ModelConfig
    where: str


def open_checkpoint(where: str | Path, size: Size | str | None = None, revision: str | None = None) -> Checkpoint:
    """Read a folder, a file, or a repository of the hub: our layout, the official ones, transformers', V2's remote code.

    Official files do not say everything: `size` is needed if their numbers are none of the paper's, and their clip is that of a
    config.json next to them, of the script's arguments in them, or 16 frames of 224 pixels. Raises CheckpointError, naming what
    is wrong and what to do.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise CheckpointError(f"there is no model size '{size}'; sizes are {', '.join(SIZES)}, or a Size of your own")
        size = SIZES[size]
    place = _local(where, revision)
    state, arguments = _weights_in(place)
    state, config = without_prefixes(state, str(where)), _config_in(place)
    if strange := [key for key in state if EMBEDDING.fullmatch(key) and key not in OFFICIAL + THEIRS + OURS]:
        raise CheckpointError(
            f"{where} has an encoder under a name that is not known: {strange[0]}. Save its weights again without what stands "
            "before the model's own names"
        )
    if not state.keys().isdisjoint(OFFICIAL):
        return _from_official(without_encoder_prefix(state), config, arguments, size, str(where))
    if any(key.startswith(("videomae.", "embeddings.")) for key in state):
        return _from_transformers(state, config, str(where))
    if config.get("library") == "vmae_lab":
        return Checkpoint(state, _ours(config, str(where)), str(where))
    if any(key.startswith("encoder.trunk.") for key in state):
        raise CheckpointError(
            f"{where} holds weights of this package without the {CONFIG} that save_pretrained writes next to them; build the "
            "model and give them to load_weights"
        )
    raise CheckpointError(f"{where} holds no VideoMAE: it has no {OFFICIAL[0]}. It has: {', '.join(list(state)[:10])}")


def _from_transformers(state: State, config: dict[str, Any], where: str) -> Checkpoint:
    if config.get("model_type") != TRANSFORMERS:
        raise CheckpointError(f"{where} holds weights in transformers' names, and no {CONFIG} of a 'videomae' next to them")
    size, clip = transformers.shapes_of(config, f"{where}: {CONFIG}")
    official, normed = transformers.official_weights(state, config, f"{where}: {CONFIG}")
    pretraining = _Pretraining(bool(config.get("norm_pix_loss", True)), encoder_norm=normed)
    return _in_our_names(without_encoder_prefix(official), size, clip, where, pretraining)


def _from_official(
    state: State, config: dict[str, Any], arguments: Mapping[str, Any], size: Size | None, where: str
) -> Checkpoint:  # fmt: skip
    """Weights in official names; size and clip are a config's next to them, or what weights and arguments tell."""
    told, normalised = f"{where}: {CONFIG}", True
    if remote_code.SECTION in config:
        clip, heads = remote_code.clip_and_heads(config, told)
        state, found = remote_code.official_weights(state, config, told), size_in(state, where, heads)
        section = config[remote_code.SECTION]
        size = replace(found, width=section.get("embed_dim", found.width), depth=section.get("depth", found.depth))
    elif config.get("library") == "vmae_lab":
        ours = _ours(config, where)
        size, clip, normalised = ours.size, ours.clip, ours.normalise_target is not False
    elif config.get("model_type") == TRANSFORMERS:
        (size, clip), normalised = transformers.shapes_of(config, told), bool(config.get("norm_pix_loss", True))
    else:
        refuse_others(arguments, {"use_mean_pooling": True}, f"{where}: its arguments")
        normalised = arguments.get("normlize_target") is not False  # so it is called there
        size, clip = size or size_in(state, where), clip_in(state, arguments, where)
        return _in_our_names(state, size, clip, where, _Pretraining(normalised))
    check_fits_config(size, clip, encoder_in(state, where), told)
    return _in_our_names(state, size, clip, where, _Pretraining(normalised))


@dataclass(frozen=True)
class _Pretraining:
    """What a pre-training model does that its weights do not tell."""

    normalise_target: bool = True
    encoder_norm: bool = True


def _in_our_names(official: State, size: Size, clip: ClipShape, where: str, pretraining: _Pretraining) -> Checkpoint:
    pretrained = is_pretraining(official)
    check_heads(size, pretrained, where)
    if pretrained:
        config = ModelConfig(
            model="VideoMAE", size=size, clip=clip, normalise_target=pretraining.normalise_target,
            encoder_norm=pretraining.encoder_norm,
        )  # fmt: skip
        return Checkpoint(from_official_pretrain(official), config, where)
    if "norm.weight" in official:  # beside a head: a bare encoder's is left out
        raise CheckpointError(
            f"{where} classifies by its first token (use_mean_pooling false, or the official --use_cls); classifiers of this "
            "package read the mean token"
        )
    state = from_official_classifier(official)
    head = state.get("head.head.weight")
    config = ModelConfig(
        model="VideoClassifier", size=size, clip=clip, classes=None if head is None else len(head), readout="mean"
    )
    return Checkpoint(state, config, where)


def _local(where: str | Path, revision: str | None) -> Path:
    """The path itself, or where the hub's files were put."""
    path = Path(where).expanduser()
    if path.exists():
        return path
    if not isinstance(where, str) or not HUB_ID.fullmatch(where):
        raise CheckpointError(f"there is no checkpoint {where}: no such file or folder, nor the owner/name of the hub's")
    try:
        folder = Path(snapshot_download(where, revision=revision, allow_patterns=[CONFIG, "*.safetensors*"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(where, revision=revision, allow_patterns=[CONFIG, "*.bin*", "*.pth", "*.pt", "*.ckpt"])
            )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"there is no folder {where} here, and the hub does not give it ({first}). Check the name and the network, "
            "log in where it is private, or give the path of a copy"
        ) from error
    return folder


def _weights_in(place: Path) -> tuple[State, Mapping[str, Any]]:
    """The weights of a file, of the parts that an index names, or of a folder with one of these; and the scripts' arguments."""
    if place.is_dir():
        place = _file_in(place)
    if not place.name.endswith(INDEX):
        return read_file(place)
    parts = _json(place).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise CheckpointError(f"{place} has no weight_map, which names the file of each weight")
    states = [read_file(place.parent / str(part))[0] for part in sorted(set(parts.values()))]
    return {key: value for state in states for key, value in state.items()}, {}


def _file_in(folder: Path) -> Path:
    """A folder's file of weights, or the index of its parts."""
    known = next((folder / name for name in KNOWN_FILES if (folder / name).exists()), None)
    if known:
        return known
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    if any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{folder} is a distributed checkpoint of PyTorch; make one file of it, and give that file: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pth"
        )
    found = f"has {len(files)} ({', '.join(file.name for file in files[:10])})" if files else "has none"
    raise CheckpointError(f"{folder} should hold one file of weights ({', '.join(SUFFIXES)}) and {found}; name the file")


def _config_in(place: Path) -> dict[str, Any]:
    """The config of a folder, or the one next to a file; empty if there is none."""
    file = place / CONFIG if place.is_dir() else place.with_name(CONFIG)
    return _json(file) if file.exists() else {}


def _ours(config: dict[str, Any], where: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(config)
    except ValidationError as error:
        findings = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:10])
        raise CheckpointError(f"{where}: {CONFIG} is not what save_pretrained writes: {findings}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object; it is not a config of a model")
    return content
