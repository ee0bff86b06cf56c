"""Convert text to the types of settings, and merge sections and single settings into the values of a scale.

Text is read as YAML, unless the setting is a text. `model` is the recipe's class, whose fields give the types.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from vmae_lab.utils.errors import UserError

Model = type[BaseModel]
INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
DATA_SOURCES = ("motionworld", "lists")  # a section has one of them
OF_A_DATA_SOURCE = ("pretrain_sources", "pretrain_limits")  # settings that name parts of it


class RecipeError(UserError, ValueError):
    """A parameter that is unknown, of the wrong type, or impossible. The message names it and what is accepted."""


# ---------------------------------------------------------------------------------------------------------------------------
# Types of settings


class _TextLoader(yaml.SafeLoader):
    """Keeps scalars as text, except null, because the type of the setting decides how its text is read."""


_TextLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """The mappings, lists and texts of a YAML document. Raises yaml.YAMLError."""
    return yaml.load(text, _TextLoader)


def typed(value: Any, annotation: Any, name: str) -> Any:
    """`value` with its text converted for a setting of type `annotation`. pydantic refuses what does not fit.

    A text setting keeps its text (None for "null" if it accepts None). For other settings, text is read as YAML, and a single
    value becomes a list of one if a list is expected. `name` is the setting's dotted name, for messages. Raises RecipeError.
    """
    kinds = list(alternatives(annotation))
    takes_text = any(kind in (str, Path) or get_origin(kind) is Literal for kind in kinds)
    if isinstance(value, str):
        value = _read(value, kinds, takes_text, name)
    if isinstance(value, Mapping):
        return {key: typed(item, type_at([key], annotation), f"{name}.{key}") for key, item in value.items()}
    item_types = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), (Any, ...))
    any_length = item_types[-1] is Ellipsis
    if isinstance(value, list | tuple):
        if any_length or len(item_types) != len(value):
            item_types = (item_types[0],) * len(value)
        return [typed(item, item_types[i], f"{name}.{i}") for i, item in enumerate(value)]
    if value is not None and any_length and all(kind is NoneType or get_origin(kind) is tuple for kind in kinds):
        return [typed(value, item_types[0], name)]
    return _scalar(value) if isinstance(value, str) and not takes_text else value


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types that a setting accepts: the members of a union, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation


def section_of(annotation: Any) -> Model | None:
    """The section among the types that a setting accepts, if there is one."""
    return next((kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def type_at(path: list[str], annotation: Any) -> Any:
    """The type of the setting at a path from a section or dictionary; Any if there is no such setting."""
    for name in path:
        section = section_of(annotation)
        if section and name in section.model_fields:
            annotation = section.model_fields[name].annotation
        else:
            annotation = next((get_args(kind)[1] for kind in alternatives(annotation) if get_origin(kind) is dict), Any)
    return annotation


def _read(text: str, kinds: list[Any], takes_text: bool, name: str) -> Any:
    """The YAML value of a text. A setting that takes text gets the text itself, without quotes around the whole."""
    if takes_text and text == "null" and NoneType in kinds:
        return None
    if not takes_text or any(section_of(kind) or get_origin(kind) in (tuple, dict) for kind in kinds):
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            if takes_text:
                return text
            reason = getattr(error, "problem", None) or str(error)
            raise RecipeError(
                f"{name}: -p {name} {text!r} is not valid YAML: {reason}; put text with special characters in quotes"
            ) from None
        if not takes_text or isinstance(value, dict | list):
            return value
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        with suppress(yaml.YAMLError):
            unquoted = read_yaml(text)
            return unquoted if isinstance(unquoted, str) else text
    return text


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
    return {name: typed(value, type_at([name], model), name) for name, value in sections.items()}, dict(overrides or {})


def apply_overrides(tree: dict[str, Any], overrides: Mapping[str, Any], model: Model) -> set[str]:
    """Set dotted settings in a tree of values. Returns their names. Raises RecipeError."""
    names = set()
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        section = tree
        for name in path:
            if section.get(name) is None:  # not given, or an optional section that is null
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise RecipeError(f"override '{dotted}': '{name}' is a single value, not a section")
        section[last] = typed(value, type_at([*path, last], model), dotted)
        names |= {*_dotted_names(section[last], dotted)}
    return names


def merge_sections(tree: dict[str, Any], sections: Mapping[str, Any], model: Model, prefix: str = "") -> set[str]:
    """Merge sections into a tree of values, key by key. Returns the dotted names of the changed values.

    A dictionary that is a single setting is replaced as a whole. A section that gets another source of data loses its old
    source and the settings that name parts of it.
    """
    changed = set[str]()
    for name, value in sorted(sections.items(), key=lambda item: item[0] != "data"):  # data first: it resets evaluate.sources
        current, section, dotted = tree.get(name), section_of(type_at([name], model)), f"{prefix}{name}"
        if section and isinstance(value, Mapping) and isinstance(current, dict):
            old, new = ([source for source in DATA_SOURCES if part.get(source) is not None] for part in (current, value))
            if old and new and not set(old) & set(new):
                for outdated in (*old, *OF_A_DATA_SOURCE):
                    current.pop(outdated, None)
                if dotted == "data" and isinstance(tree.get("evaluate"), dict):
                    tree["evaluate"].pop("sources", None)
            changed |= merge_sections(current, value, section, f"{dotted}.")
        elif name not in tree or current != value:
            tree[name] = value
            changed |= {*_dotted_names(value, dotted)}
    return changed


def _dotted_names(value: Any, name: str) -> Iterator[str]:
    """`name`, and the dotted names of all values in it if it is a dictionary."""
    yield name
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _dotted_names(item, f"{name}.{key}")
