"""Imports run downward without cycles, notebooks are thin and stored clean, dependencies are in one list."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vmae_lab"
# The package's folders and top files, from the bottom. A file imports only from folders below its own.
LAYERS = [
    ("utils", "paper"),
    ("masking",),
    ("models", "data"),
    ("detection", "evaluation"),
    ("training",),
    ("lab",),
    ("cli",),
]


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, without the name of the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        found |= {name.removeprefix("vmae_lab.") for name in names if name.startswith("vmae_lab.")}
    return found


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def test_imports_run_downward():
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if folder.startswith("__"):
            continue
        for module in imports(path):
            other = module.split(".")[0]
            allowed = other == folder or layer(other) < layer(folder)
            assert allowed, f"{path.relative_to(ROOT)} imports vmae_lab.{module}, which is not below it"


def test_no_module_imports_itself_through_others():
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items() if not name.startswith("__")}
    graph = {name: imports(path) & files.keys() - {name} for name, path in files.items()}
    for name, imported in graph.items():  # `from package import module` needs the module; a package imports its own modules
        imported -= {other.rpartition(".")[0] for other in imported} | {name.rpartition(".")[0]}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules of a cycle


@pytest.mark.slow
def test_the_package_imports_without_warnings():
    modules = (path.relative_to(ROOT).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    code = "import " + ", ".join(".".join(parts) for parts in modules if not parts[-1].startswith("__"))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_conda_and_pip_have_one_list_of_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [line for line in environment["dependencies"] if isinstance(line, str)]
    pip = next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    assert [re.split(r"[<>=]", line)[0] for line in plain] == ["python", "pip"], "everything else is pyproject's"
    assert pip == ["-c constraints.txt", "-e .[lab,test]"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert plain[0] == "python" + project["requires-python"]
    listed = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in listed}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), "names and numbers only"
    assert {line.split("==")[0] for line in lines} == names - {"decord2"}  # decord2 stands in for decord on other machines


def test_required_parts_exist():
    listed = (ROOT / "pyproject.toml").read_text()
    for name in (
        "torch",
        "timm",
        "einops",
        "decord",
        "jupyterlab",
        "papermill",
        "matplotlib",
        "seaborn",
        "nbval",
        "accelerate",
    ):
        assert f'"{name}>=' in listed


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_thin_and_stored_clean(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3", "papermill needs it"
    assert any("NBVAL_CHECK_OUTPUT" in cell.source for cell in notebook.cells), "something is compared in each"
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kept = "keep_output" in cell.metadata.get("tags", [])
        assert (cell.execution_count is not None) == kept, "a stored output needs its count for nbval; others are noise"
        assert bool(cell.outputs) == kept, f"outputs are kept just where they are compared: {cell.source[:60]}"
        assert kept == ("NBVAL_CHECK_OUTPUT" in cell.source)
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} belongs in the package"
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert {name.split(".")[0] for name in names} <= {"vmae_lab", "torch"}, "a notebook imports these only"


@pytest.mark.slow
def test_the_commit_hook_leaves_stored_notebooks_as_they_are(tmp_path):
    """Outputs that nbval compares, and their execution counts, stay in a commit."""
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    arguments = next(hook["args"] for hook in hooks if hook["id"] == "nbstripout")
    copies = [Path(shutil.copy(path, tmp_path)) for path in NOTEBOOKS]
    done = subprocess.run(
        [sys.executable, "-m", "nbstripout", *arguments, *copies], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path, copy in zip(NOTEBOOKS, copies, strict=True):
        assert copy.read_text() == path.read_text(), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_defaults_are_the_smoke_scale(path):
    """nbval cannot inject parameters. The cell has lines that papermill understands, and comes after the setup cell."""
    from papermill import inspect_notebook

    setup, parameters = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"][:2]
    assert "refuse_dotted_names()" in setup.source
    assert parameters.metadata.tags == ["parameters"]
    values: dict = {}
    exec(parameters.source, values)
    data = {"data": {}} if path.stem in ("bring_your_own_videos", "use_a_checkpoint") else {}
    data |= {"checkpoint": None} if path.stem == "use_a_checkpoint" else {}
    written = {name: values[name] for name in values if not name.startswith("_")}
    assert written == {"scale": "smoke", "seeds": None, "arms": None, "override": {}, **data}
    understood = {name: parameter["help"] for name, parameter in inspect_notebook(path).items()}
    assert set(understood) == set(written)
    assert all(understood.values()), "every parameter has a word of help"
