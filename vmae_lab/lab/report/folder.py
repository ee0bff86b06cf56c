"""The folder of a report: one per notebook file and settings, so that no run replaces the report of another one."""

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.scales import file_that_names, params_folders, read_scale
from vmae_lab.utils.atomic_io import StorageError, fingerprint, read_json
from vmae_lab.utils.paths import project_path, project_root, report_folder

VARIANT = "-variant"


@dataclass(frozen=True)
class ReportPlace:
    """The folder of a report.

    `changed`: settings that differ from the scale's. `replaced`: the manifest of the report that is in the folder. `kept`:
    reports that might have been replaced, and why they are not.
    """

    folder: Path
    changed: Mapping[str, Any]
    replaced: Mapping[str, Any] | None
    kept: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """Whether the report is new or replaces one, and which reports are kept."""
        kept = "".join(f"; kept {reason}" for reason in self.kept)
        if self.replaced is None:
            return f"new report: {project_path(self.folder)}{kept}"
        date = (self.replaced.get("provenance") or {}).get("date", "unknown date")
        return f"replaced {project_path(self.folder)} of {date}, which had the same settings{kept}"


def report_place(plan: Plan, notebook: str, file: Path | None) -> ReportPlace:
    """Return the folder of a plan's report. It is `reports/<scale>/<notebook>/` if the settings are the scale's.

    It is `reports/<scale>-variant-<digits>/<notebook>/` if they are not, or if `params/<scale>.yaml` was changed and the
    scale's folder has a report of the old settings. A notebook of the same name in another folder gets digits after its name.

    Raises StorageError if all these folders have reports of other settings.
    """
    scale, path = plan.recipe.scale, project_path(file) if file else None
    own, standard = _identity(plan.name, plan.recipe), _scale_recipe(plan, file)
    as_scale = standard is None or _identity(plan.name, standard) == own
    changed = {} if standard is None or as_scale else _differences(_settings(plan.recipe), _settings(standard))
    everything = [_settings(plan.recipe), sorted(stage.key for stage in plan.stages)]
    variants = [f"{scale}{VARIANT}-{fingerprint(content)[:6]}" for content in (changed, everything)]
    scales = [scale if as_scale else variants[0], variants[1]]
    names = [notebook, f"{notebook}-{fingerprint(path)[:6]}"]
    original = f"notebooks/{notebook}.ipynb"
    if path not in (None, original) and (project_root() / original).is_file():
        del names[0]  # reserved for the notebook in notebooks/, even if that has no report yet
    kept: list[str] = []
    for scale_name in scales:
        for name in names:
            folder = report_folder(scale_name, name)
            manifest = _read_manifest(folder)
            maker = path if manifest is None else manifest.get("notebook_file", f"notebooks/{name}.ipynb")
            if maker != path:
                kept.append(f"{project_path(folder)}, which is of {maker or 'another notebook'}")
            elif manifest is None or _same_results(manifest, name, own, plan):
                return ReportPlace(folder, changed, manifest, tuple(kept))
            else:
                kept.append(f"{project_path(folder)}, which has other settings")
                break
    raise StorageError(f"{folder} has a report with other settings: move it to another folder")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(folder / "manifest.json")
    except (ValueError, OSError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _same_results(manifest: Mapping[str, Any], name: str, own: Any, plan: Plan) -> bool:
    """Return whether a report was made with the settings of a plan, and from the same videos.

    Settings are compared by the stage keys that this code gives them, so a change of the code makes no difference. With lists,
    the keys in the manifest must be equal too, because a list or a relative root may have other videos now.
    """
    if _identity(manifest.get("experiment", name), manifest.get("recipe")) != own:
        return False
    return not plan.recipe.data.lists or set(manifest.get("stages", ())) == {stage.key for stage in plan.stages}


def _identity(experiment: str, recipe: Any) -> Any:
    """Return what decides a notebook's results: arms, seeds, margin, and the stage keys of this code. None if unknown."""
    try:
        recipe = Recipe.model_validate(recipe)
        if experiment not in EXPERIMENTS:
            return experiment, _settings(recipe)
        plan = plan_notebook(experiment, recipe)
        keys = sorted(stage.key for stage in plan.stages)
    except (ValueError, OSError):  # a recipe of another version, or lists that no longer exist
        return None
    return experiment, plan.recipe.arms, plan.recipe.seeds, plan.recipe.measure, plan.recipe.evaluate.margin, keys


def _scale_recipe(plan: Plan, file: Path | None) -> Recipe | None:
    """Return the recipe of the scale without changes, with all arms. None if no parameter file has a valid one."""
    folders, experiment = params_folders(file), EXPERIMENTS.get(plan.name)
    scale = file_that_names(plan.recipe.scale, folders)
    if experiment is None or scale is None:
        return None
    try:
        with redirect_stdout(io.StringIO()):  # without the line about settings that follow from the scale's own lists
            recipe = build_recipe({}, experiment.arms, read_scale(str(scale), folders))
    except RecipeError:
        return None
    return recipe.with_overrides({"seeds": recipe.seeds[:1]}) if experiment.one_seed else recipe


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that can change a result."""
    return recipe.model_dump(mode="json", exclude={"compute", "scale"})


def _differences(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `tree` that `other` does not have, by dotted name, and None for names that only `other` has."""
    values, others = dict(_leaves(tree)), dict(_leaves(other))
    changed = {name: value for name, value in values.items() if name not in others or others[name] != value}
    return changed | {name: None for name in others if name not in values}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
