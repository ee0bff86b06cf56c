"""What weights in the official names tell about the model they are of, where no config lies beside them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vmae_lab.models.checkpoints.official import EMBEDDING, is_pretraining
from vmae_lab.models.checkpoints.settings import COLOURS, refuse_others
from vmae_lab.models.checkpoints.weights import CheckpointError, State
from vmae_lab.models.sizes import SIZES, ClipShape, Size

HEAD_WIDTH = 64  # of every official decoder


def size_in(state: State, where: str, heads: int | None = None) -> Size:
    """Widths and depths of an official state; heads by `heads`, or by the size of the paper's that has these numbers.

    Raises CheckpointError where it is no VideoMAE, or its heads cannot be told.
    """
    before = "encoder." if is_pretraining(state) else ""
    width, _, _, patch, _ = _kernel(state, where)
    depth, hidden = _depth(state, f"{before}blocks."), _hidden(state, f"{before}blocks.", where)
    known = next((one for one in SIZES.values() if (one.width, one.depth, one.mlp_hidden) == (width, depth, hidden)), None)
    if known is None and heads is None:
        raise CheckpointError(
            f"{where} is of {depth} blocks, {width} wide, with {hidden} inside, which is none of the sizes "
            f"{', '.join(SIZES)}, and weights do not tell the number of attention heads; give size=Size(...)"
        )
    base = known or SIZES["base"]
    size = replace(base, width=width, depth=depth, mlp_hidden=hidden, heads=heads or base.heads, patch=patch)
    if not before:
        return size
    decoder = _decoder_width(state, where)
    return replace(
        size, decoder_width=decoder, decoder_depth=_depth(state, "decoder.blocks."),
        decoder_heads=max(1, decoder // HEAD_WIDTH), decoder_mlp_hidden=_hidden(state, "decoder.blocks.", where),
    )  # fmt: skip


def clip_in(state: State, arguments: Mapping[str, Any], where: str) -> ClipShape:
    """The clip of an official file: cubes of the kernel's shape, frames and pixels of the script's arguments.

    Without arguments it is the paper's clip of 16 frames of 224 pixels. Raises CheckpointError.
    """
    _, channels, tubelet, patch, _ = _kernel(state, where)
    refuse_others({"channels": channels}, {"channels": COLOURS}, where)
    try:
        frames = int(arguments.get("num_frames") or 16) * int(arguments.get("num_segments") or 1)
        return ClipShape(frames, int(arguments.get("input_size") or 224), tubelet, patch, channels)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: its arguments num_frames, input_size do not describe a clip of its model: {error}"
        ) from error


def encoder_in(state: State, where: str) -> tuple[int, int, int, int, int]:
    """Width, depth, channels, tubelet and patch of an official state's encoder. Raises CheckpointError."""
    width, channels, tubelet, patch, _ = _kernel(state, where)
    return width, _depth(state, "encoder.blocks." if is_pretraining(state) else "blocks."), channels, tubelet, patch


def _kernel(state: State, where: str) -> tuple[int, int, int, int, int]:
    key = next((key for key in state if key.endswith(EMBEDDING)), None)
    if key is None or state[key].ndim != 5:
        shown = ", ".join(list(state)[:10])
        raise CheckpointError(f"{where} holds no VideoMAE: it has no kernel {EMBEDDING} of five dimensions. It has: {shown}")
    width, channels, tubelet, rows, columns = state[key].shape
    return width, channels, tubelet, rows, columns


def _depth(state: State, prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _hidden(state: State, prefix: str, where: str) -> int:
    return len(_one(state, f"{prefix}0.mlp.fc1.weight", where))


def _decoder_width(state: State, where: str) -> int:
    return len(_one(state, "encoder_to_decoder.weight", where))


def _one(state: State, key: str, where: str) -> Tensor:
    if key not in state:
        raise CheckpointError(f"{where} has no {key}; it is not whole, or no VideoMAE")
    return state[key]
