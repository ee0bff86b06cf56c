"""Parameters on the command line: a YAML of params/ or by path, and dotted one-offs, `-p NAME VALUE`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperCommand

from vmae_lab.lab.places import how_to_find_it
from vmae_lab.lab.recipe import RecipeError

PAIR = ("-p", "--override")
NOTHING: list[Any] = []  # the default of options that may be repeated: typer takes them for lists by their type
Overrides = Annotated[
    list[str],
    typer.Option(*PAIR, metavar="NAME VALUE", help="One dotted setting, e.g. -p pretrain.steps 200; VALUE is read as YAML."),
]


class TakesPairs(TyperCommand):
    """A command whose `-p` takes two values. typer repeats options of one value only, so they are joined: NAME=VALUE."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _joined(args))


def _joined(words: Sequence[str]) -> list[str]:
    left, joined = list(words), list[str]()
    while left:
        joined.append(word := left.pop(0))
        if word == "--":
            return joined + left
        if word in PAIR:
            if len(left) < 2 or "=" in left[0]:
                raise typer.BadParameter("a name and a value are expected, e.g. -p pretrain.steps 200", param_hint=word)
            joined.append(f"{left.pop(0)}={left.pop(0)}")
    return joined


def scale_parameters(scale: str, folder: Path, pairs: Sequence[str]) -> dict[str, Any]:
    """A scale's parameters with the overrides. Raises RecipeError.

    With overrides the scale is called `<scale>-variant`, unless they name it, so that a try-out never replaces a report.
    """
    parameters = _read_scale(scale, folder)
    one_offs = {name: _value(name, text) for name, _, text in (pair.partition("=") for pair in pairs)}
    overrides = dict(parameters.get("override") or {}) | one_offs
    if one_offs and "scale" in parameters:
        parameters["scale"] = overrides.pop("scale", f"{parameters['scale']}-variant")
    return {**parameters, "override": overrides}


def _read_scale(scale: str, folder: Path) -> dict[str, Any]:
    """The parameters of `<scale>.yaml` in a folder, or of a YAML file by path."""
    file = Path(scale) if scale.endswith((".yaml", ".yml")) else folder / f"{scale}.yaml"
    if not file.is_file():
        there = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
        known = ", ".join(path.relative_to(folder).with_suffix("").as_posix() for path in there) or "none"
        raise RecipeError(f"there is no parameter file {file}; scales in {folder}: {known}{how_to_find_it()}")
    try:
        parameters = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(parameters, dict):
        raise RecipeError(f"{file} holds no parameters: name: value lines were expected")
    return parameters


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"-p {name} {text!r} is not valid YAML: {error}") from error
