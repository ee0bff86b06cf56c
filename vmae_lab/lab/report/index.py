"""The index of results: every report below reports/ on one page, as README.md and as an index.html that needs no server."""

import re
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from vmae_lab.lab.report.entries import Entry, find_reports, kept_by_git, split_variant
from vmae_lab.utils.atomic_io import write_text

LEAD = (
    "Every notebook that was run, at every scale: what it asks and finds, its main table and figure, what made them, and "
    "the way to its page. Written by `make reports`, not by hand."
)
LOG = "What was tried, and what failed, is told in"
NOTHING = "There is no report yet: `vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo` writes one."
SMOKE = "This scale takes seconds and only shows that everything runs: its numbers mean nothing."
TRIALS = "Runs with changed settings; each manifest holds all settings of its run."
STYLE = """
:root { --text: #1d2329; --soft: #57606a; --back: #ffffff; --line: #d5dbe1; --link: #0b5cad; --head: #f3f5f7; --warn: #9a3412; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #a3adb8; --back: #14181d; --line: #343c45; --link: #7db8f5; --head: #1e242b;
    --warn: #f5a97f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1.25rem 4rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
a { color: var(--link); }
h1, h2, h3 { line-height: 1.25; }
h1 { margin: 0; }
h2 { margin: 0 0 1rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line); }
h3 { margin: 0; font-size: 1.3rem; }
header p, .question, .reading, .caption { max-width: 75ch; }
nav { margin-bottom: 2.5rem; }
.reading { padding-left: 1.4rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav ul ul { padding-left: .9rem; }
nav li { margin: .3rem 0; }
nav h2 { font-size: 1rem; margin-bottom: .5rem; }
section { margin-bottom: 3rem; }
article { margin-bottom: 2.5rem; }
.question { margin: .3rem 0 .6rem; font-size: 1.05rem; }
.note, .broken { border-left: 4px solid var(--warn); padding: .1rem 0 .1rem .8rem; }
.picture a { display: block; width: fit-content; max-width: min(100%, 46rem); padding: .75rem; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; }
.picture img { display: block; width: auto; height: auto; max-width: 100%; max-height: 40rem; }
.caption, dl, .links { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { min-width: 7.5rem; white-space: normal; vertical-align: bottom; background: var(--head); }
tbody th { font-weight: 600; background: var(--back); }
thead th:first-child, tbody th { position: sticky; left: 0; }
tbody tr:last-child > * { border-bottom: 0; }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: .8rem 0 .3rem; }
dl div { display: flex; gap: .4rem; }
dt::after { content: ":"; }
dd { margin: 0; color: var(--text); }
.links { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: 0; padding: 0; list-style: none; }
code { font: .9em ui-monospace, monospace; background: var(--head); padding: .05em .3em; border-radius: 3px; }
@media (max-width: 40rem) { tbody th { min-width: 7rem; white-space: normal; } }
@media (min-width: 64rem) {
  body { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 1.5rem 2.5rem; }
  header { grid-column: 1 / -1; }
  nav { position: sticky; top: 1rem; align-self: start; max-height: calc(100vh - 2rem); overflow-y: auto; }
}
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Results of vmae_lab</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>Results</h1>
<p>{lead}</p>
</header>
{contents}
<main>
{body}
</main>
</body>
</html>
"""


def write_index(folder: Path, order: Sequence[str], for_git: bool = False) -> Path:
    """Write README.md and index.html over all reports below `folder`; returns the path of index.html.

    `order`: names of notebooks, first to last. `for_git` leaves out what git ignores (smoke, variants, executed notebooks), so
    that no link of a committed index is dead in a clone. Raises FileNotFoundError where there is no such folder, StorageError.
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
    """The index as a page for a repository's own viewer; `log` says that LOG.md stands beside it."""
    parts = ["# Results", LEAD]
    if log:
        parts.append(f"{LOG} [LOG.md](LOG.md).")
    if not entries:
        parts.append(NOTHING)
    for scale, group in _by_scale(entries).items():
        parts += [f"## Scale `{_md(scale)}`", *filter(None, [_note(scale)])]
        for entry in group:
            parts += _markdown_entry(entry)
    return "\n\n".join(parts) + "\n"


def _markdown_entry(entry: Entry) -> list[str]:
    if entry.problem:
        return [f"**{_md(entry.folder)}** cannot be shown: {_md(entry.problem)}. `{_md(entry.command)}` writes it."]
    parts = [f"### [{_md_label(entry.title)}]({entry.url('README.md')})", _md(entry.question)]
    parts.append("\n".join(f"- {_md(sentence)}" for sentence in entry.conclusions))
    if entry.picture:
        parts.append(f"![{_md_label(entry.picture.words)}]({entry.url(entry.picture.path)})")
    parts.append(_md(entry.caption))
    if entry.table is not None:
        cells = [[_md_cell(cell) for cell in row] for row in entry.table.to_numpy()]
        parts.append(tabulate(cells, [_md_cell(name) for name in entry.table], tablefmt="github", disable_numparse=True))
    parts.append("; ".join(f"{name}: {_md(value)}" for name, value in entry.facts.items()))
    links = " · ".join(f"[{words}]({entry.url(path)})" for words, path in entry.links.items())
    parts.append(links + (f" · {entry.absent}: `{_md(entry.command)}` writes it" if entry.absent else ""))
    return [part for part in parts if part]


