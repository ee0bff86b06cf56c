"""Parameters on the command line: a file of params/ or a path, and single settings, `-p NAME VALUE`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

PAIR = ("-p", "--override")
NOTHING: list[Any] = []  # the default of options that may be repeated
Overrides = Annotated[
    list[str],
    typer.Option(
        *PAIR,
        metavar="NAME VALUE",
        help="Change a setting by its dotted name: -p pretrain.steps 200. VALUE is YAML, or plain text for a text setting.",
    ),
]
Device = Annotated[str | None, typer.Option(help="Device, for example cuda or cpu. Default: a GPU if there is one.")]


def output_file(*suffixes: str) -> Callable[[Path | None], Path | None]:
    """Return the callback of an option for a file to write. Its suffix chooses the format.

    The callback raises BadParameter before any work if the suffix is another one or if a folder has the name.
    """

    def check(out: Path | None) -> Path | None:
        if out and out.suffix not in suffixes:
            raise typer.BadParameter(f"{out} must end in {' or '.join(suffixes)}, which chooses the format")
        if out and out.is_dir():
            raise typer.BadParameter(f"{out} is a folder; give the path of a file")
        return out

    return check


class TakesPairs(TyperCommand):
    """A command whose `-p` takes two values. typer repeats options of one value only, so they are joined: NAME=VALUE."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left = list(args)
        joined: list[str] = []
        while left:
            word = left.pop(0)
            joined.append(word)
            if word == "--":
                break
            if word in PAIR:
                if len(left) < 2 or "=" in left[0]:
                    raise typer.BadParameter("a name and a value are expected, e.g. -p pretrain.steps 200", param_hint=word)
                joined.append(f"{left.pop(0)}={left.pop(0)}")
        return super().parse_args(ctx, joined + left)


def scale_parameters(scale: str, folder: Path, pairs: Sequence[str]) -> dict[str, Any]:
    """Return a scale's parameters, from a folder or by path, with the overrides as text. Raises RecipeError."""
    from vmae_lab.lab.scales import read_scale

    parameters = read_scale(scale, [folder])
    return {**parameters, "override": {**(parameters.get("override") or {}), **by_name(pairs)}}


def by_name(pairs: Sequence[str]) -> dict[str, str]:
    """Return a dictionary of NAME=VALUE pairs."""
    return {name: text for name, _, text in (pair.partition("=") for pair in pairs)}
