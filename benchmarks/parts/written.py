"""How a benchmark's table is kept: as csv, and as a page that says what it was measured on."""

from pathlib import Path

import pandas as pd
import torch

from vmae_lab.lab.report.provenance import provenance
from vmae_lab.utils.atomic_io import make_folder, write_text


def machine_words() -> str:
    """The device and the versions that a table was made on and with."""
    made = provenance()
    return (
        f"{made['device']}; torch {made['packages']['torch']}, timm {made['packages']['timm']}; {made['date']}, {made['code']}"
    )


def write_benchmark(folder: Path | None, name: str, title: str, words: str, table: pd.DataFrame, more: str = "") -> None:
    """Print a table, and write it to `<folder>/<name>-<cpu or gpu>.csv` and `.md` where a folder is given."""
    name = f"{name}-{'gpu' if torch.cuda.is_available() else 'cpu'}"
    page = f"# {title}\n\n{words}\n\n{table.to_markdown(index=False, floatfmt='.4g')}\n{more}"
    print(page)
    if folder:
        make_folder(folder)
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
        write_text(folder / f"{name}.md", page)
