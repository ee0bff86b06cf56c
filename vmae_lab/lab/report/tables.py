"""Tables in three forms from one frame: csv for machines, markdown for pages, tex for papers."""

import re
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from vmae_lab.lab.plots.labels import markdown
from vmae_lab.utils.atomic_io import make_folder, write_text


def save_table(frame: pd.DataFrame, folder: Path, name: str) -> str:
    """Write `<name>.csv`, `.md` and `.tex` below `folder`; returns the markdown."""
    make_folder(folder)
    write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    rows = [list(frame.columns), *frame.fillna("").astype(str).to_numpy().tolist()]
    page = _table([[markdown(cell) for cell in row] for row in rows], "github")
    paper = _table([[" ".join(str(cell).split()) for cell in row] for row in rows], "latex_booktabs")
    # After the `\\\\` of the line above, LaTeX reads a `[` as a length and a `*` as its own.
    paper = re.sub(r"(?m)^(\s*)([\[*])", r"\1{\2}", paper)
    write_text(folder / f"{name}.md", page + "\n")
    write_text(folder / f"{name}.tex", paper + "\n")
    return page


def _table(rows: list[list[str]], form: str) -> str:
    return tabulate(rows[1:], headers=rows[0], tablefmt=form, disable_numparse=True)


def plus_minus(mean: float, spread: float, digits: int = 1) -> str:
    """`70.1 ± 0.4`, or the mean alone if there is no spread (one seed)."""
    return f"{mean:.{digits}f}" if pd.isna(spread) else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def interval(middle: float, low: float, high: float, digits: int = 1) -> str:
    """`+1.2 [-0.3, +2.7]`, or `+1.2 [no interval]` if there is none, as with one seed."""
    if pd.isna(low):
        return f"{middle:+.{digits}f} [no interval]"
    return f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
