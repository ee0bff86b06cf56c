"""Read the values of a scale: `params/<scale>.yaml`, or a YAML file by its path."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vmae_lab.lab.overrides import DuplicateKeyError, RecipeError, read_yaml
from vmae_lab.utils.paths import holds_the_project, how_to_find_it, project_root

INSTALLED_FROM = Path(__file__).parents[2]
YAML = (".yaml", ".yml")
FILES_READ: dict[str, Path] = {}  # the files that this process has read, by the name of their scale


def params_folders(notebook: Path | None = None) -> list[Path]:
    """Return the folders of scales: of the project, of the notebook's checkout, and of this package's checkout.

    The last one is searched only if VMAE_LAB_PROJECT is set.
    """
    others = [notebook.absolute().parent.parent] if notebook else []
    others += [INSTALLED_FROM] if os.environ.get("VMAE_LAB_PROJECT") else []
    roots = dict.fromkeys([project_root(), *filter(holds_the_project, others)])
    return [root / "params" for root in roots]


def find_scale(scale: str, folders: Sequence[Path]) -> Path | None:
    """Return the file of a scale: `smoke`, `paper/k400`, or the path of a YAML file. None if there is none."""
    paths = [Path(scale), project_root() / scale] if scale.endswith(YAML) else [folder / f"{scale}.yaml" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def file_that_names(scale: str, folders: Sequence[Path]) -> Path | None:
    """Return the file that gives a scale its name: in a folder of params/, or a file such as my.yaml that was read before."""
    same_stem = (path for folder in folders for path in _scales_in(folder) if path.stem == scale)
    return find_scale(scale, folders) or FILES_READ.get(scale) or next(same_stem, None)


def read_scale(scale: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Return the values of a scale, with scalars as text. If the file has no key `scale`, its name is added as `scale`.

    A file with `base: FILE` has the values of that file, and its `override` changes some of them. Raises RecipeError.
    """
    file = find_scale(scale, folders)
    if file is None:
        missing = scale if scale.endswith(YAML) else folders[0] / f"{scale}.yaml"
        listed, known = [], set[str]()
        for folder in folders:
            names = [path.relative_to(folder).with_suffix("").as_posix() for path in _scales_in(folder)]
            new = [name for name in names if name not in known]
            known.update(new)
            listed += [f"scales in {folder}: {', '.join(new)}"] if new else []
        raise RecipeError(f"there is no parameter file {missing}; {'; '.join(listed) or f'no scales{how_to_find_it()}'}")
    values = {"scale": file.stem, **_read_mapping(file)}
    if "base" in values:
        base, override = file.parent / str(values.pop("base")), values.pop("override", None) or {}
        if not base.is_file():
            raise RecipeError(f"{file}: the base {base} does not exist; give its path relative to {file.parent}")
        if extra := sorted({*values} - {"scale"}):
            raise RecipeError(f"{file}: only scale and override may be set with base; move to override: {', '.join(extra)}")
        inherited = _read_mapping(base)
        if "base" in inherited:
            raise RecipeError(f"{file}: its base {base} has a base itself; use that one, and set all values in override")
        values = inherited | values | {"override": {**(inherited.get("override") or {}), **override}}
    FILES_READ[values["scale"]] = file
    return values


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        values = read_yaml(file.read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        raise RecipeError(f"{file}, {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} is not valid YAML: {error}. Put text that begins with * or & in quotes") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file} has no parameters; lines `name: value` are expected")
    return values


def _scales_in(folder: Path) -> list[Path]:
    """Return the files of a folder's scales. Those of the folder itself come before those of its subfolders."""
    files = [path for path in folder.rglob("*.yaml") if path.parent.name != "accelerate"]
    return sorted(files, key=lambda path: (len(path.parts), path))
