"""Find the file that a kernel runs, and compare its code with the committed one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from vmae_lab.lab.notebook_file import _on_command_line, _Parent, code_state, notebook_file
from vmae_lab.utils.paths import project_path

ASK = "from vmae_lab.lab.notebook_file import notebook_file; print(notebook_file())"


@pytest.fixture
def notebook(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    path = project / "my copy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), path)
    return path


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VMAE_LAB_NOTEBOOK", "{}"),
        ("JPY_SESSION_NAME", "{}"),
        ("JPY_SESSION_NAME", "folder of the server/my copy.ipynb"),
        ("PYTEST_CURRENT_TEST", "../somewhere/my copy.ipynb::Cell 0 (setup)"),
    ],
)
def test_a_variable_names_the_file(variable, value, notebook, monkeypatch):
    monkeypatch.setenv(variable, value.format(notebook))
    assert notebook_file() == notebook


@pytest.mark.parametrize("value", ["gone.ipynb", "", "tests/lab/test_notebook_file.py::test (call)"])
def test_a_variable_that_names_no_notebook_is_ignored(value, notebook, monkeypatch):
    for variable in ("VMAE_LAB_NOTEBOOK", "JPY_SESSION_NAME", "PYTEST_CURRENT_TEST"):
        monkeypatch.setenv(variable, value)
    assert notebook_file() is None


@pytest.mark.slow
def test_an_inherited_variable_of_a_server_is_ignored(notebook):
    """A notebook in JupyterLab may start papermill, whose kernel runs another notebook."""
    env = {**os.environ, "JPY_SESSION_NAME": str(notebook)}
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASK!r}], check=True)"
    for code, expected in ((ASK, str(notebook)), (start, "None")):
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_the_output_of_nbconvert_is_not_its_input(notebook):
    words = [sys.executable, "-m", "jupyter-nbconvert", "--execute", notebook.name, "--output", "out.ipynb", "--output=o.ipynb"]
    assert set(_on_command_line(_Parent(words, str(notebook.parent)))) == {notebook, Path(notebook.name)}


def test_the_input_is_found_in_the_output_of_papermill(notebook):
    """If Python code calls papermill, nothing else names the input. Outputs of finished runs are ignored."""
    other = nbformat.v4.new_notebook(metadata={"papermill": {"input_path": "other.ipynb", "end_time": None}})
    nbformat.write(other, notebook.parent / "old.ipynb")
    os.utime(notebook.parent / "old.ipynb", (0, 0))
    for name, end_time in (("ended", "2026-01-01"), ("out", None)):
        metadata = {"papermill": {"input_path": str(notebook), "end_time": end_time}}
        nbformat.write(nbformat.v4.new_notebook(metadata=metadata), notebook.parent / f"{name}.ipynb")
    assert notebook_file() == notebook


def test_paths_inside_the_project_are_relative_to_it(project, tmp_path_factory):
    assert project_path(project / "notebooks" / "a.ipynb") == "notebooks/a.ipynb"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a.ipynb"
    assert project_path(elsewhere) == elsewhere.as_posix()


def test_code_is_compared_with_the_committed_one(notebook):
    assert code_state(notebook) == "", "no git checkout"

    def git(*words: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *words], cwd=notebook.parent, check=True, capture_output=True)

    git("init")
    assert code_state(notebook) == "not committed"
    git("add", ".")
    git("commit", "-m", "one")
    assert code_state(notebook) == "as committed"
    content = json.loads(notebook.read_text())
    text = nbformat.v4.new_markdown_cell("text")
    parameters = nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["injected-parameters"]})
    content["cells"] += [text, parameters]
    content["cells"][0]["outputs"] = [nbformat.v4.new_output("stream", text="2")]
    notebook.write_text(json.dumps(content))
    assert code_state(notebook) == "as committed", "text, outputs and parameters are not code"
    content["cells"][0]["source"] = "1 + 2"
    notebook.write_text(json.dumps(content))
    assert code_state(notebook) == "changed since the last commit"
