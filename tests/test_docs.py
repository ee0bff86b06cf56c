"""The documents agree with the code: links, commands, settings and imports exist, and the changes they show work."""

import ast
import contextlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import typer
import yaml
from test_architecture import LAYERS, NOTEBOOKS, PACKAGE, imports, layer
from typer.core import TyperGroup

from vmae_lab.cli import app
from vmae_lab.cli.parameters import scale_parameters
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.lab.experiments.ablation_decoder_mask import ARMS, BASELINE
from vmae_lab.lab.experiments.common import comparison_cells

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTENDING = ROOT / "docs" / "extending.md"
PATCHED = "# notebooks/"  # first characters of a block that is a cell of a notebook
each_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a document in the given languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of every `vmae-lab …` in a document, in blocks and in the text, also after a launcher."""
    lines = [line for text in blocks(path, "sh") for line in text.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose(path))]:
        line = re.sub(r"^.*-m vmae_lab ", "vmae-lab ", line)
        if line.startswith("vmae-lab "):
            yield shlex.split(line, comments=True)[1:]


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ +(.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def kept() -> set[str] | None:
    """The files that git tracks or would add; None if this is not a checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return set(done.stdout.split("\0")) - {""} if done.returncode == 0 else None


@each_document
def test_every_link_has_a_target(path):
    files = kept()
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)) + re.findall(r'(?:src|href)="([^"]+)"', prose(path)):
        if re.match(r"https?:|mailto:", target):
            continue
        location, _, anchor = target.partition("#")
        file = (path.parent / location).resolve() if location else path
        assert file.is_file(), f"{path.name} links to {target}, which is not a file"
        name = file.relative_to(ROOT).as_posix()
        assert files is None or name in files, f"{path.name} links to {target}, which git ignores"
        assert not anchor or anchor in anchors(file), f"{path.name} links to {target}: no such heading"


def parsed(arguments: list[str]) -> typer.Context | None:
    """Parse a command line without running it; None if it is only the name of a command."""
    command, name = typer.main.get_command(app), "vmae-lab"
    left = list(arguments)
    while isinstance(command, TyperGroup) and left and not left[0].startswith("-"):
        assert left[0] in command.commands, f"there is no command {' '.join(arguments)}"
        name = left.pop(0)
        command = command.commands[name]
    return command.make_context(name, left) if left else None


@each_document
def test_every_command_parses_and_every_setting_is_known(path):
    for arguments in commands(path):
        if arguments[0].isupper() or arguments[-1] == "--help":
            continue
        command = f"{path.name}: vmae-lab {' '.join(arguments)}"
        try:
            context = parsed(arguments)
        except Exception as error:  # of typer, which moves its exceptions between versions
            pytest.fail(f"{command}: {error}")
        if context is None:
            continue
        for notebook in context.params.get("notebooks") or ():
            written = path == EXTENDING or notebook.name.startswith("<")
            assert written or (ROOT / notebook).is_file(), f"{path.name}: there is no {notebook}"
        scale = context.params.get("scale") or context.params.get("parameters")
        if scale and not scale.startswith(("<", "my")):
            check_settings(command, scale, context.params["override"], path != EXTENDING)


def check_settings(where: str, scale: str, override: list[str], values: bool) -> None:
    """Build the recipe of a command; if `values` is False, check only the names of settings."""
    parameters = scale_parameters(scale, ROOT / "params", override)
    try:
        with contextlib.chdir(ROOT):
            build_recipe({"arms": ["arm"], **parameters})
    except RecipeError as error:
        if values or "unknown parameter" in str(error):
            pytest.fail(f"{where}: {error}")


@each_document
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [line for text in blocks(path, "sh") for line in text.splitlines()] + re.findall(r"`([^`\n]+)`", prose(path))
    named = {line.split()[1] for line in lines if re.match(r"make [a-z]", line)}
    assert named <= targets


