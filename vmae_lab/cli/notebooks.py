"""`vmae-lab run`, `plan` and `report`: notebooks at a scale, what they would cost, and the index of their reports."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from vmae_lab.cli.parameters import NOTHING, Overrides, TakesPairs, scale_parameters
from vmae_lab.files import make_folder, write_text
from vmae_lab.lab.ablation import Plan
from vmae_lab.lab.index import write_index
from vmae_lab.lab.places import how_to_find_it, project_root, report_folder, runs_folder
from vmae_lab.lab.recipe import RecipeError, build_recipe
from vmae_lab.lab.workbook import WORKBOOK, plan_notebook

RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")  # in markdown
commands = typer.Typer()
Notebooks = Annotated[list[Path], typer.Argument(metavar="NOTEBOOK", help="Of notebooks/, one after the other.")]
Scale = Annotated[str, typer.Option(help="A file of params/, or the path of another YAML.")]


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale smoke\n"
    '  vmae-lab run notebooks/ablation_decoder_mask.ipynb -p pretrain.steps 300 -p seeds "[0]"',
)
def run(notebooks: Notebooks, scale: Scale = "demo", override: Overrides = NOTHING) -> None:
    """Run a notebook at a scale and write its report."""
    checked = [(notebook, *checked_parameters(notebook, scale, override)) for notebook in notebooks]  # all, before one starts
    for _, _, planned in checked:
        planned.check_lists()
    if not find_spec("papermill"):
        raise FileNotFoundError("notebooks are run by papermill, which is not installed: pip install 'vmae-lab[lab]'")
    for notebook, parameters, _ in checked:
        if status := execute(notebook, parameters):
            raise typer.Exit(status)


@commands.command(cls=TakesPairs, epilog="\b\nExample:\n  vmae-lab plan notebooks/ablation_decoder_mask.ipynb --scale paper")
def plan(notebooks: Notebooks, scale: Scale = "demo", override: Overrides = NOTHING) -> None:
    """Say what a run would cost; runs nothing."""
    from vmae_lab.lab.cost import plan_summary
    from vmae_lab.lab.runs import RunStore

    for planned in [checked_parameters(notebook, scale, override)[1] for notebook in notebooks]:
        planned.check_lists(costed=True)
        print(plan_summary(planned, RunStore(runs_folder())))


@commands.command(epilog="\b\nExamples:\n  vmae-lab report\n  vmae-lab report --for-git")
def report(
    for_git: Annotated[
        bool, typer.Option("--for-git", help="Leave out what git ignores (smoke, variants, executed notebooks), to commit it.")
    ] = False,
) -> None:
    """Write the index of all reports, README.md and index.html in reports/."""
    page = write_index(project_root() / "reports", list(WORKBOOK), for_git)
    print(f"the same for a repository's viewer: {page.with_name('README.md')}")
    print(f"index of results: {page}")


def execute(notebook: Path, parameters: dict[str, Any]) -> int:
    """Execute a notebook with parameters into its report folder; prints the report's path last. Returns the exit status."""
    import papermill
    from traitlets.config import Config

    name = notebook.stem
    folder = make_folder(report_folder(parameters["scale"], name))
    executed, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    page.unlink(missing_ok=True)  # else a run that stops would leave its notebook beside another run's page
    try:
        # The notebook's own words and progress bars, with their time to go, say more than a count of cells.
        papermill.execute_notebook(
            notebook, executed, parameters, progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # else the kernel begins with a warning
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        print(f"vmae-lab: {name} stopped: {error.ename}: {error.evalue}\nthe notebook so far: {executed}", file=sys.stderr)
        return 1
    move_links(executed, notebook)
    write_text(page, notebook_as_html(executed))
    print(f"executed notebook: {executed}")
    print(f"as a page: {page}")
    print(f"report: {folder / 'README.md'}")
    return 0


def move_links(executed: Path, notebook: Path) -> None:
    """Let relative links in the text of an executed notebook lead where they lead in the notebook itself."""
    import nbformat

    def moved(link: re.Match) -> str:
        target = os.path.relpath(notebook.resolve().parent / link[1], executed.resolve().parent)
        return f"]({Path(target).as_posix()})"

    page = nbformat.read(executed, as_version=4)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = RELATIVE_LINK.sub(moved, cell.source)
    nbformat.write(page, executed)


def notebook_as_html(executed: Path) -> str:
    """An executed notebook as one HTML page, with its outputs, that a browser opens without Jupyter, and without a network:
    widgets, whose code would come from one, are the pictures that stand beside them.
    """
    from nbconvert import HTMLExporter
    from nbconvert.utils.base import NbConvertBase

    kinds = [kind for kind in NbConvertBase().display_data_priority if "widget" not in kind]
    return HTMLExporter(config={"NbConvertBase": {"display_data_priority": kinds}}).from_filename(str(executed))[0]


def checked_parameters(notebook: Path, scale: str, overrides: list[str]) -> tuple[dict[str, Any], Plan]:
    """A scale's parameters with the overrides, and the plan. Raises RecipeError if anything is unknown or impossible."""
    if not notebook.is_file():
        raise FileNotFoundError(f"there is no notebook {notebook}{how_to_find_it()}")
    if notebook.stem not in WORKBOOK:
        raise RecipeError(f"{notebook} is not a notebook of this workbook; those are {', '.join(WORKBOOK)}")
    arms = WORKBOOK[notebook.stem].arms
    beside = notebook.resolve().parent.parent / "params"
    parameters = {"arms": list(arms), **scale_parameters(scale, beside, overrides)}
    return parameters, plan_notebook(notebook.stem, build_recipe(parameters, arms))
