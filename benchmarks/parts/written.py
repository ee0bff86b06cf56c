"""Write the table of a benchmark, as csv and as a page with the device and versions."""

from pathlib import Path

import pandas as pd
import torch

from vmae_lab.lab.report.provenance import provenance
from vmae_lab.utils.atomic_io import make_folder, write_text


def machine_words() -> str:
    """Return device and versions of a measurement, as text."""
    made = provenance()
    return (
        f"{made['device']}; torch {made['packages']['torch']}, timm {made['packages']['timm']}; {made['date']}, {made['code']}"
    )


def write_benchmark(folder: Path | None, name: str, title: str, words: str, table: pd.DataFrame, more: str = "") -> None:
    """Print a table. If a folder is given, write it to `<folder>/<name>-<cpu or gpu>.csv` and `.md`."""
    name = f"{name}-{'gpu' if torch.cuda.is_available() else 'cpu'}"
    page = f"# {title}\n\n{words}\n\n{table.to_markdown(index=False, floatfmt='.4g')}\n{more}"
    print(page)
    if folder:
        make_folder(folder)
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
        write_text(folder / f"{name}.md", page)
