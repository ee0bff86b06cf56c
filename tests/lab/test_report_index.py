"""The index of results: the order of reports, text of files that is not taken as markup, no broken link."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import papermill
import pytest
from PIL import Image

from vmae_lab.cli import main
from vmae_lab.lab.report.index import find_reports, write_index
from vmae_lab.training.settings import ImpossibleHere

ROOT = Path(__file__).parents[2]
ORDER = ["ablation_decoder_mask", "scaling"]
PAGE = """# Title of the page

All in [manifest.json](manifest.json) and [tables/results.csv](tables/results.csv).

What the table holds. ([csv](tables/first.csv), [tex](tables/first.tex))

![What the figure shows.](figures/main.png)
"""
MANIFEST = {
    "title": "Title of the manifest",
    "question": "Which one?",
    "main_table": "first",
    "main_figure": "main",
    "conclusions": ["This one, by `+1.2 [-0.3, +2.7]`."],
    "provenance": {"date": "2026-01-02 03:04 UTC", "code": "abc123", "device": "a processor"},
    "recipe": {"seeds": [0, 7]},
    "compute_seconds": 5400.0,
}


@pytest.fixture
def reports(project) -> Path:
    folder = project / "reports"
    folder.mkdir()
    return folder


def write_report(
    reports: Path, scale: str = "demo", notebook: str = ORDER[0], table: str = "arm,top-1 %\nnone,\ncell,71.50\n", **keys
):
    """Write a report with a page, a table and a figure. `keys` replace those of the manifest; None removes a key."""
    folder = reports / scale / notebook
    (folder / "tables").mkdir(parents=True)
    (folder / "figures").mkdir()
    (folder / "README.md").write_text(PAGE)
    (folder / "tables" / "first.csv").write_text(table)
    (folder / "tables" / "results.csv").write_text("arm,value\n")
    Image.new("L", (640, 400)).save(folder / "figures" / "main.png")
    manifest = {key: value for key, value in {**MANIFEST, **keys}.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


class Links(HTMLParser):
    """Collects the link targets, ids and tags of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.targets, self.names, self.tags = [], set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name in ("href", "src"):
                self.targets.append(value)
            if name == "id":
                assert value not in self.names, f"duplicate id {value}"
                self.names.add(value)


def targets(markdown: str, html: str) -> set[str]:
    """Return the paths of links on both pages, relative to reports/. Links within the page must have an anchor."""
    found = Links(html)
    assert {target[1:] for target in found.targets if target.startswith("#")} <= found.names
    listed = [target for target in found.targets if not target.startswith("#")]
    return {unquote(target) for target in [*listed, *re.findall(r"(?<!\\)\]\(([^)]+)\)", markdown)]}


def written(reports: Path, **options) -> tuple[str, str]:
    page = write_index(reports, ORDER, **options)
    return (reports / "README.md").read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def test_scales_and_notebooks_are_in_order(reports):
    for scale in ("smoke", "other", "demo-variant-0a1b2c", "demo-variant", "gpu", "another", "demo", "paper", "other-variant"):
        write_report(reports, scale)
    for notebook in ("unknown", "scaling", "beyond"):
        write_report(reports, "demo", notebook)
    assert [(entry.scale, entry.notebook) for entry in find_reports(reports, ORDER)] == [
        ("paper", ORDER[0]),
        ("gpu", ORDER[0]),
        ("demo", ORDER[0]),
        ("demo", "scaling"),
        ("demo", "beyond"),
        ("demo", "unknown"),
        ("demo-variant", ORDER[0]),
        ("demo-variant-0a1b2c", ORDER[0]),
        ("smoke", ORDER[0]),
        ("another", ORDER[0]),
        ("other", ORDER[0]),
        ("other-variant", ORDER[0]),
    ]


