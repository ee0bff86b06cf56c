"""Run a notebook with papermill at a scale. The executed notebook and its HTML page are written next to its report."""

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
        raise FileNotFoundError("running notebooks needs papermill, which is not installed: pip install 'vmae-lab[lab]'")


def execute(notebook: Path, parameters: dict[str, Any], plan: Plan) -> int:
    """Execute a notebook with parameters into its report folder. Prints the report's path last. Returns the exit status."""
    import papermill
    from traitlets.config import Config

    folder = make_folder(report_place(plan, notebook.stem, notebook.absolute()).folder)
    name = folder.name
    executed, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    page.unlink(missing_ok=True)  # it would be another run's page if this run stops
    variables = {
        FILE: str(notebook.absolute()),
        # The kernel has no terminal: its output is printed by this process.
        PROGRESS: os.environ.get(PROGRESS) or ("terminal" if sys.stdout.isatty() else "lines"),
        "COLUMNS": str(shutil.get_terminal_size().columns),
    }
    try:
        with _environment(variables):
            papermill.execute_notebook(
                notebook, executed, parameters, progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
                coalesce_streams=True,  # saves only the last state of a progress line
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # avoids a warning of the kernel
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
    """Set environment variables, which a kernel inherits, inside the block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def move_links(executed: Path, notebook: Path) -> None:
    """Rewrite the relative links in the text of an executed notebook for its new folder."""
    import nbformat

    def moved(link: re.Match) -> str:
        target = os.path.relpath(notebook.resolve().parent / link[1], executed.resolve().parent)
        return f"]({Path(target).as_posix()})"

    content = nbformat.read(executed, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = RELATIVE_LINK.sub(moved, cell.source)
    nbformat.write(content, executed)


def notebook_as_html(executed: Path) -> str:
    """An executed notebook as one HTML page that needs neither Jupyter nor a network: widgets are replaced by pictures."""
    from nbconvert import HTMLExporter
    from nbconvert.utils.base import NbConvertBase

    kinds = [kind for kind in NbConvertBase().display_data_priority if "widget" not in kind]
    return HTMLExporter(config={"NbConvertBase": {"display_data_priority": kinds}}).from_filename(str(executed))[0]


def checked_parameters(notebook: Path, scale: str, overrides: Mapping[str, str]) -> tuple[dict[str, Any], Plan]:
    """The parameters to inject into a notebook, and the plan that they make. Raises RecipeError and FileNotFoundError."""
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
