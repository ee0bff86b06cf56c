"""The index of results: all reports below reports/ on one page, as README.md and as an index.html that needs no server."""

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from PIL import Image
from pydantic import BaseModel
from tabulate import tabulate

from vmae_lab.lab.estimate import duration
from vmae_lab.lab.report.folder import VARIANT
from vmae_lab.lab.report.provenance import git
from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.atomic_io import write_text

SCALES = ("paper", "gpu", "study20", "study", "demo", "own", "own_checkpoint", "smoke")  # in the order of the page
NOTEBOOK, PAGE = "executed notebook", "executed notebook as HTML"  # texts of links

# ---------------------------------------------------------------------------------------------------------------------------
# Reading reports


class Manifest(BaseModel):
    """The part of a report's manifest.json that the index shows. Old manifests have less of it."""

    title: str = ""
    question: str = ""
    conclusions: list[str] = []
    main_table: str | None = None
    main_figure: str | None = None
    notebook_file: str | None = None
    changed: dict[str, Any] = {}  # settings that differ from the scale's
    provenance: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    compute_seconds: float = 0.0


class Picture(NamedTuple):
    """The main figure: its path in the report's folder, its caption, and its size in pixels."""

    path: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Entry:
    """A report in the index. `problem` says why it cannot be shown; `links` maps texts to files in its folder."""

    scale: str
    notebook: str
    manifest: Manifest = field(default_factory=Manifest)
    problem: str = ""
    caption: str = ""
    table: pd.DataFrame | None = None
    picture: Picture | None = None
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{self.scale}/{self.notebook}"

    @property
    def title(self) -> str:
        return self.manifest.title or self.notebook

    @property
    def facts(self) -> dict[str, str]:
        """What the report was made with. Facts that the manifest lacks are left out."""
        made = self.manifest
        facts = {name: made.provenance.get(name, "") for name in ("date", "code", "device")} | {
            "seeds": ", ".join(map(str, made.recipe.get("seeds", ()))),
            "notebook": made.notebook_file or "",
            "changed settings": "; ".join(f"{name} {json.dumps(value)}" for name, value in made.changed.items()),
            "compute, all stages": duration(made.compute_seconds / 60) if made.compute_seconds else "",
        }
        return {name: value for name, value in facts.items() if value}

    @property
    def command(self) -> str:
        """The command that writes this report."""
        scale, variant, _ = self.scale.partition(VARIANT)
        pairs = [f" -p {name} {shlex.quote(json.dumps(value))}" for name, value in self.manifest.changed.items()]
        settings = "".join(pairs) or (" -p NAME VALUE" if variant else "")
        file = self.manifest.notebook_file or f"notebooks/{self.notebook}.ipynb"
        return f"vmae-lab run {shlex.quote(file)} --scale {scale}{settings}"

    @property
    def missing(self) -> str:
        """A file that a run writes into the folder and that is not there. Empty if none is missing."""
        return next((text for text in (NOTEBOOK, PAGE) if text not in self.links), "")

    def url(self, path: str) -> str:
        return quote(f"{self.folder}/{path}")


def find_reports(folder: Path, order: Sequence[str]) -> list[Entry]:
    """Return all reports `<scale>/<notebook>/` below `folder`: scales as in `SCALES`, then others; notebooks as in `order`."""

    def position(name: str, names: Sequence[str]) -> int:
        return names.index(name) if name in names else len(names)

    def rank(entry: Entry) -> tuple:
        scale = entry.scale.partition(VARIANT)[0]
        return position(scale, SCALES), scale, entry.scale, position(entry.notebook, order), entry.notebook

    folders = [path for path in folder.glob("[!.]*/[!.]*/") if path.is_dir() and any(path.glob("[!.]*"))]
    return sorted(map(_read_entry, folders), key=rank)


