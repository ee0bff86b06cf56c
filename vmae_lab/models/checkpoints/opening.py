"""Any checkpoint, wherever it is and whatever its layout: its weights in our names, and what they are of."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import ValidationError

from vmae_lab.models.checkpoints import remote_code, transformers
from vmae_lab.models.checkpoints.official import from_official_classifier, from_official_pretrain, is_pretraining, unwrapped
from vmae_lab.models.checkpoints.pickled import read_pickled
from vmae_lab.models.checkpoints.shapes import clip_in, size_in
from vmae_lab.models.checkpoints.weights import CheckpointError, State, read_weights
from vmae_lab.models.config import ModelConfig
from vmae_lab.models.sizes import SIZES, ClipShape, Size

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names, and what they are of; `where` names them in messages."""

    state: State
    config: ModelConfig
    where: str


def open_checkpoint(where: str | Path, size: Size | str | None = None, revision: str | None = None) -> Checkpoint:
    """Read a folder, a file, or a repository of the hub: our layout, the official ones, transformers', V2's remote code.

    Official files do not say everything: `size` is needed where their numbers are none of the paper's, and their clip is
    taken to be of 16 frames of 224 pixels. Raises CheckpointError, naming what is wrong and what to do.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise CheckpointError(f"there is no model size '{size}'; sizes are {', '.join(SIZES)}, or a Size of your own")
        size = SIZES[size]
    place = _local(where, revision)
    state, config = _state_in(place), _config_in(place)
    if config.get("library") == "vmae_lab":
        return Checkpoint(state, _ours(config, place), str(where))
    if any(key.startswith("encoder.trunk.") for key in state):
        raise CheckpointError(
            f"{where} holds weights of this package without the {CONFIG} that save_pretrained writes beside them; build the "
            "model and give them to load_weights"
        )
    if any(key.startswith(("videomae.", "embeddings.")) for key in state):
        return _from_transformers(state, config, str(where))
    return _from_official(unwrapped(state), config, size, str(where))


def _from_transformers(state: State, config: dict[str, Any], where: str) -> Checkpoint:
    if config.get("model_type") != "videomae":
        raise CheckpointError(f"{where} holds weights in transformers' names, and no {CONFIG} of a 'videomae' beside them")
    if any(key.startswith("embeddings.") for key in state):  # a bare VideoMAEModel
        state = {f"videomae.{key}": value for key, value in state.items()}
    size, clip = transformers.shapes_of(config, f"{where}: {CONFIG}")
    official = unwrapped(transformers.from_transformers(transformers.as_in_files(state)))
    return _in_our_names(official, size, clip, bool(config.get("norm_pix_loss", True)), where)


def _from_official(state: State, config: dict[str, Any], size: Size | None, where: str) -> Checkpoint:
    if remote_code.SECTION in config:
        clip, heads = remote_code.clip_and_heads(config, f"{where}: {CONFIG}")
        return _in_our_names(state, size_in(state, where, heads), clip, True, where)
    return _in_our_names(state, size or size_in(state, where), clip_in(state, where), True, where)


def _in_our_names(official: State, size: Size, clip: ClipShape, normalised: bool, where: str) -> Checkpoint:
    if is_pretraining(official):
        config = ModelConfig(model="VideoMAE", size=size, clip=clip, normalise_target=normalised)
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
            folder = Path(snapshot_download(where, revision=revision, allow_patterns=[CONFIG, "*.bin", "*.pth"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"there is no folder {where} here, and the hub does not give it ({first}). Check the name and the network, "
            "log in where it is private, or give the path of a copy"
        ) from error
    return folder


def _state_in(place: Path) -> State:
    """The weights of a file, or of a folder: one safetensors file, its parts by index, or one pickled file."""
    if place.is_file():
        return read_weights(place) if place.suffix == ".safetensors" else read_pickled(place)
    if (place / WEIGHTS).exists():
        return read_weights(place / WEIGHTS)
    index = place / f"{WEIGHTS}.index.json"
    if index.exists():
        parts = sorted(set(_json(index).get("weight_map", {}).values()))
        return {key: value for part in parts for key, value in read_weights(place / part).items()}
    files = sorted([*place.glob("*.safetensors"), *place.glob("*.pth"), *place.glob("*.bin")])
    if len(files) != 1:
        found = f"has {len(files)} ({', '.join(file.name for file in files[:10])})" if files else "has none"
        raise CheckpointError(f"{place} should hold one file of weights ({WEIGHTS}, *.pth, *.bin) and {found}; name the file")
    return _state_in(files[0])


def _config_in(place: Path) -> dict[str, Any]:
    """The config of a folder, or beside a file of the hub's kinds; empty where there is none."""
    file = place / CONFIG if place.is_dir() else place.with_name(CONFIG)
    return _json(file) if file.exists() and (place.is_dir() or place.suffix != ".pth") else {}


def _ours(config: dict[str, Any], place: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(config)
    except ValidationError as error:
        findings = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:10])
        raise CheckpointError(f"{place}: {CONFIG} is not what save_pretrained writes: {findings}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object; it is not a config of a model")
    return content