def test_both_pages_show_the_report(reports):
    write_report(reports)
    for page in written(reports):
        for text in (
            "Title of the manifest", "Which one?", "What the table holds.", "What the figure shows.", "71.50", "0, 7",
            "2026-01-02 03:04 UTC", "abc123", "a processor", "90 minutes", "+1.2 [-0.3, +2.7]",
        ):  # fmt: skip
            assert text in page
    html = written(reports)[1]
    assert "<td></td>" in html, "an empty cell stays empty"
    assert 'width="640" height="400" loading="lazy"' in html
    assert not {"script", "link", "iframe"} & Links(html).tags
    assert "http" not in html, "the page loads nothing from other servers"


def test_text_of_files_is_not_taken_as_markup(reports):
    bad = '<script>alert("x")</script> [a](http://b) & `<i>`'
    write_report(
        reports, title=bad, question=bad, conclusions=[bad], table='arm,"a|<b>"\n"<img src=x onerror=y>|z",[c](http://d)\n'
    )  # fmt: skip
    markdown, html = written(reports)
    for page in (markdown, html):
        assert not any(tag in page for tag in ("<script", "<img src=x", "<i>", "<b>"))
        assert "&lt;script&gt;" in page
    assert not any(target.startswith("http") for target in targets(markdown, html))
    assert r"&lt;img src=x onerror=y&gt;\|z" in markdown, "a bar would begin another column"


def test_an_older_manifest_is_shown_as_far_as_it_goes(reports):
    write_report(reports, **dict.fromkeys(MANIFEST))
    [entry] = find_reports(reports, ORDER)
    assert (entry.problem, entry.title, entry.table, entry.picture) == ("", ORDER[0], None, None)
    assert all(ORDER[0] in page for page in written(reports))


def test_a_report_without_table_and_figure_is_shown(reports):
    folder = write_report(reports, main_table=None, main_figure=None)
    (folder / "README.md").write_text("only text")
    markdown, html = written(reports)
    assert "Title of the manifest" in markdown
    assert not {"table", "img"} & Links(html).tags


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("path", "damage", "message"),
    [
        ("manifest.json", cut, "manifest.json cannot be read"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", lambda path: path.write_text("[1]"), "manifest.json cannot be read"),
        ("README.md", Path.unlink, "README.md is missing"),
        ("README.md", lambda path: path.write_bytes(b"\xff\xfe\xff"), "README.md cannot be read"),
        ("tables/first.csv", Path.unlink, "tables/first.csv is missing"),
        ("tables/first.csv", lambda path: path.write_text(""), "tables/first.csv cannot be read"),
        ("figures/main.png", cut, "figures/main.png cannot be read"),
    ],
)
def test_a_broken_report_is_one_line_that_names_it(reports, path: str, damage: Callable, message: str):
    damage(write_report(reports, "gpu") / path)
    write_report(reports, "demo", title="Another report")
    markdown, html = written(reports)
    for page in (markdown, html):
        assert "gpu/ablation_decoder_mask" in page
        assert message in page
        assert "vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale gpu" in page
        assert "Another report" in page
        assert str(reports) not in page, "no paths of this machine"
    assert len([line for line in markdown.splitlines() if "gpu/" in line]) == 1


def test_smoke_says_that_its_results_are_meaningless(reports):
    write_report(reports, "demo")
    assert not any("meaningless" in page for page in written(reports))
    write_report(reports, "smoke")
    for page in written(reports):
        demo, smoke = page.index(f"demo/{ORDER[0]}/README.md"), page.index(f"smoke/{ORDER[0]}/README.md")
        assert demo < page.index("meaningless") < smoke


def test_no_link_is_broken(reports):
    (reports / "LOG.md").write_text("log")
    write_report(reports, "demo with (odd) #name%", "scaling")
    (write_report(reports, "gpu") / "tables" / "results.csv").unlink()
    folder = write_report(reports, "demo")
    before = targets(*written(reports))
    for name in ("ipynb", "html"):
        (folder / f"{ORDER[0]}.{name}").write_text("{}")
    after = targets(*written(reports))
    assert all((reports / target).is_file() for target in after)
    assert after - before == {f"demo/{ORDER[0]}/{ORDER[0]}.ipynb", f"demo/{ORDER[0]}/{ORDER[0]}.html"}
    assert {"LOG.md", f"demo/{ORDER[0]}/README.md", f"demo/{ORDER[0]}/figures/main.png"} <= after


