"""Texts avoid phrases and number formats that readers had to read twice."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
# Files and folders that are checked. Not here: reports/, whose old entries stay as they were written.
CHECKED = (
    "README.md", "CONTRIBUTING.md", "docs", "notebooks", "params", "vmae_lab", "benchmarks", ".ci", "Makefile",
    "pyproject.toml",
)  # fmt: skip
SUFFIXES = {".md", ".py", ".yaml", ".ipynb", ".jinja", ".sh", ".toml", ".css", ""}
# A number such as .5. Not: formats (`:.3f`, `:+.1f`, `:,.0f`, `%.6g`), names (`file.5`), regular expressions (`\.0`).
DECIMAL = r"""(?<![\w.:\])}'"`%\\])(?<!:[+,-])\.\d"""
STYLE_SHEETS = {".css", ".jinja"}  # here .5 is usual, and formatters of CSS write it
# Regular expression -> what to write instead.
BANNED = {
    r"told apart": "statistically significant, no significant difference",
    r"\btaken? up\b": "load, resume",
    r"\bgone back\b": "rolled back",
    r"\banew\b": "again",
    r"\bnowhere yet\b": "not measured yet",
    r"\bjudg(e|ed|es|ing)\b": "evaluate",
    r"\basked for\b": "requested",
    r"\bsuch as are\b": "pre-extracted, existing",
    r"\bbeside\b": "next to, and",
    r"\bmend(s|ed)?\b": "fix",
    r"\b(is|are|was|were) told\b": "report, detect",
    r"\bleft for you\b": "say what to do",
    r"\bof no use\b": "the number",
    r"\bas (it|they) stands?\b": "unchanged",
    r"\b(is|are|was|were) at hand\b": "available, not run yet",
    r"\b(numbers|results) mean nothing\b": "are meaningless",
    r"(?<!top-)\d %": "50%, without a space",
    r"\brebuilds?\b": "reconstruct",
    r"\bcubes?\b": "patch",
    r"\bblam(e|ed|es|ing)\b": "say what failed",
    DECIMAL: "0.5, not .5",
}


def checked_files() -> list[Path]:
    paths = [ROOT / name for name in CHECKED]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return sorted(file for file in files if file.is_file() and file.suffix in SUFFIXES and "__pycache__" not in file.parts)


def lines(path: Path) -> Iterator[str]:
    """The lines of a text, and of a notebook those of its cells without their outputs."""
    if path.suffix != ".ipynb":
        yield from path.read_text(encoding="utf-8").splitlines()
        return
    for cell in nbformat.read(path, as_version=4).cells:
        yield from cell.source.splitlines()


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_plain_language(path):
    found = [
        f"'{line.strip()}': instead of '{match[0]}' write: {instead}"
        for line in lines(path)
        for pattern, instead in BANNED.items()
        if not (pattern == DECIMAL and path.suffix in STYLE_SHEETS)
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]
    assert not found, "\n".join(found)


def test_patterns_find_what_they_ban():
    text = (
        "These can be told apart in 50 % of runs (.5), as they stand, beside others; numbers mean nothing. It rebuilds cubes."
    )
    assert sum(bool(re.search(pattern, text)) for pattern in BANNED) == 8
    allowed = (
        "{x:.3f}, {x:+.1f}, {x:,.0f}, %.6g, (\\.0*), file.5, 1.5, 0.5, 50%, column top-1 %; it stands here. Recommend takes up."
    )
    assert not [pattern for pattern in BANNED if re.search(pattern, allowed)]
