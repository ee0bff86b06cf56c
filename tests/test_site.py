"""The documentation site's configuration and extensions. `make docs` builds the site itself."""

import json
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from vmae_lab.lab.notebook_run import make_portable

pytest.importorskip("sphinx", reason="the docs extra is not installed")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def conf():
    path = list(sys.path)
    yield runpy.run_path(str(DOCS / "conf.py"))
    sys.path[:] = path


def extension(name: str) -> dict:
    return runpy.run_path(str(DOCS / "extensions" / f"{name}.py"))


def test_broken_links_and_network_loads_are_problems(tmp_path):
    (tmp_path / "good.html").write_text(
        '<h1 id="a b">x</h1><a href="#a%20b">x</a><a href="sub/page.html">x</a><a href="https://arxiv.org">x</a>'
        '<img src="data:image/png;base64,AA"><link href="good.html">'
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.html").write_text('<a href="../good.html#a%20b">x</a>')
    assert extension("check_site")["problems"](tmp_path) == []
    (tmp_path / "bad.html").write_text(
        '<a href="missing.html">x</a><a href="good.html#c">x</a>'
        '<script src="https://cdn.org/x.js"></script><link href="//cdn.org/x.css">'
    )
    found = extension("check_site")["problems"](tmp_path)
    for target in ("missing.html", "good.html#c", "https://cdn.org/x.js", "//cdn.org/x.css"):
        assert sum(f" {target}" in problem for problem in found) == 1
    assert len(found) == 4


def test_docstrings_are_plain_text():
    plain = extension("plain_docstrings")["plain"]
    assert plain("Masks `(B, N)`.") == "Masks ``(B, N)``\\ ."
    assert plain("A *b* | c_ d") == r"A \*b\* \| c\_ d"
    assert plain("Code over `two\nlines`") == "Code over ``two lines``\\ "
    assert plain("First.\n    Indented.\nLast.") == "First.\n\n    Indented.\n\nLast."


def test_formulas_need_no_script():
    """Both renderers write MathML."""
    from docutils import nodes

    for renderer, node in (("visit_inline", nodes.math), ("visit_block", nodes.math_block)):
        translator = SimpleNamespace(body=[])
        with pytest.raises(nodes.SkipNode):
            extension("mathml")[renderer](translator, node("", r"\frac{1}{N} \sum_i x_i"))
        assert "<mfrac>" in translator.body[0]


def test_every_committed_report_is_a_page(conf):
    shown = {f"{page}.md" for pages in conf["REPORTS"].values() for page in pages}
    done = subprocess.run(["git", "ls-files", "reports/*/*/README.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) <= shown


def test_every_page_of_docs_is_in_a_table_of_contents(conf):
    listed = "".join(conf["CONTENTS"].values())
    for path in DOCS.rglob("*.md"):
        assert f"/{path.relative_to(ROOT).with_suffix('').as_posix()}\n" in listed


def test_modules_of_api_pages_exist():
    for path in (DOCS / "api").glob("*.md"):
        for module in re.findall(r"^\.\. automodule:: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert find_spec(module), f"{path.name} documents {module}"


def test_a_tutorial_says_where_its_outputs_are(conf):
    stored = json.dumps({"cells": [{"cell_type": "markdown", "source": ["# Title\n", "\n", "Text"]}]})
    first = json.loads(conf["tutorial"]("scaling", stored))["cells"][0]["source"]
    assert first.startswith("# Title\n\n```{note}\n")
    assert "(../reports/demo/scaling/README.md)" in first
    assert first.endswith("\n\nText")
    assert "report" not in json.loads(conf["tutorial"]("no_report", stored))["cells"][0]["source"]


def test_links_of_an_executed_notebook_lead_to_the_same_files(conf, tmp_path, monkeypatch):
    """`vmae-lab run` makes them for the folder of the report, and the page is in notebooks/."""
    links = [
        "../vmae_lab/masking.py",
        "../reports/study/scaling/README.md",
        "../reports/demo/scaling/README.md",
        "scaling.ipynb",
    ]
    (tmp_path / "notebooks").mkdir()
    executed = tmp_path / "reports" / "demo" / "scaling" / "scaling.ipynb"
    executed.parent.mkdir(parents=True)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# Title\n" + " ".join(f"[x]({link})" for link in links))]
    nbformat.write(notebook, executed)
    make_portable(executed, tmp_path / "notebooks" / "scaling.ipynb")
    assert "(../../study/scaling/README.md)" in executed.read_text(encoding="utf-8")
    monkeypatch.setitem(conf["tutorial"].__globals__, "ROOT", tmp_path)
    page = json.loads(conf["tutorial"]("scaling", "{}"))["cells"][0]["source"]
    assert re.findall(r"\[x\]\(([^)]+)\)", page) == links