def to_html(entries: Sequence[Entry], log: bool = False) -> str:
    """The index as one page that stands on its own: no scripts, nothing from outside, pictures by relative paths."""
    contents, sections = [], []
    for scale, group in _by_scale(entries).items():
        name, note = escape(scale), _note(scale)
        items = "".join(f'<li><a href="#{_anchor(entry)}">{_html(entry.title or entry.notebook)}</a></li>' for entry in group)
        contents.append(f'<li><a href="#{_slug(scale)}">{name}</a>\n<ul>{items}</ul></li>')
        articles = "\n".join(map(_html_entry, group))
        notes = f'<p class="note">{_html(note)}</p>\n' if note else ""
        sections.append(f'<section id="{_slug(scale)}">\n<h2>Scale <code>{name}</code></h2>\n{notes}{articles}\n</section>')
    more = f' {LOG} <a href="LOG.md">LOG.md</a>.' if log else ""
    listed = f'<nav aria-label="Contents">\n<h2>Contents</h2>\n<ul>{"".join(contents)}</ul>\n</nav>' if entries else ""
    return PAGE.format(
        style=STYLE, lead=_html(LEAD) + more, contents=listed, body="\n".join(sections) or f"<p>{_html(NOTHING)}</p>"
    )


def _html_entry(entry: Entry) -> str:
    if entry.problem:
        return (
            f'<article id="{_anchor(entry)}" class="broken"><p><strong>{escape(entry.folder)}</strong> cannot be shown: '
            f"{_html(entry.problem)}. <code>{escape(entry.command)}</code> writes it.</p></article>"
        )
    parts = [f'<h3><a href="{entry.url("README.md")}">{_html(entry.title)}</a></h3>']
    if entry.question:
        parts.append(f'<p class="question">{_html(entry.question)}</p>')
    if entry.conclusions:
        items = "".join(f"<li>{_html(sentence)}</li>" for sentence in entry.conclusions)
        parts.append(f'<ul class="reading">{items}</ul>')
    if entry.picture:
        path, words, width, height = entry.picture
        parts.append(
            f'<p class="picture"><a href="{entry.url(path)}"><img src="{entry.url(path)}" alt="{escape(words)}" '
            f'width="{width}" height="{height}" loading="lazy"></a></p>'
        )
    if entry.table is not None:
        parts.append(f'<p class="caption">{_html(entry.caption)}</p>' if entry.caption else "")
        label = escape(f"Main table of {entry.folder}")
        parts.append(f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{_html_table(entry.table)}</div>')
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in entry.facts.items())
    parts.append(f"<dl>{facts}</dl>" if facts else "")
    links = "".join(f'<li><a href="{entry.url(path)}">{escape(words)}</a></li>' for words, path in entry.links.items())
    absent = f"<li>{entry.absent}: <code>{escape(entry.command)}</code> writes it</li>" if entry.absent else ""
    parts.append(f'<ul class="links">{links}{absent}</ul>')
    return f'<article id="{_anchor(entry)}">\n' + "\n".join(filter(None, parts)) + "\n</article>"


def _html_table(table: pd.DataFrame) -> str:
    head = "".join(f'<th scope="col">{_html(name)}</th>' for name in table)
    rows = (
        f'<tr><th scope="row">{_html(first)}</th>' + "".join(f"<td>{_html(cell)}</td>" for cell in cells) + "</tr>"
        for first, *cells in table.to_numpy()
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"


def _by_scale(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    return {scale: list(group) for scale, group in groupby(entries, key=lambda entry: entry.scale)}


def _note(scale: str) -> str:
    name, variant = split_variant(scale)
    return " ".join([SMOKE] * (name == "smoke") + [TRIALS] * variant)


def _slug(name: str) -> str:
    return re.sub(r"[^\w-]", "-", name)


def _anchor(entry: Entry) -> str:
    return f"{_slug(entry.scale)}--{_slug(entry.notebook)}"


def _html(text: str) -> str:
    """Text from a file, safe in a page; what stands between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _md(text: str) -> str:
    """Text from a file, safe in a page of markdown: on one line, with no tags and no links of its own."""
    return " ".join(escape(text, quote=False).split()).replace("](", r"]\(")


def _md_label(text: str) -> str:
    return _md(text).replace("[", r"\[").replace("]", r"\]")


def _md_cell(text: str) -> str:
    return _md(text).replace("|", r"\|")
