"""Sphinx extension that reads docstrings as plain text with `code`, and not as reStructuredText.

Docstrings are written for readers of the source. In reStructuredText, a `*` or an indented line would be markup.
"""

import re

from sphinx.application import Sphinx

CODE = re.compile(r"``?([^`]+)``?")


def plain(text: str) -> str:
    """The reStructuredText that shows a docstring as it was written: code as code, indented lines as blocks."""
    pieces, end = [], 0
    for code in CODE.finditer(text):
        pieces += [escaped(text[end : code.start()]), f"``{' '.join(code[1].split())}``\\ "]
        end = code.end()
    lines: list[str] = []
    for line in "".join([*pieces, escaped(text[end:])]).splitlines():
        if lines and line.strip() and lines[-1].strip() and indent(line) != indent(lines[-1]):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def escaped(text: str) -> str:
    return re.sub(r"([*|\\`_])", r"\\\1", text)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Replace the lines of a docstring; a handler of the event `autodoc-process-docstring`."""
    lines[:] = plain("\n".join(lines)).splitlines()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
