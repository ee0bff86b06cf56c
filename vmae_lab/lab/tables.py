"""Tables in three forms from one frame: csv for machines, markdown for pages, tex for papers."""

from pathlib import Path

import pandas as pd
from tabulate import tabulate

from vmae_lab.files import make_folder, write_text


def save_table(frame: pd.DataFrame, folder: Path, name: str) -> str:
    """Write `<name>.csv`, `.md` and `.tex` below `folder`; returns the markdown."""
    make_folder(folder)
    write_text(folder / f"{name}.csv", frame.to_csv(index=False))
    cells = frame.fillna("").astype(str).to_numpy().tolist()
    markdown = tabulate(cells, headers=list(frame.columns), tablefmt="github", disable_numparse=True)
    write_text(folder / f"{name}.md", markdown + "\n")
    write_text(
        folder / f"{name}.tex",
        tabulate(cells, headers=list(frame.columns), tablefmt="latex_booktabs", disable_numparse=True) + "\n",
    )
    return markdown


def plus_minus(mean: float, spread: float, digits: int = 1) -> str:
    """`70.1 ± 0.4`, or the mean alone where there is no spread (one seed)."""
    return f"{mean:.{digits}f}" if pd.isna(spread) else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def interval(middle: float, low: float, high: float, digits: int = 1) -> str:
    """`+1.2 [-0.3, +2.7]`; an interval that one seed cannot give is said to be missing."""
    if pd.isna(low):
        return f"{middle:+.{digits}f} [one seed]"
    return f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
