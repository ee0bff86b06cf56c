"""Sections and dotted one-offs, merged into the values of a scale. `model` is the recipe's class, which types them."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from vmae_lab.lab.typed import RecipeError, alternatives, kind_below, kind_of, read_yaml, section_of, typed

Model = type[BaseModel]
EITHER = ("motionworld", "lists")  # sources of data, of which a section takes one
OF_THE_SOURCE = ("pretrain_sources", "pretrain_limits")  # settings that name parts of that source


def split_override(parameters: Mapping[str, Any], model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sections, their texts as their settings take them, and dotted one-offs. Raises RecipeError."""
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
    """Put dotted one-offs into a tree of values; each replaces what is there. Returns their names. Raises RecipeError."""
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
    """Merge sections into a tree of values, key by key. Returns the dotted names of the values that are new.

    A dictionary that is a single setting is replaced as a whole. A section that gets another source of data loses the one
    that it had, and what names parts of that one.
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
    """What goes from a section that had one source of data and gets another."""
    had, gets = ([name for name in EITHER if one.get(name) is not None] for one in (tree, sections))
    return [*had, *OF_THE_SOURCE] if had and gets and not set(had) & set(gets) else []


def names_in(value: Any, name: str) -> Iterator[str]:
    """The dotted names of all values in a dictionary that is called `name`."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield f"{name}.{key}"
            yield from names_in(one, f"{name}.{key}")
