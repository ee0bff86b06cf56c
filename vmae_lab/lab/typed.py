"""Text into the values that settings take: read as YAML, unless the setting is text."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from vmae_lab.utils.errors import UserError

INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
LEFT_TO_YAML = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class RecipeError(UserError, ValueError):
    """A parameter that is unknown, misspelt, of the wrong type, or impossible: names it and what is accepted."""


class _AsWritten(yaml.SafeLoader):
    """YAML whose scalars stay as they are written, except null: their settings decide what they are."""


_AsWritten.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] in LEFT_TO_YAML]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """The mappings, lists and texts of a YAML document. Raises yaml.YAMLError."""
    return yaml.load(text, _AsWritten)


def typed(value: Any, annotation: Any, name: str) -> Any:
    """`value` with its texts as a setting of type `annotation` takes them. What does not fit is left to pydantic.

    A text setting takes a text as it is (None for "null" if it may be None). Elsewhere a text is read as YAML, and a single
    value stands for a list of one. `name` is the setting's dotted name, for the message. Raises RecipeError.
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
    """A text that is one quoted YAML text stands for what is in the quotes."""
    if not (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return text
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str) else text


def _scalar(text: str) -> int | float | bool | str:
    """A number or a truth value as YAML 1.2 writes it: 0123 is 123, 1e-3 is a number, `no` is text (and pydantic's false)."""
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)
