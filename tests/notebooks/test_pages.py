"""The text of all notebooks: opening and ending, links to existing files, valid commands."""

import re
import shlex
import subprocess
from pathlib import Path

import nbformat
import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from vmae_lab.cli import app
from vmae_lab.cli.parameters import by_name
from vmae_lab.lab.config import RecipeError
from vmae_lab.lab.notebook_run import checked_parameters, make_portable, notebook_as_html

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEAD = "| scale | what it is | command | time | needs |"
UsageError = typer.BadParameter.__base__  # typer brings a click of its own
SCALES = {"smoke", "demo", "gpu", "paper"}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def texts(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]


def commands(text: str) -> list[list[str]]:
    """Return the words of each `vmae-lab` command in a text, in code spans and in shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [*spans, *(line for block in blocks for line in block.splitlines())]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vmae-lab ")]


def parsed(words: list[str]) -> typer.Context:
    """Parse a command line without running it. Raises UsageError."""
    command = get_command(app)
    context = typer.Context(command)
    while isinstance(command, TyperGroup):
        _, command, words = command.resolve_command(context, words)
        context = typer.Context(command, context)
    return command.make_context(command.name, words) if words else context


@each_notebook
def test_opens_with_its_question_and_what_each_scale_takes(path):
    opening = nbformat.read(path, as_version=4).cells[0].source
    assert opening.startswith("# ")
    assert "?" in opening.split(HEAD)[0], "it asks a question"
    lines = opening.split(HEAD)[1].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:] if line.startswith("|")]
    assert {re.match(r"`(\w+)`", row[0])[1] for row in rows} >= SCALES
    for row in rows:
        assert len(row) == 5
        assert all(row), "each scale has a description, command, time and needs"
    named = {words[-1] for row in rows for words in commands(row[2]) if "--scale" in words}
    assert {"demo", "gpu"} <= named


def test_times_of_the_demo_are_those_in_the_readme():
    in_readme = dict(
        re.findall(r"^\| \[(\w+)\]\(.*?\) \| [^|]+ \| (\d+ min) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    in_notebooks = {}
    for path in NOTEBOOKS:
        row = next(line for line in texts(path)[0].splitlines() if line.startswith("| `demo`"))
        in_notebooks[path.stem] = re.search(r"\d+ min", row)[0]
    assert in_notebooks == {name: in_readme[name] for name in in_notebooks}


@each_notebook
def test_ends_with_computed_conclusions_its_report_and_where_to_go_next(path):
    cells = nbformat.read(path, as_version=4).cells
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Conclusions\n"))
    assert "report](../reports/" in cells[start].source, "the author's reading of a committed report"
    conclusions, report, ending = cells[start + 1 :]
    assert "conclusions(" in conclusions.source, "computed, not written"
    assert re.search(r"lab\.report\(\s*results, conclusions, ", report.source)
    assert ending.source.startswith("## Next steps\n")
    assert 2 <= len(re.findall(r"^- ", ending.source, re.MULTILINE)) <= 4
    links = re.findall(r"\]\(([^)]+)\)", ending.source)
    assert any(link.endswith(".ipynb") for link in links)
    assert any(link.startswith("../vmae_lab/") for link in links)
    assert any("-p" in words and words[0] == "run" for words in commands(ending.source)), "a parameter worth changing"


@each_notebook
def test_links_are_not_broken(path):
    for link in re.findall(r"\]\(([^)]+)\)", "\n".join(texts(path))):
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), link


def test_links_of_an_executed_notebook_have_the_same_targets(tmp_path):
    notebook, executed = tmp_path / "notebooks" / "a.ipynb", tmp_path / "reports" / "smoke" / "a" / "a.ipynb"
    text = "[b](b.ipynb) [masks](../vmae_lab/masking.py) [paper](https://arxiv.org/abs/2303.16727) [up](#top)"
    executed.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), executed)
    make_portable(executed, notebook)
    [moved] = texts(executed)
    assert "[b](../../../notebooks/b.ipynb) [masks](../../../vmae_lab/masking.py)" in moved
    assert moved.endswith("[paper](https://arxiv.org/abs/2303.16727) [up](#top)")


def test_an_executed_notebook_has_no_paths_of_this_machine(project):
    """In outputs, in parameters, in papermill's metadata and in the HTML page. Paths outside the project are not changed."""
    executed = project / "reports" / "smoke" / "a" / "a.ipynb"
    executed.parent.mkdir(parents=True)
    image = f"+{project}/"  # base64 may contain any text
    stream = nbformat.v4.new_output("stream", text=f"report: {executed}\n{project}\n{project}-2/a /b{project}/c\n")
    shown = nbformat.v4.new_output("display_data", {"text/plain": f"'{project}/runs'", "image/png": image})
    cell = nbformat.v4.new_code_cell(f'scale = "{project}/mine.yaml"', outputs=[stream, shown])
    metadata = {"papermill": {"input_path": str(project / "notebooks" / "a.ipynb"), "output_path": str(executed)}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), executed)
    make_portable(executed, project / "notebooks" / "a.ipynb")
    notebook = nbformat.read(executed, as_version=4)
    [cell] = notebook.cells
    assert cell.source == 'scale = "mine.yaml"'
    assert cell.outputs[0].text == f"report: reports/smoke/a/a.ipynb\n.\n{project}-2/a /b{project}/c\n"
    assert cell.outputs[1].data == {"text/plain": "'runs'", "image/png": image}
    assert notebook.metadata.papermill == {"input_path": "notebooks/a.ipynb", "output_path": "reports/smoke/a/a.ipynb"}
    cell.outputs = [nbformat.v4.new_output("stream", text="report: reports/smoke/a/a.ipynb\n")]
    nbformat.write(notebook, executed)
    assert str(project) not in notebook_as_html(executed)


@each_notebook
def test_commands_and_their_parameters_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = commands("\n".join(texts(path)))
    assert shown
    for words in shown:
        given = parsed(words).params
        for notebook in given.get("notebooks", ()):
            checked_parameters(notebook, given["scale"], by_name(given["override"]))


def test_a_wrong_command_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    [words] = commands("text `vmae-lab run notebooks/scaling.ipynb -p pretrain.stpes 3`, and `other`")
    given = parsed(words).params
    with pytest.raises(RecipeError, match="did you mean 'steps'"):
        checked_parameters(given["notebooks"][0], given["scale"], by_name(given["override"]))
    for wrong in ("vmae-lab rnu notebooks/scaling.ipynb", "vmae-lab run notebooks/scaling.ipynb --scael demo"):
        with pytest.raises(UsageError):
            parsed(commands(f"`{wrong}`")[0])


def test_links_from_notebooks_reach_the_whole_project_in_jupyterlab():
    """The root of `make lab` is the project: Lab opens no file outside its root."""
    shown = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f'jupyter lab --ServerApp.root_dir="{ROOT}"' in shown
