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
from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.atomic_io import make_folder, write_text
from vmae_lab.utils.paths import how_to_find_it, project_path, project_root
from vmae_lab.utils.progress import VARIABLE as PROGRESS

RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")  # in Markdown
OPENS = re.compile(r"""(?:open_experiment|plan_notebook)\(\s*["'](\w+)["']""")


def require_papermill() -> None:
    """Raise ImpossibleHere if papermill is not installed."""
    if not find_spec("papermill"):
        raise ImpossibleHere("papermill, which runs notebooks, is not installed: pip install 'vmae-lab[lab]'")


def execute(notebook: Path, parameters: dict[str, Any], plan: Plan) -> int:
    """Execute a notebook with parameters into its report folder. Prints the report's path last. Returns the exit status."""
    import papermill
    from traitlets.config import Config

    folder = make_folder(report_place(plan, notebook.stem, notebook.absolute()).folder)
    name = folder.name
    executed, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    page.unlink(missing_ok=True)  # if this run fails, the page of an earlier run must not stay
    variables = {
        FILE: str(notebook.absolute()),
        # The kernel has no terminal. This process prints its output.
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
        if executed.is_file():
            make_portable(executed, notebook)
        print(f"vmae-lab: {name} failed: {error.ename}: {error.evalue}\nnotebook so far: {executed}", file=sys.stderr)
        return 1
    make_portable(executed, notebook)
    write_text(page, notebook_as_html(executed))
    print(f"executed notebook: {executed}\nexecuted notebook as HTML: {page}\nreport: {folder / 'README.md'}")
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


def moved_links(text: str, old: Path, new: Path) -> str:
    """Rewrite the relative links of a Markdown text that moves from the folder `old` to the folder `new`."""
    return RELATIVE_LINK.sub(lambda link: f"]({Path(os.path.relpath(old / link[1], new)).as_posix()})", text)


def make_portable(executed: Path, notebook: Path) -> None:
    """Rewrite an executed notebook so that it can be committed: no link is broken, and no path shows this machine's folders.

    Links in its text are rewritten for its new folder. Paths inside the project become relative to the project's folder, in
    outputs, in the injected parameters and in papermill's metadata.
    """
    import nbformat

    roots = "|".join(re.escape(str(root)) for root in {project_root(), project_root().resolve()})
    # "/a" is not in "/b/a", and not in "/a-b".
    inside = re.compile(rf"(?<![\w.-])(?:{roots})(?:/|(?![\w.-]))")

    def relative(value: Any) -> Any:
        if isinstance(value, str):
            return inside.sub(lambda path: "" if path[0].endswith("/") else ".", value)
        if isinstance(value, dict):
            return {key: item if key.startswith("image/") else relative(item) for key, item in value.items()}
        return [relative(item) for item in value] if isinstance(value, list) else value

    content = nbformat.read(executed, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = moved_links(cell.source, notebook.resolve().parent, executed.resolve().parent)
    nbformat.write(nbformat.from_dict(relative(content)), executed)


def notebook_as_html(executed: Path) -> str:
    """Return an executed notebook as one HTML page that needs no Jupyter and no network. Pictures replace widgets."""
    from nbconvert import HTMLExporter
    from nbconvert.utils.base import NbConvertBase

    kinds = [kind for kind in NbConvertBase().display_data_priority if "widget" not in kind]
    return HTMLExporter(config={"NbConvertBase": {"display_data_priority": kinds}}).from_filename(str(executed))[0]


def checked_parameters(notebook: Path, scale: str, overrides: Mapping[str, str]) -> tuple[dict[str, Any], Plan]:
    """Return the parameters to inject into a notebook, and its plan. Raises RecipeError and FileNotFoundError."""
    if not notebook.is_file():
        raise FileNotFoundError(f"there is no notebook {notebook}{how_to_find_it()}")
    name = experiment_of(notebook)
    changes = {"override": dict(overrides)}
    recipe = build_recipe(changes, EXPERIMENTS[name].arms, read_scale(scale, params_folders(notebook)))
    file = project_path(Path(scale)) if Path(scale).is_file() else scale
    return {"scale": file, **changes}, plan_notebook(name, recipe)


def experiment_of(notebook: Path) -> str:
    """Return the experiment that a notebook's code passes to `open_experiment` or `plan_notebook`. Raises RecipeError."""
    try:
        code = "\n".join("".join(cell["source"]) for cell in read_cells(notebook))
    except (ValueError, KeyError, AttributeError):
        raise RecipeError(f"{notebook} is not a notebook (JSON with cells)") from None
    found = OPENS.search(code)
    if found and found[1] in EXPERIMENTS:
        return found[1]
    problem = f"there is no experiment '{found[1]}'" if found else 'no cell calls open_experiment("NAME", globals())'
    raise RecipeError(f"{notebook} is not a notebook of this project: {problem}; experiments are {', '.join(EXPERIMENTS)}")
