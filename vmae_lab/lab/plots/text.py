"""Show names from users (classes, files, sources, arms) in figures and Markdown as plain text, never as markup."""

import re
from functools import lru_cache
from textwrap import fill

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

LONGEST = 48  # characters of a name in a figure
# Fonts for characters that the font of a figure lacks, if they are installed. Matplotlib cannot draw color fonts.
FALLBACK_FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS", "Noto Emoji", "Symbola",
)  # fmt: skip
NO_NAME = "(no name)"


def fallback_fonts() -> list[str]:
    """Return the installed fonts of FALLBACK_FONTS."""
    installed = set(fontManager.get_font_names())
    return [name for name in FALLBACK_FONTS if name in installed]


def short(name: object, most: int = LONGEST) -> str:
    """Return a name as one line of at most about `most` characters that matplotlib can draw.

    `$` starts no formula, a leading `_` hides no legend entry, a character that no font has becomes its code (`\\u4e2d`), and
    the middle of a long name is left out. Any other name stays unchanged.
    """
    text = " ".join(str(name).split()).replace(r"\$", "$") or NO_NAME
    drawable = _drawable(tuple(mpl.rcParams["font.family"]))
    text = "".join(c if c.isprintable() and ord(c) in drawable else _code(c) for c in text)
    if len(text) > most:
        head = (most - 1) // 2
        text = f"{text[:head]}…{text[head + 1 - most :]}"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def short_lines(name: object) -> str:
    """Return a drawable name (see `short`, for each line) with its line breaks."""
    return "\n".join(short(line) for line in str(name).splitlines() or [""])


def wrapped(name: object, most: int, width: int) -> str:
    """Return a drawable name (see `short`) on up to three lines."""
    lines = fill(short(name, most).replace(r"\$", "$"), width, max_lines=3, placeholder=" …").splitlines()
    return "\n".join(map(short, lines))


def markdown(name: object) -> str:
    """Return a name as one line of Markdown text, also for a cell of a table."""
    text = " ".join(str(name).split()).encode("utf-8", "backslashreplace").decode("utf-8")  # surrogates as their codes
    return re.sub(r"([\\`*|$~]|(?<!\w)_|_(?!\w)|(?<=\])\(|&(?=#?\w+;))", r"\\\1", text).replace("<", "&lt;")


@lru_cache
def _drawable(families: tuple[str, ...]) -> frozenset[int]:
    """Return the code points that at least one of the fonts can draw."""
    found: set[int] = set()
    for family in families:
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:  # not installed
            continue
        found |= set(get_font(path).get_charmap())
    return frozenset(found)


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
