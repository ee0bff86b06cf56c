"""The values of a scale: `params/<scale>.yaml`, or a YAML file by its path."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vmae_lab.lab.overrides import RecipeError, read_yaml
from vmae_lab.utils.paths import holds_the_project, how_to_find_it, project_root

INSTALLED_FROM = Path(__file__).parents[2]
YAML = (".yaml", ".yml")
READ: dict[str, Path] = {}  # what gave a scale its name, in this process


def params_folders(notebook: Path | None = None) -> list[Path]:
    """Where scales are looked for: the project, the checkout of the notebook, and for a chosen project the package's own."""
    roots = [project_root()]
    if notebook:
        roots.append(notebook.absolute().parent.parent)
    if os.environ.get("VMAE_LAB_PROJECT"):
        roots.append(INSTALLED_FROM)
    found = [root / "params" for root in roots if root == project_root() or holds_the_project(root)]
    return list(dict.fromkeys(found))


def find_scale(scale: str, folders: Sequence[Path]) -> Path | None:
    """The file of a scale: `smoke`, `paper/k400`, or a path of a YAML."""
    named = [Path(scale), project_root() / scale] if scale.endswith(YAML) else [folder / f"{scale}.yaml" for folder in folders]
    return next((path for path in named if path.is_file()), None)


def file_that_names(scale: str, folders: Sequence[Path]) -> Path | None:
    """The file whose own name is a scale's: in a folder of params/, or what this process has read, such as `my.yaml`."""
    inside = [path for folder in folders for path in _scales_in(folder) if path.stem == scale]
    return find_scale(scale, folders) or READ.get(scale) or next(iter(inside), None)


def read_scale(scale: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The values of a scale, scalars as they are written. Its own name is the file's if it gives none. Raises RecipeError."""
    file = find_scale(scale, folders)
    if file is None:
        known = {folder: names_in(folder) for folder in folders}
        nearest = next((folder for folder in folders if known[folder]), folders[0] if folders else Path())
        missing = scale if scale.endswith(YAML) else nearest / f"{scale}.yaml"
        scales = "; ".join(f"scales in {folder}: {', '.join(names) or 'none'}" for folder, names in known.items())
        raise RecipeError(
            f"there is no parameter file {missing}; {scales}{how_to_find_it() if not any(known.values()) else ''}"
        )
    values = _values_in(file)
    values = {"scale": file.stem, **values}
    READ[values["scale"]] = file
    return values


def _values_in(file: Path) -> dict[str, Any]:
    """The values of a file; with `base: FILE` those of that file, of which `override` changes some."""
    values = _mapping_in(file)
    if "base" not in values:
        return values
    base, override = file.parent / str(values.pop("base")), values.pop("override", None) or {}
    if not base.is_file():
        raise RecipeError(f"{file}: base {base} is not there; give its name relative to {file.parent}")
    if strange := sorted({*values} - {"scale"}):
        raise RecipeError(f"{file}: next to base, only scale and override are accepted; move to override: {', '.join(strange)}")
    inherited = _mapping_in(base)
    if "base" in inherited:
        raise RecipeError(f"{file}: its base {base} has a base itself; name that one, with all values in override")
    inherited.pop("scale", None)
    return inherited | values | {"override": {**(inherited.get("override") or {}), **override}}


def _mapping_in(file: Path) -> dict[str, Any]:
    try:
        values = read_yaml(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} is not valid YAML: {error}. Text that begins with * or & needs quotes") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file} holds no parameters: name: value lines were expected")
    return values


def names_in(folder: Path) -> list[str]:
    """What the scales of a folder are called: `smoke`, `paper/k400`."""
    return [path.relative_to(folder).with_suffix("").as_posix() for path in _scales_in(folder)]


def _scales_in(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*.yaml") if path.parent.name != "accelerate"]
    return sorted(files, key=lambda path: (len(path.parts), path))