def test_a_missing_executed_notebook_is_replaced_by_a_command(reports):
    write_report(reports, "demo-variant")
    for page in written(reports):
        assert "vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo -p NAME VALUE" in page


def test_the_file_and_the_settings_of_a_report_are_in_its_command(reports):
    changed = {"pretrain.steps": 7, "data.lists.train": "a b"}
    write_report(reports, "demo-variant-0a1b2c", "copy", notebook_file="mine/copy.ipynb", changed=changed)
    command = """vmae-lab run mine/copy.ipynb --scale demo -p pretrain.steps 7 -p data.lists.train '"a b"'"""
    markdown, html = written(reports)
    assert command in markdown
    assert command in unescape(html)
    assert "changed settings: pretrain.steps 7" in markdown
    assert "changed settings" in markdown


def test_an_index_for_git_leaves_out_what_git_ignores(reports):
    for scale in ("demo", "smoke", "mine", "demo-variant", "demo-variant-0a1b2c", "own-variant-0a1b2c"):
        folder = write_report(reports, scale)
        (folder / f"{ORDER[0]}.ipynb").write_text("{}")
    (reports / "gpu" / "scaling").mkdir(parents=True)
    (reports / "gpu" / "scaling" / "scaling.ipynb").write_text("{}")
    with pytest.raises(ImpossibleHere, match="without --for-git"):
        write_index(reports, ORDER, for_git=True)
    subprocess.run(["git", "init", "--quiet", reports.parent], check=True)
    shutil.copy(ROOT / ".gitignore", reports.parent)
    found = targets(*written(reports, for_git=True))
    assert {target.split("/")[0] for target in found} == {"demo"}
    assert not [target for target in found if target.endswith(".ipynb")], "executed notebooks have times in their outputs"


def test_the_command_line_prints_the_page_last(reports, capsys):
    write_report(reports)
    assert main(["report"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(reports / "index.html"))
    assert (reports / "index.html").is_file()


def test_without_reports_the_message_has_the_command_that_writes_one(project, capsys):
    assert main(["report"]) == 2
    assert "vmae-lab run" in capsys.readouterr().err
    (project / "reports").mkdir()
    assert main(["report"]) == 0
    assert all("There is no report yet" in page for page in written(project / "reports"))


def test_a_run_writes_its_notebook_as_html_too(project, capsys, monkeypatch):
    command = ["run", str(ROOT / "notebooks" / "ablation_decoder_mask.ipynb"), "--scale", "smoke"]
    folder = project / "reports" / "smoke" / "ablation_decoder_mask"
    page = folder / "ablation_decoder_mask.html"

    def execute(notebook, executed, parameters, **options):
        output = nbformat.v4.new_output("stream", text="forty-two")
        cell = nbformat.v4.new_code_cell("6 * 7", outputs=[output], execution_count=1)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), executed)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {folder / 'README.md'}"
    assert f"executed notebook as HTML: {page}" in lines
    assert "forty-two" in page.read_text(encoding="utf-8")

    def stop(*words, **options):
        raise papermill.PapermillExecutionError(0, 1, "1 / 0", "ZeroDivisionError", "division by zero", [])

    monkeypatch.setattr(papermill, "execute_notebook", stop)
    assert main(command) == 1
    assert not page.exists(), "the page of an earlier run is removed"


def git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    return done.stdout if done.returncode == 0 else None


def test_the_committed_index_leads_only_to_committed_files():
    """Both are read from git, because a working copy also has executed notebooks, which a clone does not have."""
    pages = [git("show", f":reports/{name}") for name in ("README.md", "index.html")]
    if None in pages:
        pytest.skip("no committed index")
    kept = set(git("ls-files", "-z", "--full-name", "reports").split("\0"))
    missing = {target for target in targets(*pages) if f"reports/{target}" not in kept}
    assert not missing, "write the committed index with `vmae-lab report --for-git`, and add the reports it names"