def _read_entry(folder: Path) -> Entry:
    scale, notebook = folder.parent.name, folder.name
    caption, table, picture = "", None, None
    try:
        path = "manifest.json"
        manifest = Manifest.model_validate_json((folder / path).read_bytes())
        path = "README.md"
        page = (folder / path).read_text(encoding="utf-8")
        if name := manifest.main_table:
            path = f"tables/{name}.csv"
            table = pd.read_csv(folder / path, dtype=str, keep_default_na=False, encoding="utf-8")  # the text as it was printed
            caption = _find(rf"^(.*?)\s*\(\[csv\]\({re.escape(path)}\)", page)
        if name := manifest.main_figure:
            path = f"figures/{name}.png"
            with Image.open(folder / path) as image:
                picture = Picture(path, _find(rf"!\[(.*?)\]\({re.escape(path)}\)", page) or f"Main figure: {name}", *image.size)
    except FileNotFoundError:
        return Entry(scale, notebook, problem=f"{path} is missing")
    except (OSError, ValueError) as error:  # without the error's text, which may have paths of this machine
        return Entry(scale, notebook, problem=f"{path} cannot be read ({type(error).__name__})")
    files = {
        "page": "README.md", "manifest": "manifest.json", "results.csv": "tables/results.csv",
        NOTEBOOK: f"{notebook}.ipynb", PAGE: f"{notebook}.html",
    }  # fmt: skip
    links = {text: file for text, file in files.items() if (folder / file).is_file()}
    return Entry(scale, notebook, manifest, "", caption, table, picture, links)


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


def _in_git(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """Return the reports, and the links to files, that git does not ignore. Raises ImpossibleHere outside a checkout."""
    try:
        listed = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except (OSError, subprocess.CalledProcessError):
        raise ImpossibleHere(
            f"{folder} is not in a git checkout, so it is not known what git ignores: write the index without --for-git"
        ) from None
    files = set(listed.split("\0"))
    return [
        replace(entry, links={text: path for text, path in entry.links.items() if f"{entry.folder}/{path}" in files})
        for entry in entries
        if f"{entry.folder}/manifest.json" in files
    ]


# ---------------------------------------------------------------------------------------------------------------------------
# Writing the pages

TEXTS = {
    "lead": "All reports by scale: the question, the conclusions, the main table and figure, how the report was made, and a "
    "link to its page. `vmae-lab report` writes this index.",
    "log_text": "Experiments, including those that failed, are described in",
    "nothing": "There is no report yet. To write one, run `vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo`.",
}
SMOKE = "This scale takes seconds and only tests that everything runs: its results are meaningless."
CHANGED = "These runs have changed settings. The manifest of a report lists all settings of its run."


def write_index(folder: Path, order: Sequence[str], for_git: bool = False) -> Path:
    """Write README.md and index.html over all reports below `folder`. Returns the path of index.html.

    `order` are the names of the notebooks in the order of the page. With `for_git`, reports and files that git ignores (smoke,
    changed settings, executed notebooks) are left out, so that no link of a committed index is broken in a clone.
    Raises FileNotFoundError if the folder does not exist, and StorageError.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there are no reports in {folder}: `vmae-lab run NOTEBOOK` writes one")
    entries = find_reports(folder, order)
    if for_git:
        entries = _in_git(entries, folder)
    has_log = (folder / "LOG.md").is_file()
    write_text(folder / "README.md", _render("index.md.jinja", entries, has_log).rstrip("\n") + "\n")
    page = folder / "index.html"
    write_text(page, _render("index.html.jinja", entries, has_log))
    return page


def _render(template: str, entries: Sequence[Entry], has_log: bool) -> str:
    escape_html = template.startswith("index.html")
    jinja = Environment(
        loader=PackageLoader("vmae_lab.lab.report"), autoescape=escape_html, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters |= {"slug": _slug, "note": _note, "code": _code, "text": _text, "label": _label, "table": _table}
    scales = {scale: list(group) for scale, group in groupby(entries, key=lambda entry: entry.scale)}
    return jinja.get_template(template).render(scales=scales, log=has_log, **TEXTS)


def _note(scale: str) -> str:
    name, variant, _ = scale.partition(VARIANT)
    return " ".join([SMOKE] * (name == "smoke") + [CHANGED] * bool(variant))


def _slug(name: str) -> str:
    return re.sub(r"[^\w-]", "-", name.replace("/", "--"))


def _code(text: str) -> Markup:
    """Return the text of a file as HTML: escaped, with text between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _text(text: str) -> str:
    """Return the text of a file as Markdown: on one line, with its tags and links escaped."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split()).replace("](", r"]\(")


def _label(text: str) -> str:
    return _text(text).replace("[", r"\[").replace("]", r"\]")


def _table(table: pd.DataFrame) -> str:
    head, *rows = ([_text(cell).replace("|", r"\|") for cell in row] for row in [list(table), *table.to_numpy()])
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
