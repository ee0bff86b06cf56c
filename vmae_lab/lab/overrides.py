"""How sections and single settings change a recipe's values, and how text becomes the type of its setting.

Text is read as YAML, unless the setting is text. `model` is the recipe's class, whose fields give the types.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from vmae_lab.utils.errors import UserError

Model = type[BaseModel]
EITHER = ("motionworld", "lists")  # sources of data, of which a section takes one
OF_THE_SOURCE = ("pretrain_sources", "pretrain_limits")  # settings that name parts of that source
INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
LEFT_TO_YAML = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class RecipeError(UserError, ValueError):
    """A parameter that is unknown, of the wrong type, or impossible. The message names it and what is accepted."""


class _AsWritten(yaml.SafeLoader):
    """YAML whose scalars stay text, except null: the type of their setting decides."""


_AsWritten.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] in LEFT_TO_YAML]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """The mappings, lists and texts of a YAML document. Raises yaml.YAMLError."""
    return yaml.load(text, _AsWritten)


def typed(value: Any, annotation: Any, name: str) -> Any:
    """`value` with its text converted for a setting of type `annotation`. What does not fit is left to pydantic.

    A text setting takes text unchanged (None for "null" if it may be None). For other settings, text is read as YAML, and a
    single value becomes a list of one if a list is expected. `name` is the setting's dotted name, for messages. Raises
    RecipeError.
    """
    kinds = list(alternatives(annotation))
    if isinstance(value, str):
        value = _read(value, kinds, name)
    if isinstance(value, Mapping):
        return {key: typed(one, kind_below(kinds, key), f"{name}.{key}") for key, one in value.items()}
    items = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), (Any, ...))
    if isinstance(value, list | tuple):
        each = items if items[-1] is not Ellipsis and len(items) == len(value) else [items[0]] * len(value)
        return [typed(one, kind, f"{name}.{place}") for place, (one, kind) in enumerate(zip(value, each, strict=True))]
    if value is not None and all(get_origin(kind) is tuple or kind is NoneType for kind in kinds) and items[-1] is Ellipsis:
        return [typed(value, items[0], name)]
    return _scalar(value) if isinstance(value, str) and not any(map(_is_text, kinds)) else value


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types that a setting may be of: the parts of a union, without what annotates them."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    else:
        yield annotation


def section_of(kinds: list[Any]) -> type[BaseModel] | None:
    """The section among a setting's types, if it may be one."""
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def kind_below(kinds: list[Any], key: str) -> Any:
    """The type of a key in a section or a dictionary; Any if neither has it."""
    section = section_of(kinds)
    if section and key in section.model_fields:
        return section.model_fields[key].annotation
    return next((get_args(kind)[1] for kind in kinds if get_origin(kind) is dict), Any)


def kind_of(path: list[str], annotation: Any) -> Any:
    """The type of a setting by its path from a section."""
    for name in path:
        annotation = kind_below(list(alternatives(annotation)), name)
    return annotation


def _is_text(kind: Any) -> bool:
    return kind in (str, Path) or get_origin(kind) is Literal


def _read(text: str, kinds: list[Any], name: str) -> Any:
    is_text = any(map(_is_text, kinds))
    if is_text and text == "null" and NoneType in kinds:
        return None
    holds_others = bool(section_of(kinds)) or any(get_origin(kind) in (tuple, dict) for kind in kinds)
    if is_text and not holds_others:
        return _without_quotes(text)
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        if is_text:
            return text
        where = getattr(error, "problem", None) or str(error)
        raise RecipeError(
            f"{name}: -p {name} {text!r} is not valid YAML: {where}; put text with special characters in quotes"
        ) from None
    return value if isinstance(value, dict | list) or not is_text else _without_quotes(text)


def _without_quotes(text: str) -> str:
    """The text inside the quotes, if the whole text is one quoted YAML string."""
    if not (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return text
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str) else text


def _scalar(text: str) -> int | float | bool | str:
    """A number or boolean as in YAML 1.2: 0123 is 123, 1e-3 is a number, `no` stays text (which pydantic reads as false)."""
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)


# ---------------------------------------------------------------------------------------------------------------------------
# Merging


def split_override(parameters: Mapping[str, Any], model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into sections, with their text converted, and `override`'s dotted settings. Raises RecipeError."""
    sections = copy.deepcopy(dict(parameters))
    overrides = sections.pop("override", None)
    if isinstance(overrides, str):
        try:
            overrides = read_yaml(overrides)
        except yaml.YAMLError as error:
            raise RecipeError(f"override {overrides!r} is not valid YAML: {error}") from None
    if not isinstance(overrides, Mapping | None):
        raise RecipeError(f"override: dotted names and values are expected, e.g. {{pretrain.steps: 10}} (got {overrides!r})")
    typed_sections = {name: typed(value, kind_below([model], name), name) for name, value in sections.items()}
    return typed_sections, dict(overrides or {})


def apply_overrides(tree: dict[str, Any], overrides: Mapping[str, Any], model: Model) -> set[str]:
    """Set dotted settings in a tree of values. Returns their names. Raises RecipeError."""
    given = set()
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        place = tree
        for name in path:
            if place.get(name) is None:  # not there, or a section that is left out
                place[name] = {}
            place = place[name]
            if not isinstance(place, dict):
                raise RecipeError(f"override '{dotted}': '{name}' is a single value, not a section")
        place[last] = typed(value, kind_of([*path, last], model), dotted)
        given |= {dotted, *names_in(place[last], dotted)}
    return given


def merge_sections(tree: dict[str, Any], sections: Mapping[str, Any], model: Model) -> set[str]:
    """Merge sections into a tree of values, key by key. Returns the dotted names of the changed values.

    A dictionary that is a single setting is replaced as a whole. A section that gets another source of data loses its old
    source, and the settings that name parts of it.
    """
    data = sections.get("data")
    if isinstance(data, Mapping) and _other_source(tree.get("data") or {}, data) and isinstance(tree.get("evaluate"), dict):
        tree["evaluate"].pop("sources", None)
    return _merge(tree, sections, model, "")


def _merge(tree: dict[str, Any], sections: Mapping[str, Any], model: Model, where: str) -> set[str]:
    for name in _other_source(tree, sections):
        tree.pop(name, None)
    new: set[str] = set()
    for name, value in sections.items():
        section = section_of(list(alternatives(kind_below([model], name))))
        if section and isinstance(value, Mapping) and isinstance(tree.get(name), dict):
            new |= _merge(tree[name], value, section, f"{where}{name}.")
        elif name not in tree or tree[name] != value:
            tree[name] = value
            new |= {f"{where}{name}", *names_in(value, f"{where}{name}")}
    return new


def _other_source(tree: Mapping[str, Any], sections: Mapping[str, Any]) -> list[str]:
    """The settings to remove from a section that had one source of data and gets another."""
    had, gets = ([name for name in EITHER if one.get(name) is not None] for one in (tree, sections))
    return [*had, *OF_THE_SOURCE] if had and gets and not set(had) & set(gets) else []


def names_in(value: Any, name: str) -> Iterator[str]:
    """The dotted names of all values in the dictionary `name`."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield f"{name}.{key}"
            yield from names_in(one, f"{name}.{key}")
