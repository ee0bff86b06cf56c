"""The index of results: every report below reports/ on one page, as README.md and as an index.html that needs no server."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from tabulate import tabulate

from vmae_lab.lab.estimate import duration
from vmae_lab.lab.report.folder import VARIANT
from vmae_lab.utils.atomic_io import read_json, write_text

SCALES = ("paper", "gpu", "study", "demo", "own", "smoke")
NOTEBOOK, PAGE = "executed notebook", "executed notebook as a page"  # links to files that git ignores
Read = TypeVar("Read")


class Picture(NamedTuple):
    """A figure of a report: its path from the report's folder, its words, its size in pixels."""

    path: str
    words: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Entry:
    """What the index says of a report. `problem`: why it cannot be shown; `links`: words -> path of a file in its folder.

    `file`: the notebook's path, if the manifest tells it; `changed`: settings that differ from the scale's.
    """

    scale: str
    notebook: str
    file: str = ""
    changed: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    title: str = ""
    question: str = ""
    conclusions: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    caption: str = ""
    table: pd.DataFrame | None = None
    picture: Picture | None = None
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{self.scale}/{self.notebook}"

    @property
    def command(self) -> str:
        """The command that makes this report, as far as its name and its manifest tell."""
        scale, variant = split_variant(self.scale)
        pairs = [f" -p {name} {shlex.quote(json.dumps(value))}" for name, value in self.changed.items()]
        settings = "".join(pairs) or " -p NAME VALUE" * variant
        file = self.file or f"notebooks/{self.notebook}.ipynb"
        return f"vmae-lab run {shlex.quote(file)} --scale {scale}{settings}"

    @property
    def absent(self) -> str:
        """What a run would write beside the report and is not there to link to."""
        return next((words for words in (NOTEBOOK, PAGE) if words not in self.links), "")

    def url(self, path: str) -> str:
        return quote(f"{self.folder}/{path}")


class _Broken(ValueError):
    """A report that cannot be shown; says which of its files is at fault, without the machine's own paths."""


def find_reports(folder: Path, order: Sequence[str]) -> list[Entry]:
    """Every `<scale>/<notebook>/` below `folder`: scales from paper to smoke, then others; notebooks as in `order`."""
    found = [
        _entry(place)
        for place in folder.glob("[!.]*/[!.]*/")
        if place.is_dir() and any(not file.name.startswith(".") for file in place.iterdir())
    ]

    def rank(entry: Entry) -> tuple:
        scale, variant = split_variant(entry.scale)
        name = entry.scale if variant else ""
        return (_place(scale, SCALES), scale, name, _place(entry.notebook, order), entry.notebook)

    return sorted(found, key=rank)


