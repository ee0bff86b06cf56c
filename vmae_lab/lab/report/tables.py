"""Write tables in three formats: CSV for programs, Markdown for pages, LaTeX for papers."""

import re
from pathlib import Path

import pandas as pd

from vmae_lab.lab.plots.text import markdown
from vmae_lab.utils.atomic_io import make_folder, write_text


def save_table(frame: pd.DataFrame, folder: Path, name: str) -> str:
    """Write `<name>.csv`, `.md` and `.tex` into `folder`. Returns the Markdown."""
    make_folder(folder)
    text = frame.fillna("").astype(str)
    page = _tabulated(text.map(markdown).rename(columns=markdown), "github")
    one_line = text.map(_one_line).rename(columns=_one_line)
    # After the `\\` of the previous line, LaTeX takes `[` or `*` as an argument of `\\`.
    paper = re.sub(r"(?m)^(\s*)([\[*])", r"\1{\2}", _tabulated(one_line, "latex_booktabs"))
    write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    write_text(folder / f"{name}.md", page + "\n")
    write_text(folder / f"{name}.tex", paper + "\n")
    return page


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _tabulated(frame: pd.DataFrame, form: str) -> str:
    return frame.to_markdown(index=False, tablefmt=form, disable_numparse=True)


def plus_minus(mean: float, spread: float, digits: int = 1) -> str:
    """Return `70.1 ± 0.4`, or only the mean if there is no spread (one seed)."""
    return f"{mean:.{digits}f}" if pd.isna(spread) else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def interval(middle: float, low: float, high: float, digits: int = 1) -> str:
    """Return `+1.2 [-0.3, +2.7]`, or `+1.2 [no interval]` if there is none (one seed, or no spread)."""
    if pd.isna(low):
        return f"{middle:+.{digits}f} [no interval]"
    return f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
