"""The file of the notebook that runs, its code, and whether that is the committed one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from vmae_lab.lab.report.provenance import git
from vmae_lab.utils.atomic_io import fingerprint
from vmae_lab.utils.paths import project_root

VARIABLE = "VMAE_LAB_NOTEBOOK"  # set by `vmae-lab run`, and by whoever starts kernels in a way that is not known here
RUNNERS = {"papermill", "jupyter-execute", "jupyter-nbconvert"}
SETTINGS = {"parameters", "injected-parameters"}  # tags of cells whose values are in the recipe


def notebook_file() -> Path | None:
    """The notebook that this kernel runs: of papermill its input. None if nothing tells it."""
    paths = (Path(os.path.abspath(path)) for path in _candidates() if path)
    return next((path for path in paths if path.suffix == ".ipynb" and path.is_file()), None)


def _candidates() -> Iterator[str | Path]:
    """Paths by what started the kernel. The nearest is first: a kernel's processes inherit the variables of its server."""
    yield os.environ.get(VARIABLE, "")
    kernel, parent = _processes()
    if parent:
        yield from _on_the_command_line(parent)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    variables = shell.user_ns if shell else {}
    yield variables.get("__vsc_ipynb_file__", "")
    session = os.environ.get("JPY_SESSION_NAME", "")  # Jupyter's servers
    if not (parent and _environment(parent).get("JPY_SESSION_NAME") == session):
        yield session
        yield Path(session).name  # a path that starts at the server's folder; a kernel runs in its notebook's
    yield variables.get("PAPERMILL_INPUT_PATH", "")  # papermill --inject-input-path
    yield Path(os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[0]).name  # nbval
    if kernel and parent:
        yield from _input_of_papermill(kernel, parent)


def _processes() -> tuple[Any, Any]:
    """This process and the one that started it, None if there is none that may be looked at."""
    try:
        import psutil  # comes with ipykernel
    except ImportError:
        return None, None
    return psutil.Process(), psutil.Process().parent()


def _on_the_command_line(process: Any) -> Iterator[Path]:
    """The notebook that a program which runs notebooks was given."""
    words = _told(process.cmdline, [])
    runner = next((name for word in words if (name := Path(word).stem) in RUNNERS), None)
    named = [word for before, word in pairwise(words) if word.endswith(".ipynb") and before != "--output" and word[:1] != "-"]
    if not runner or not named or (runner != "papermill" and len(named) > 1):  # which of several runs now is not told
        return
    for folder in (_told(process.cwd, ""), _environment(process).get("PWD", "")):  # `papermill --cwd` changes the first
        yield Path(folder) / named[0]


def _input_of_papermill(kernel: Any, parent: Any) -> set[Path]:
    """What papermill runs when it is called from Python: before each cell it writes the path into its output."""
    folders = {Path.cwd(), project_root(), project_root() / "notebooks"}
    inputs = set()
    for output in (file for folder in folders for file in folder.glob("*.ipynb")):
        try:
            ran = json.loads(output.read_text(encoding="utf-8"))["metadata"]["papermill"]
            new = output.stat().st_mtime > kernel.create_time()
        except (ValueError, KeyError, OSError):
            continue
        if new and ran.get("input_path") and ran.get("end_time") is None:
            inputs.add(Path(_told(parent.cwd, "")) / ran["input_path"])
    return inputs if len(inputs) == 1 else set()


def _environment(process: Any) -> Mapping[str, str]:
    return _told(process.environ, {})


def _told(ask: Any, unknown: Any) -> Any:
    """What the system says of a process; `unknown` if it has ended or is another user's."""
    import psutil

    try:
        return ask()
    except (psutil.Error, OSError):
        return unknown


def written_path(file: Path) -> str:
    """A notebook's path as reports write it: from the project's folder if it is in it."""
    place, root = file.parent.resolve() / file.name, project_root().resolve()
    return (place.relative_to(root) if place.is_relative_to(root) else place).as_posix()


def read_cells(file: Path) -> list[dict[str, Any]]:
    """A notebook's cells of code, without those of parameters. Raises ValueError if the file holds no notebook."""
    return _code_cells(file.read_text(encoding="utf-8"))


def code_digest(cells: list[dict[str, Any]]) -> str:
    """Names the code of a notebook: outputs, text and parameters do not count."""
    return fingerprint(["".join(cell["source"]) for cell in cells])


def code_state(file: Path) -> str:
    """Whether a notebook's code is the committed one; empty outside of a git checkout."""
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
    cells = json.loads(text).get("cells", [])
    return [
        cell for cell in cells if cell["cell_type"] == "code" and not SETTINGS & set(cell.get("metadata", {}).get("tags", []))
    ]