@each_document
def test_python_compiles_and_its_imports_exist(path):
    for text in blocks(path, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and path != EXTENDING:
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{path.name}: {node.module} has no {', '.join(missing)}"


def test_the_example_of_statistics_computes_the_table_of_its_report():
    (code,) = blocks(ROOT / "docs" / "statistics.md", "python")
    names: dict = {}
    with contextlib.chdir(ROOT):
        exec(code, names)
    tables = ROOT / "reports" / "study20" / "ablation_decoder_mask" / "tables"
    report = pd.read_csv(tables / "decoder_mask.csv", keep_default_na=False).set_index("decoder mask")
    report = report[report.verdict != ""]
    assert [ARMS[arm].label for arm in names["table"].index] == list(report.index)
    for arm in names["table"].index:
        cells = comparison_cells(names["table"], arm, ARMS[BASELINE].label)
        assert cells == {column: report[column][ARMS[arm].label] for column in cells}


@each_document
def test_named_files_of_the_project_exist(path):
    """Files in code spans, except for those that extending.md creates."""
    for name in re.findall(r"`((?:vmae_lab|params|benchmarks|tests|notebooks)/[\w./-]+)`", prose(path)):
        if path != EXTENDING or "tubelets" not in name:
            assert (ROOT / name).exists(), f"{path.name} names {name}, which does not exist"


@pytest.mark.slow
def test_the_map_is_that_of_the_code():
    """The table has every folder in its layer; the imports that it names exist and go down."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|[^|]+\|([^|]*)\|$", text, re.MULTILINE)
    assert {(int(number) - 1, folder) for number, folder, _ in rows} == {
        (layer(name), name) for names in LAYERS for name in names
    }
    known = {folder: set() for _, folder, _ in rows}
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if folder in known:
            known[folder] |= {module.split(".")[0] for module in imports(path)}
    for _, folder, cell in rows:
        for imported in re.findall(r"`(\w+)`", cell):
            assert layer(folder) > layer(imported)
            assert imported in known[folder], f"{folder} imports nothing of {imported}"


def test_the_readme_names_every_notebook():
    table = re.search(r"^\| notebook \|.*?\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0]
    linked = re.findall(r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \|", table, re.MULTILINE)
    assert set(linked) == {(path.stem, path.stem) for path in NOTEBOOKS}


def test_the_tutorials_page_links_every_notebook():
    linked = re.findall(r"\]\(\.\./notebooks/(\w+)\.ipynb\)", (ROOT / "docs" / "tutorials.md").read_text(encoding="utf-8"))
    assert set(linked) == {path.stem for path in NOTEBOOKS}


def test_the_readme_names_every_command():
    top = typer.main.get_command(app)
    existing = {name for name in top.commands if name != "data"} | {f"data {name}" for name in top.commands["data"].commands}
    table = re.findall(r"^\| (`[^|]+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert existing <= {name for row in table for name in re.findall(r"`([^`]+)`", row)}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_glossary_is_short_and_sorted():
    terms = re.findall(r"^## (.+)$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) <= 25
    assert terms == sorted(terms, key=str.lower)


def test_the_citation_is_complete():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cff["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "license", "version"} <= cff.keys()
    assert (cff["type"], cff["version"], cff["license"]) == ("software", project["version"], project["license"])
    for paper in (cff["preferred-citation"], *cff["references"]):
        assert {"type", "title", "authors", "year", "identifiers"} <= paper.keys()
        assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", paper["identifiers"][0]["value"])


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the project with every diff of extending.md applied."""
    project = tmp_path_factory.mktemp("extended")
    for name in ("vmae_lab", "params", "notebooks"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for number, text in enumerate(blocks(EXTENDING, "diff")):
        diff = project / f"{number}.diff"
        diff.write_text(text, encoding="utf-8")
        done = subprocess.run(["git", "apply", diff.name], cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"diff {number} of extending.md does not apply: {done.stderr}"
    notebook = nbformat.read(project / "notebooks" / "scaling.ipynb", as_version=4)
    last = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    (cell,) = (text for text in blocks(EXTENDING, "python") if text.startswith(PATCHED))
    assert "delete all cells below it" in prose(EXTENDING), "the notebook is made as the text says"
    notebook.cells = [*notebook.cells[: last + 1], nbformat.v4.new_code_cell(cell)]
    nbformat.write(notebook, project / "notebooks" / "ablation_tubelets.ipynb")
    return project


def in_copy(project: Path, code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(project)}  # also for kernels that it starts
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_shown_changes_are_short():
    diffs = blocks(EXTENDING, "diff")
    assert len(diffs) == 6
    for text in diffs:
        adds_a_file = "--- /dev/null" in text
        assert len(re.findall(r"^[+-](?![+-]{2} )", text, re.MULTILINE)) <= (45 if adds_a_file else 16)


@pytest.mark.slow
def test_changes_that_are_shown_work(changed):
    """One process runs the Python code of all sections, their plans and the new notebook in the changed copy."""
    code = [text for text in blocks(EXTENDING, "python") if not text.startswith(PATCHED)]
    plans = [words for words in commands(EXTENDING) if words[0] == "plan"]
    plans.append(["plan", "notebooks/ablation_tubelets.ipynb", "--scale", "smoke"])
    (run,) = (words for words in commands(EXTENDING) if words[:1] == ["run"] and len(words) > 1)
    code += ["from vmae_lab.cli import main", "from vmae_lab.lab import estimate"]
    code.append("estimate.pixel_seconds = lambda world: 1e-6  # rendering large clips is slow")
    code += [f"assert main({words}) == 0, {words}" for words in plans] + ["print('the run')", f"assert main({run}) == 0"]
    planned, _, _ = in_copy(changed, "\n".join(code)).partition("the run")
    assert planned.count("left to run:") == len(plans) == 4
    page = next((changed / "reports").glob("smoke-variant-*/ablation_tubelets/README.md"))
    assert "How many frames should a patch span?" in page.read_text(encoding="utf-8")
