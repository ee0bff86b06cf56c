"""Convert text to the types of settings, and merge sections and single settings into the values of a scale.

Text is read as YAML, unless the setting is a text. `model` is the recipe's class, whose fields give the types.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from vmae_lab.utils.errors import UserError

Model = type[BaseModel]
DATA_SOURCES = ("motionworld", "lists")  # a section has one of them
OF_A_DATA_SOURCE = ("pretrain_sources", "pretrain_limits")  # settings that name parts of the data source


class RecipeError(UserError, ValueError):
    """A parameter is unknown, has the wrong type, or is impossible. The message names it and what is accepted."""


# ---------------------------------------------------------------------------------------------------------------------------
# Types of settings


class DuplicateKeyError(yaml.YAMLError):
    """A mapping has a key twice. YAML forbids this, but PyYAML would silently use the last value."""

    def __init__(self, key: str, line: int, first_line: int) -> None:
        self.line = line
        self.problem = f"the key '{key}' is already in line {first_line}; keep only one of them"
        super().__init__(f"line {line}: {self.problem}")


class _TextLoader(yaml.SafeLoader):
    """Reads all scalars except null as text, because the type of a setting decides how its text is converted."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return the node of a mapping. Raises DuplicateKeyError."""
        node = super().compose_mapping_node(anchor)
        lines = dict[str, int]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise DuplicateKeyError(key.value, line, lines[key.value])
                lines[key.value] = line
        return node


_TextLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """Return the mappings, lists and texts of a YAML document. Raises yaml.YAMLError, also if a key is given twice."""
    return yaml.load(text, _TextLoader)


def typed(value: Any, annotation: Any, name: str) -> Any:
    """Return `value` with its text converted to the type `annotation`. A value that does not fit is left to pydantic.

    A text setting keeps its text (None for "null" if it accepts None). For other settings, text is read as YAML, and a single
    value becomes a list of one if a list of any length is expected. Raises RecipeError, with the setting's `name`, if the text
    is not valid YAML.
    """
    kinds = list(alternatives(annotation))
    takes_text = any(kind in (str, Path) or get_origin(kind) is Literal for kind in kinds)
    if isinstance(value, str):
        value = _read(value, kinds, takes_text, name)
    if isinstance(value, Mapping):
        return {key: typed(item, type_at([key], annotation), f"{name}.{key}") for key, item in value.items()}
    item_type, *others = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), (Any,))
    if isinstance(value, list | tuple):
        return [typed(item, item_type, f"{name}.{i}") for i, item in enumerate(value)]
    if value is not None and others == [...] and all(kind is NoneType or get_origin(kind) is tuple for kind in kinds):
        return [typed(value, item_type, name)]
    return _scalar(value) if isinstance(value, str) and not takes_text else value


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types that a setting accepts: the members of a union, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation


def section_of(annotation: Any) -> Model | None:
    """Return the section among the types that a setting accepts, or None."""
    return next((kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def type_at(path: list[str], annotation: Any) -> Any:
    """Return the type of the setting at a path inside a section or dictionary. Any if there is no such setting."""
    for name in path:
        section = section_of(annotation)
        if section and name in section.model_fields:
            annotation = section.model_fields[name].annotation
        else:
            annotation = next((get_args(kind)[1] for kind in alternatives(annotation) if get_origin(kind) is dict), Any)
    return annotation


def _read(text: str, kinds: list[Any], takes_text: bool, name: str) -> Any:
    """Return the YAML value of a text. A setting that takes text gets the text itself, without quotes around all of it."""
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        twice = isinstance(error, DuplicateKeyError)
        is_mapping = twice and any(section_of(kind) or get_origin(kind) is dict for kind in kinds)
        if takes_text and not is_mapping:
            return text
        reason = getattr(error, "problem", None) or str(error)
        if twice:
            raise RecipeError(f"{name}: {text!r} has a key twice: {reason}") from None
        raise RecipeError(f"{name}: {text!r} is not valid YAML: {reason}. Put text with special characters in quotes") from None
    if not takes_text:
        return value
    accepts_yaml = (
        (text == "null" and NoneType in kinds)
        or (isinstance(value, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"")
        or (isinstance(value, dict | list) and any(section_of(kind) or get_origin(kind) in (tuple, dict) for kind in kinds))
    )
    return value if accepts_yaml else text


def _scalar(text: str) -> int | float | bool | str:
    """Convert a number or boolean as YAML 1.2 does: 0123 is 123 and 1e-3 is a number. Other text stays as it is."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text)


# ---------------------------------------------------------------------------------------------------------------------------
# Merging


def split_override(parameters: Mapping[str, Any], model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into sections, with their text converted, and the dotted settings of `override`.

    Raises RecipeError.
    """
    sections = copy.deepcopy(dict(parameters))
    overrides = sections.pop("override", None)
    if isinstance(overrides, str):
        try:
            overrides = read_yaml(overrides)
        except yaml.YAMLError as error:
            raise RecipeError(f"override: {overrides!r} is not valid YAML: {error}") from None
    if not isinstance(overrides, Mapping | None):
        raise RecipeError(f"override: dotted names with values are expected, e.g. {{pretrain.steps: 10}} (got {overrides!r})")
    return {name: typed(value, type_at([name], model), name) for name, value in sections.items()}, dict(overrides or {})


def apply_overrides(tree: dict[str, Any], overrides: Mapping[str, Any], model: Model) -> None:
    """Set dotted settings in a tree of values. Raises RecipeError."""
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


def merge_sections(tree: dict[str, Any], sections: Mapping[str, Any], model: Model, prefix: str = "") -> set[str]:
    """Merge sections into a tree of values, key by key. Returns the dotted names of the settings that changed.

    A dictionary that is a single setting is replaced as a whole. If a section gets another data source, its old source and the
    settings that name parts of it are removed.
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
            changed.add(dotted)
    return changed
