"""Find the file of the running notebook, read its code, and compare the code with the committed one."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vmae_lab.lab.report.provenance import git
from vmae_lab.utils.atomic_io import fingerprint
from vmae_lab.utils.paths import project_root

VARIABLE = "VMAE_LAB_NOTEBOOK"  # set by `vmae-lab run`, and by users who start kernels in other ways
RUNNERS = {"papermill", "jupyter-execute", "jupyter-nbconvert"}
PARAMETER_TAGS = {"parameters", "injected-parameters"}  # tags of cells whose values are in the recipe


class _Parent(NamedTuple):
    """The process that started this kernel. What the system hides is empty. `kernel_start`: seconds since the epoch."""

    cmdline: Sequence[str] = ()
    cwd: str = ""
    environ: Mapping[str, str] = {}
    kernel_start: float = math.inf


def notebook_file() -> Path | None:
    """Return the notebook that this kernel runs (papermill's input, not its output). None if it cannot be found."""
    paths = (Path(os.path.abspath(path)) for path in _candidates() if path)
    return next((path for path in paths if path.suffix == ".ipynb" and path.is_file()), None)


def _candidates() -> Iterator[str | Path]:
    """Yield paths that the program around the kernel gives, the nearest program first: variables of servers are inherited."""
    parent = _parent_process()
    yield os.environ.get(VARIABLE, "")
    yield from _on_command_line(parent)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    variables = shell.user_ns if shell else {}
    yield variables.get("__vsc_ipynb_file__", "")  # Visual Studio Code
    session = os.environ.get("JPY_SESSION_NAME", "")  # Jupyter's servers
    if parent.environ.get("JPY_SESSION_NAME") != session:
        yield session
        yield Path(session).name  # the path starts at the server's folder, but the kernel runs in the notebook's folder
    yield variables.get("PAPERMILL_INPUT_PATH", "")  # papermill --inject-input-path
    yield Path(os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[0]).name  # nbval
    yield from _input_of_papermill(parent)


def _parent_process() -> _Parent:
    try:
        import psutil  # installed with ipykernel
    except ImportError:
        return _Parent()
    with suppress(psutil.Error, OSError):  # if the parent has ended
        kernel = psutil.Process()
        parent = kernel.parent()
        shown = parent.as_dict(["cmdline", "cwd", "environ"]) if parent else {}
        return _Parent(**{name: value for name, value in shown.items() if value}, kernel_start=kernel.create_time())
    return _Parent()


def _on_command_line(parent: _Parent) -> Iterator[Path]:
    """Yield the notebook on the command line of a program that runs notebooks, unless there are several."""
    runner = next((name for word in parent.cmdline if (name := Path(word).stem) in RUNNERS), None)
    notebooks = [
        word
        for before, word in pairwise(parent.cmdline)
        if word.endswith(".ipynb") and before != "--output" and not word.startswith("-")
    ]
    if runner and (len(notebooks) == 1 or (notebooks and runner == "papermill")):
        for folder in (parent.cwd, parent.environ.get("PWD", "")):  # `papermill --cwd` changes the first
            yield Path(folder) / notebooks[0]


def _input_of_papermill(parent: _Parent) -> set[Path]:
    """Return the input of a papermill that Python code started. Before each cell, papermill writes it into its output."""
    inputs = set()
    for folder in {Path.cwd(), project_root(), project_root() / "notebooks"}:
        for output in folder.glob("*.ipynb"):
            with suppress(ValueError, KeyError, OSError):
                run = json.loads(output.read_text(encoding="utf-8"))["metadata"]["papermill"]
                is_new = output.stat().st_mtime > parent.kernel_start
                if is_new and run.get("input_path") and run.get("end_time") is None:
                    inputs.add(Path(parent.cwd) / run["input_path"])
    return inputs if len(inputs) == 1 else set()


def read_cells(file: Path) -> list[dict[str, Any]]:
    """Return a notebook's code cells except those of parameters. Raises ValueError if the file is not a notebook."""
    return _code_cells(file.read_text(encoding="utf-8"))


def code_digest(cells: list[dict[str, Any]]) -> str:
    """Return a hash of a notebook's code, without outputs, text and parameters."""
    return fingerprint(["".join(cell["source"]) for cell in cells])


def code_state(file: Path) -> str:
    """Return whether a notebook's code is the committed one. Empty outside a git checkout."""
    try:
        git(file.parent, "rev-parse", "--git-dir")
    except (OSError, subprocess.CalledProcessError):
        return ""
    try:
        committed = git(file.parent, "show", f"HEAD:./{file.name}")
    except subprocess.CalledProcessError:
        return "not committed"
    same = code_digest(_code_cells(committed)) == code_digest(read_cells(file))
    return "as committed" if same else "changed since the last commit"


def _code_cells(text: str) -> list[dict[str, Any]]:
    code = [cell for cell in json.loads(text).get("cells", []) if cell["cell_type"] == "code"]
    return [cell for cell in code if PARAMETER_TAGS.isdisjoint(cell.get("metadata", {}).get("tags", []))]
