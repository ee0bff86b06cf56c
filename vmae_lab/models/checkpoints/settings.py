"""What the settings of a config from elsewhere must be, so that our model is the same function."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from vmae_lab.models.checkpoints.weights import CheckpointError
from vmae_lab.models.sizes import ClipShape, Size
from vmae_lab.models.vit import NORM_EPS

# LayerNorm adds this to a variance. transformers' default is 1e-12 for weights that were trained with the official 1e-6.
LARGEST_EPS = 1e-5
COLOURS = 3


def refuse_others(settings: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError, naming the setting, if one of `settings` is there and differs from `ours`."""
    for name, value in ours.items():
        if settings.get(name, value) != value:
            raise CheckpointError(f"{where} has {name} {settings[name]!r}; models of this package have {value!r}")


def check_eps(settings: Mapping[str, Any], name: str, where: str) -> None:
    """Raise CheckpointError if the epsilon of LayerNorm is so large that ours would give other outputs."""
    eps = settings.get(name, NORM_EPS)
    if not isinstance(eps, int | float) or not 0 <= eps <= LARGEST_EPS:
        raise CheckpointError(
            f"{where} has {name} {eps!r}; models of this package have {NORM_EPS:g}, and open what has {LARGEST_EPS:g} or less"
        )


def warn_of_dropout(settings: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Dropout changes no output of the loaded model, but a training that goes on from it would have none."""
    set_there = [f"{name} {settings[name]!r}" for name in names if settings.get(name)]
    if set_there:
        warnings.warn(f"{where} has {', '.join(set_there)}; training here goes on without this dropout", stacklevel=5)


def check_heads(size: Size, decoder: bool, where: str) -> None:
    """Raise CheckpointError if the heads do not divide the width of the encoder, or of the decoder if there is one."""
    parts = [("encoder", size.width, size.heads), ("decoder", size.decoder_width, size.decoder_heads)]
    for part, width, heads in parts if decoder else parts[:1]:
        if heads < 1 or width % heads:
            raise CheckpointError(f"{where}: {heads} attention heads do not divide the {part}'s width {width}")


def check_fits_config(size: Size, clip: ClipShape, found: tuple[int, int, int, int, int], where: str) -> None:
    """Raise CheckpointError if a config describes another encoder than the weights: width, depth, cube."""
    described = (size.width, size.depth, clip.channels, clip.tubelet, clip.patch)
    if described != found:
        names = ("width", "depth", "channels", "tubelet", "patch")
        differing = ", ".join(
            f"{name} {there} (weights: {here})"
            for name, there, here in zip(names, described, found, strict=True)
            if there != here
        )
        raise CheckpointError(
            f"{where} describes another model than the weights next to it: {differing}. Keep them in folders of their own"
        )
