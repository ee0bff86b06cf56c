"""The command line: a thin face on the workbook. `vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vmae_lab.cli import data, features, info
from vmae_lab.data.lists import ListError
from vmae_lab.data.video import DecoderUnavailable, VideoError
from vmae_lab.evaluation.features import FeatureError
from vmae_lab.files import StorageError, make_folder, write_text
from vmae_lab.lab.index import write_index
from vmae_lab.lab.places import project_root, report_folder, runs_folder
from vmae_lab.lab.recipe import RecipeError, build_recipe
from vmae_lab.lab.workbook import WORKBOOK, plan_notebook
from vmae_lab.models.checkpoints import CheckpointError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `vmae-lab`. Returns the exit status; errors that a person can mend are one message, no traceback."""
    parser = argparse.ArgumentParser(prog="vmae-lab", description="A research workbook of VideoMAE V2.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("run", "run a notebook at a scale and write its report"), ("plan", "say what that would cost")):
        command = commands.add_parser(name, help=words, description=words.capitalize())
        command.add_argument("notebook", type=Path, nargs="+", help="notebooks of notebooks/, one after the other")
        command.add_argument("--scale", default="demo", help="a file of params/, or the path of another YAML (default: demo)")
        command.add_argument(
            "-p", "--override", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
            help="one dotted setting, e.g. -p pretrain.steps 200; VALUE is read as YAML",
        )  # fmt: skip
    words = "write the index of all reports, README.md and index.html in reports/"
    command = commands.add_parser("report", help=words, description=words)
    command.add_argument(
        "--for-git",
        action="store_true",
        help="leave out what git ignores (smoke, variants, executed notebooks), to commit the index",
    )
    data.add_commands(commands)
    features.add_command(commands)
    info.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        if options.command == "data":
            return data.run(options)
        if options.command in ("features", "info"):
            return {"features": features, "info": info}[options.command].run(options)
        if options.command == "report":
            return report(options)
        each = [argparse.Namespace(**{**vars(options), "notebook": notebook}) for notebook in options.notebook]
        for one in each:
            checked_parameters(one)  # of all of them, before the first starts
        return next((code for one in each if (code := {"run": run, "plan": plan}[options.command](one))), 0)
    except (
        RecipeError, ListError, VideoError, FeatureError, CheckpointError, DecoderUnavailable, StorageError, FileNotFoundError
    ) as error:  # fmt: skip
        print(f"vmae-lab: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Execute a notebook with a scale's parameters into its report folder; prints the report's path last."""
    import papermill

    parameters = checked_parameters(options)
    name = options.notebook.stem
    folder = make_folder(report_folder(parameters["scale"], name))
    executed, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    page.unlink(missing_ok=True)  # else a run that stops would leave its notebook beside another run's page
    try:
        # The notebook's own words and progress bars, with their time to go, say more than a count of cells.
        papermill.execute_notebook(
            options.notebook, executed, parameters, progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr
        )
    except papermill.PapermillExecutionError as error:
        print(f"vmae-lab: {name} stopped: {error.ename}: {error.evalue}\nthe notebook so far: {executed}", file=sys.stderr)
        return 1
    write_text(page, notebook_as_html(executed))
    print(f"executed notebook: {executed}")
    print(f"as a page: {page}")
    print(f"report: {folder / 'README.md'}")
    return 0


def notebook_as_html(executed: Path) -> str:
    """An executed notebook as one HTML page, with its outputs, that a browser opens without Jupyter."""
    from nbconvert import HTMLExporter

    return HTMLExporter().from_filename(str(executed))[0]


def report(options: argparse.Namespace) -> int:
    """Write the index of all reports; prints the path of the page to open last."""
    page = write_index(project_root() / "reports", list(WORKBOOK), options.for_git)
    print(f"the same for a repository's viewer: {page.with_name('README.md')}")
    print(f"index of results: {page}")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print the stages of a notebook at a scale and their cost in multiply-accumulates, without running anything."""
    from vmae_lab.lab.cost import plan_summary
    from vmae_lab.lab.runs import RunStore

    name, parameters = options.notebook.stem, checked_parameters(options)
    recipe = build_recipe(parameters, WORKBOOK[name].arms)
    print(plan_summary(plan_notebook(name, recipe), RunStore(runs_folder())))
    return 0


def checked_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """A scale's parameters with the overrides, refused where anything is unknown or impossible, before a kernel starts.

    With overrides the scale is called `<scale>-variant`, unless they name it, so that a try-out never replaces a report.
    """
    notebook = options.notebook
    if not notebook.is_file():
        raise FileNotFoundError(f"there is no notebook {notebook}")
    if notebook.stem not in WORKBOOK:
        raise RecipeError(f"{notebook} is not a notebook of this workbook; those are {', '.join(WORKBOOK)}")
    arms = WORKBOOK[notebook.stem].arms
    parameters = {"arms": list(arms), **read_scale(options.scale, notebook)}
    overrides = dict(parameters.get("override") or {}) | {name: _value(name, text) for name, text in options.override}
    if options.override:
        parameters["scale"] = overrides.pop("scale", f"{parameters['scale']}-variant")
    parameters["override"] = overrides
    plan_notebook(notebook.stem, build_recipe(parameters, arms))
    return parameters


def read_scale(scale: str, notebook: Path) -> dict[str, Any]:
    """The parameters of `params/<scale>.yaml` beside the notebook's folder, or of a YAML file by path. Raises RecipeError."""
    folder = notebook.resolve().parent.parent / "params"
    file = Path(scale) if scale.endswith((".yaml", ".yml")) else folder / f"{scale}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
        raise RecipeError(f"there is no parameter file {file}; scales in {folder}: {known}")
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