def kept_by_git(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """The entries as a clone will have them: without reports, and without links to files, that git ignores."""
    kept = [entry for entry in entries if (folder / entry.folder / "manifest.json").is_file()]
    paths = [f"{entry.folder}/{path}" for entry in kept for path in ("manifest.json", *entry.links.values())]
    done = subprocess.run(
        ["git", "check-ignore", "-z", "--stdin"],
        cwd=folder,
        input="\0".join(paths),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode > 1:
        raise FileNotFoundError(
            f"{folder} is in no git checkout, so nothing says what to leave out: write the index without --for-git"
        )
    ignored = set(done.stdout.split("\0"))
    return [
        replace(entry, links={name: path for name, path in entry.links.items() if f"{entry.folder}/{path}" not in ignored})
        for entry in kept
        if f"{entry.folder}/manifest.json" not in ignored
    ]


def split_variant(scale: str) -> tuple[str, bool]:
    """A scale without what marks a folder of changed settings, and whether it has that."""
    name, mark, _ = scale.partition(VARIANT)
    return name, bool(mark)


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _entry(folder: Path) -> Entry:
    scale, notebook = folder.parent.name, folder.name
    try:
        return _whole_entry(folder, scale, notebook)
    except _Broken as error:
        return Entry(scale, notebook, problem=str(error))


def _whole_entry(folder: Path, scale: str, notebook: str) -> Entry:
    if not (folder / "manifest.json").exists():
        raise _Broken("manifest.json is missing, so no run has finished here")
    manifest = _read(folder, "manifest.json", read_json)
    if not isinstance(manifest, dict):
        raise _Broken("manifest.json holds no report")
    page = _read(folder, "README.md", lambda path: path.read_text(encoding="utf-8"))
    heading = re.search(r"^# (.+)$", page, re.MULTILINE)
    table = _words(manifest.get("main_table")) or _first(r"\]\(tables/(?!results\.csv)([^/)]+)\.csv\)", page)
    conclusions = manifest.get("conclusions")
    known = {
        "page": "README.md", "manifest": "manifest.json", "results.csv": "tables/results.csv",
        NOTEBOOK: f"{notebook}.ipynb", PAGE: f"{notebook}.html",
    }  # fmt: skip
    changed = manifest.get("changed")
    return Entry(
        scale,
        notebook,
        file=_words(manifest.get("notebook_file")),
        changed=changed if isinstance(changed, dict) else {},
        title=_words(manifest.get("title")) or (heading[1].strip() if heading else notebook),
        question=_words(manifest.get("question")),
        conclusions=tuple(filter(None, map(_words, conclusions))) if isinstance(conclusions, list) else (),
        facts=_facts(manifest),
        caption=_first(rf"^(.*?)\s*\(\[csv\]\(tables/{re.escape(table)}\.csv\)", page) if table else "",
        table=_read(folder, f"tables/{table}.csv", _read_cells) if table else None,
        picture=_picture(folder, manifest, page),
        links={words: path for words, path in known.items() if (folder / path).is_file()},
    )


def _facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What made a report, as far as its manifest says."""

    def part(name: str) -> Mapping[str, Any]:
        return value if isinstance(value := manifest.get(name), dict) else {}

    seeds, seconds = part("recipe").get("seeds"), manifest.get("compute_seconds")
    facts = {name: _words(part("provenance").get(name)) for name in ("date", "code", "device")}
    facts["seeds"] = ", ".join(map(str, seeds)) if isinstance(seeds, list) else ""
    facts["notebook"] = _words(manifest.get("notebook_file"))
    changed = "; ".join(f"{name} {json.dumps(value)}" for name, value in part("changed").items())
    facts["changed settings"] = changed
    facts["compute, all stages"] = duration(seconds / 60) if isinstance(seconds, int | float) else ""
    return {name: value for name, value in facts.items() if value}


def _picture(folder: Path, manifest: Mapping[str, Any], page: str) -> Picture | None:
    name = _words(manifest.get("main_figure")) or _first(r"\]\(figures/([^/)]+)\.png\)", page)
    if not name:
        return None
    path = f"figures/{name}.png"
    width, height = _read(folder, path, _png_size)
    return Picture(path, _first(rf"!\[(.*?)\]\({re.escape(path)}\)", page) or f"Main figure: {name}", width, height)


def _read(folder: Path, path: str, reader: Callable[[Path], Read]) -> Read:
    """What `reader` makes of a file of a report. Raises _Broken."""
    try:
        return reader(folder / path)
    except FileNotFoundError:
        raise _Broken(f"{path} is missing") from None
    except OSError as error:
        raise _Broken(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _Broken(f"{path} cannot be read ({' '.join(str(error).split())})") from error


def _read_cells(path: Path) -> pd.DataFrame:
    """A table as it was printed: every cell is text, an empty one stays empty."""
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the first bytes: a page that knows them does not jump while pictures load."""
    with open(path, "rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("not a png")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _words(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


# ---------------------------------------------------------------------------------------------------------------------------
# The pages

TEXTS = {
    "lead": "Every notebook that was run, at every scale: its question and conclusions, its main table and figure, how it was "
    "made, and a link to its page. Written by `make reports`, not by hand.",
    "log_text": "What was tried, and what failed, is in",
    "nothing": "There is no report yet: `vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo` writes one.",
}
SMOKE = "This scale takes seconds and only shows that everything runs: its numbers mean nothing."
TRIALS = "Runs with changed settings; each manifest holds all settings of its run."


def write_index(folder: Path, order: Sequence[str], for_git: bool = False) -> Path:
    """Write README.md and index.html over all reports below `folder`. Returns the path of index.html.

    `order`: names of notebooks, first to last. `for_git` leaves out what git ignores (smoke, variants, executed notebooks), so
    that no link of a committed index is dead in a clone. Raises FileNotFoundError if there is no such folder, StorageError.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there are no reports in {folder}: `vmae-lab run NOTEBOOK` writes one")
    entries = find_reports(folder, order)
    if for_git:
        entries = kept_by_git(entries, folder)
    log = (folder / "LOG.md").is_file()
    write_text(folder / "README.md", to_markdown(entries, log))
    page = folder / "index.html"
    write_text(page, to_html(entries, log))
    return page


def to_markdown(entries: Sequence[Entry], log: bool = False) -> str:
    """The index as a page for a repository's own viewer. `log`: whether to link to LOG.md."""
    return _rendered("index.md.jinja", entries, log).rstrip("\n") + "\n"


def to_html(entries: Sequence[Entry], log: bool = False) -> str:
    """The index as one page without scripts or anything from outside. `log`: as in `to_markdown`."""
    return _rendered("index.html.jinja", entries, log)


def _rendered(template: str, entries: Sequence[Entry], log: bool) -> str:
    html = template.startswith("index.html")
    jinja = Environment(loader=PackageLoader("vmae_lab.lab.report"), autoescape=html, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {
        "slug": _slug, "anchor": _anchor, "note": _note, "code": _code, "text": _text, "label": _label, "table": _table
    }  # fmt: skip
    scales = {scale: list(group) for scale, group in groupby(entries, key=lambda entry: entry.scale)}
    return jinja.get_template(template).render(scales=scales, log=log, **TEXTS)


def _note(scale: str) -> str:
    name, variant = split_variant(scale)
    return " ".join([SMOKE] * (name == "smoke") + [TRIALS] * variant)


def _slug(name: str) -> str:
    return re.sub(r"[^\w-]", "-", name)


def _anchor(entry: Entry) -> str:
    return f"{_slug(entry.scale)}--{_slug(entry.notebook)}"


def _code(text: str) -> Markup:
    """Text from a file, safe in HTML. Text between backticks becomes code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _text(text: str) -> str:
    """Text from a file, safe in markdown: on one line, without tags and links of its own."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split()).replace("](", r"]\(")


def _label(text: str) -> str:
    return _text(text).replace("[", r"\[").replace("]", r"\]")


def _table(table: pd.DataFrame) -> str:
    head, *rows = ([_text(cell).replace("|", r"\|") for cell in row] for row in [list(table), *table.to_numpy()])
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
