"""Run a notebook by papermill at a scale, and keep the executed notebook and its page next to its report."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.notebook_file import VARIABLE as FILE
from vmae_lab.lab.notebook_file import read_cells
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.report.folder import report_place
from vmae_lab.lab.scales import params_folders, read_scale
from vmae_lab.utils.atomic_io import make_folder, write_text
from vmae_lab.utils.paths import how_to_find_it
from vmae_lab.utils.progress import VARIABLE as PROGRESS

RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")  # in markdown
PLANNED = re.compile(r"""(?:open_experiment|plan_notebook)\(\s*["'](\w+)["']""")


def require_papermill() -> None:
    """Raise FileNotFoundError if papermill is not installed."""
    if not find_spec("papermill"):
        raise FileNotFoundError("notebooks are run by papermill, which is not installed: pip install 'vmae-lab[lab]'")


def execute(notebook: Path, parameters: dict[str, Any], plan: Plan) -> int:
    """Execute a notebook with parameters into its report folder. Prints the report's path last. Returns the exit status."""
    import papermill
    from traitlets.config import Config

    folder = make_folder(report_place(plan, notebook.stem, notebook.absolute()).folder)
    name = folder.name
    executed, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    page.unlink(missing_ok=True)  # else a run that stops would leave its notebook next to another run's page
    # The kernel's output is printed here, so its progress has the form that fits this process's output.
    shown = os.environ.get(PROGRESS) or ("terminal" if sys.stdout.isatty() else "lines")
    try:
        columns = str(shutil.get_terminal_size().columns)  # the kernel has no terminal to ask
        with _environment({FILE: str(notebook.absolute()), PROGRESS: shown, "COLUMNS": columns}):
            papermill.execute_notebook(
                notebook, executed, parameters, progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
                coalesce_streams=True,  # the saved notebook holds the last state of a line that updates, not all of them
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


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which a kernel inherits, while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def move_links(executed: Path, notebook: Path) -> None:
    """Rewrite relative links in the text of an executed notebook, so that they lead to the same files."""
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
    """An executed notebook as one HTML page that a browser opens without Jupyter and without a network.

    Widgets, whose code would come from a network, are replaced by their pictures.
    """
    from nbconvert import HTMLExporter
    from nbconvert.utils.base import NbConvertBase

    kinds = [kind for kind in NbConvertBase().display_data_priority if "widget" not in kind]
    return HTMLExporter(config={"NbConvertBase": {"display_data_priority": kinds}}).from_filename(str(executed))[0]


def checked_parameters(notebook: Path, scale: str, overrides: Mapping[str, str]) -> tuple[dict[str, Any], Plan]:
    """The parameters to inject into a notebook, and the plan that it will make. Raises RecipeError and FileNotFoundError."""
    if not notebook.is_file():
        raise FileNotFoundError(f"there is no notebook {notebook}{how_to_find_it()}")
    name = experiment_of(notebook)
    arms, changes = EXPERIMENTS[name].arms, {"override": dict(overrides)}
    recipe = build_recipe(changes, arms, {"arms": list(arms), **read_scale(scale, params_folders(notebook))})
    file = str(Path(scale).absolute()) if Path(scale).is_file() else scale
    return {"scale": file, **changes}, plan_notebook(name, recipe)


def experiment_of(notebook: Path) -> str:
    """The experiment of a notebook, as its code names it to `open_experiment` or `plan_notebook`. Raises RecipeError."""
    try:
        code = "\n".join("".join(cell["source"]) for cell in read_cells(notebook))
    except (ValueError, KeyError, AttributeError):
        raise RecipeError(f"{notebook} is not a notebook (JSON with cells)") from None
    found = PLANNED.search(code)
    if found and found[1] in EXPERIMENTS:
        return found[1]
    what = f"there is no experiment '{found[1]}'" if found else 'no cell calls open_experiment("NAME", globals())'
    raise RecipeError(f"{notebook} is not a notebook of this workbook: {what}; names are {', '.join(EXPERIMENTS)}")
