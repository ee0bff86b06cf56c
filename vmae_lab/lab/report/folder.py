"""Where a report is written: a folder for each notebook file and settings, so that none replaces one of another run."""

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.notebook_file import written_path
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.scales import file_that_names, params_folders, read_scale
from vmae_lab.utils.atomic_io import fingerprint, read_json
from vmae_lab.utils.paths import project_root, report_folder

VARIANT = "-variant"
NOT_RESULTS = {"compute", "scale"}  # parts of a recipe that change no result


@dataclass(frozen=True)
class ReportPlace:
    """A report's folder. `changed`: settings that differ from the scale's; `replaced`: the manifest of the report there;
    `kept`: why reports in nearer folders stay.
    """

    folder: Path
    changed: Mapping[str, Any]
    replaced: Mapping[str, Any] | None
    kept: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What writing there does to the reports that there are."""
        kept = "".join(f"; {reason}, and stays" for reason in self.kept)
        if self.replaced is None:
            return f"new report: {_short(self.folder)}{kept}"
        date = (self.replaced.get("provenance") or {}).get("date", "unknown date")
        return f"replaced {_short(self.folder)} of {date}, made with the same settings{kept}"


def report_place(plan: Plan, notebook: str, file: Path | None) -> ReportPlace:
    """The folder of a plan's report: `reports/<scale>/<notebook>/` if the settings are the scale's.

    Other settings have `reports/<scale>-variant-<digits>/`. So has a run whose folder holds a report of other settings, since
    `params/<scale>.yaml` was changed. A notebook of the same name in another folder gets digits behind its name.
    """
    scale, path = plan.recipe.scale, written_path(file) if file else None
    mine, standard = decisive(plan.name, plan.recipe), _standard(plan, file)
    same_as_scale = standard is None or decisive(plan.name, standard) == mine
    changed = {} if standard is None or same_as_scale else _differences(_results(plan.recipe), _results(standard))
    whole = [_results(plan.recipe), sorted(stage.key for stage in plan.stages)]
    scales = [f"{scale}{VARIANT}-{_digits(one)}" for one in (changed, whole)]
    if same_as_scale:
        scales[0] = scale
    names = [notebook, f"{notebook}-{_digits(path)}"]
    if path not in (None, f"notebooks/{notebook}.ipynb") and (project_root() / f"notebooks/{notebook}.ipynb").is_file():
        del names[0]
    kept: list[str] = []
    for one_scale in scales:
        for name in names:
            folder = report_folder(one_scale, name)
            made = _manifest(folder)
            if made is None:
                return ReportPlace(folder, changed, None, tuple(kept))
            maker = made.get("notebook_file", f"notebooks/{name}.ipynb")
            if maker != path:
                kept.append(f"{_short(folder)} was made by {maker or 'another notebook'}")
                continue
            if _same_results(made, name, mine, plan):
                return ReportPlace(folder, changed, made, tuple(kept))
            kept.append(f"{_short(folder)} was made with other settings")
            break
    raise FileExistsError(f"{folder} holds a report of other settings: move it away")


def _same_results(made: Mapping[str, Any], name: str, mine: Any, plan: Plan) -> bool:
    """Whether a report was made with the settings of a plan, and of the same videos.

    The settings are compared as this code names their stages, so a report stays the same one after a change of the code. A list
    may have other videos since, or a relative root may be another folder, so then the names in the manifest count.
    """
    if decisive(made.get("experiment", name), made.get("recipe")) != mine:
        return False
    return not plan.recipe.data.lists or set(made.get("stages", ())) == {stage.key for stage in plan.stages}


def decisive(name: str, recipe: Recipe | Any) -> Any:
    """What decides a notebook's results: arms, seeds, margin, and the keys of its stages as this code and machine name them."""
    try:
        recipe = Recipe.model_validate(recipe)
        if name not in EXPERIMENTS:
            return name, _results(recipe)
        plan = plan_notebook(name, recipe)
        keys = sorted(stage.key for stage in plan.stages)
    except (ValueError, OSError):  # a recipe of another version, or lists that are gone
        return None
    return name, plan.recipe.arms, plan.recipe.seeds, plan.recipe.measure, plan.recipe.evaluate.margin, keys


def _standard(plan: Plan, file: Path | None) -> Recipe | None:
    """The recipe of the scale as it is, with all arms of the notebook; None if no file of params/ has a valid one."""
    folders = params_folders(file)
    scale = file_that_names(plan.recipe.scale, folders)
    if plan.name not in EXPERIMENTS or not scale:
        return None
    book = EXPERIMENTS[plan.name]
    try:
        with redirect_stdout(io.StringIO()):  # what is fitted to a template's own lists says nothing about this run
            recipe = build_recipe({}, book.arms, {"arms": list(book.arms), **read_scale(str(scale), folders)})
    except RecipeError:
        return None
    return recipe.with_overrides({"seeds": recipe.seeds[:1]}) if book.one_seed else recipe


def _results(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude=NOT_RESULTS)


def _differences(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a tree that another one has not, by dotted name; None for what only the other one has."""
    ours, theirs = dict(_leaves(tree)), dict(_leaves(other))
    changed = {name: value for name, value in ours.items() if name not in theirs or theirs[name] != value}
    return changed | {name: None for name in theirs if name not in ours}


def _leaves(tree: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    try:
        made = read_json(folder / "manifest.json")
    except (ValueError, OSError):
        return None
    return made if isinstance(made, dict) else None


def _short(folder: Path) -> str:
    return folder.relative_to(project_root()).as_posix()


def _digits(value: Any) -> str:
    return fingerprint(value)[:6]
