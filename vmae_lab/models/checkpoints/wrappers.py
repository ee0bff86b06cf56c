"""Weights without what training tools put around them: containers in a file, and prefixes in the names of tensors."""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from vmae_lab.models.checkpoints.weights import CheckpointError, State

# No model has these parts in its names: DDP, torch.compile, DeepSpeed and Fabric, FSDP, checkpointed activations.
TRANSPARENT = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Attributes that hold the model in a trainer, a detector or an average of weights.
HOLDERS = {"model", "encoder", "backbone", "student", "net", "network"}
AVERAGES = {"ema", "model_ema", "ema_model", "averaged_model"}
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
# How names begin in the official layout, in transformers' and in ours.
BEGINNING = re.compile(
    r"(patch_embed|blocks|norm|fc_norm|head|encoder_to_decoder|decoder|mask_token|encoder\.(patch_embed|blocks|norm)"
    r"|videomae|embeddings|encoder\.layer|layernorm|classifier|encoder\.(trunk|embed)|bridge)(\.|$)"
)
# The one weight that every encoder has, in the three layouts.
EMBEDDING = re.compile(r"(.*\.)?(patch_embed\.proj|patch_embeddings\.projection|encoder\.embed)\.weight")
NESTS = ("model", "module", "state_dict")  # looked into to name what a file holds, where it holds no encoder


def state_in(content: Any, where: str) -> State:
    """The weights in a file's content, however deep it nests them.

    A moving average is taken only if the file has no other weights of an encoder. Raises CheckpointError if there are several
    models, or no weights.
    """
    found = dict(_states(content, ()))
    plain = {place: state for place, state in found.items() if not _is_average(place)}
    if plain and len(plain) < len(found):
        averages = ", ".join(repr(_in_words(place)) for place in found if place not in plain)
        _warn_of_average(where, repr(_in_words(next(iter(plain)))), averages)
    candidates = plain or found
    if len(candidates) > 1:
        raise CheckpointError(
            f"{where} holds {len(candidates)} models: {', '.join(map(_in_words, candidates))}. Save one of them in its own "
            f"file, e.g. torch.save(torch.load(file, weights_only=True){_as_index(next(iter(candidates)))}, 'weights.pth')"
        )
    state = next(iter(candidates.values())) if candidates else _some_tensors(content, where)
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{where} holds, among its weights, what is not a tensor: {', '.join(strange[:10])}")
    return dict(state)


def without_prefixes(state: State, where: str) -> State:
    """The same tensors without the prefixes of wrappers, in whichever order and depth these stand.

    A name that does not begin as a VideoMAE's does after that is left as it is. Weights of a moving average are left out if the
    model's own are there. Raises CheckpointError if two tensors get the same name.
    """
    names = {key: _without_prefix(key) for key in state if key.rsplit(".", 1)[-1] != COUNTER}
    averaged = [key for key, (_, of_average) in names.items() if of_average]
    if averaged and any(EMBEDDING.fullmatch(name) for name, of_average in names.values() if not of_average):
        _warn_of_average(where, "the model", f"{len(averaged)} weights such as {averaged[0]}")
        names = {key: name for key, name in names.items() if not name[1]}
    bare: dict[str, str] = {}
    for key, (name, _) in names.items():
        if name in bare:
            raise CheckpointError(
                f"{where} has two weights for {name}: {bare[name]} and {key}. Save the model that you want in a file of its own"
            )
        bare[name] = key
    return {name: state[key] for name, key in bare.items()}


def _without_prefix(key: str) -> tuple[str, bool]:
    """A name without its wrappers, and whether one of those is a moving average."""
    parts, before = _parts(key), []
    while parts[1:] and parts[0] in HOLDERS | AVERAGES and not BEGINNING.match(".".join(parts)):
        before.append(parts.pop(0))
    name = ".".join(parts)
    return name if BEGINNING.match(name) else key, not AVERAGES.isdisjoint(before)


def _parts(key: str) -> list[str]:
    return [part for part in key.split(".") if part not in TRANSPARENT]


def _states(content: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every dictionary in the content that has an encoder's embedding, and its place."""
    if not isinstance(content, Mapping):
        return
    if any(isinstance(key, str) and EMBEDDING.fullmatch(".".join(_parts(key))) for key in content):
        yield place, content
        return
    for key, value in content.items():
        yield from _states(value, (*place, str(key)))


def _some_tensors(content: Any, where: str) -> Mapping[str, Any]:
    """The first dictionary of tensors, for a message that names them. Raises CheckpointError."""
    places = [content, *(content.get(nest) for nest in NESTS)] if isinstance(content, Mapping) else []
    for state in places:
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return state
    raise CheckpointError(
        f"{where} holds no weights: neither it nor its 'model' or any other dictionary in it has a tensor named "
        "patch_embed.proj.weight (official), patch_embeddings.projection.weight (transformers) or encoder.embed.weight (ours)"
    )


def _is_average(place: tuple[str, ...]) -> bool:
    return any(re.search(r"(^|[_.])(ema|averaged)($|[_.])", part.lower()) for part in place)


def _in_words(place: tuple[str, ...]) -> str:
    return ".".join(place) or "the file itself"


def _as_index(place: tuple[str, ...]) -> str:
    return "".join(f"[{part!r}]" for part in place)


def _warn_of_average(where: str, taken: str, left: str) -> None:
    warnings.warn(
        f"{where}: {taken} is loaded; the moving average next to it is not ({left}). To load the average, save it in a file of "
        "its own",
        stacklevel=5,
    )
