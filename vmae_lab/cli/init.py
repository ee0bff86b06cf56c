"""`vmae-lab init`: copy the notebooks and their parameters into a folder, to work there without a checkout."""

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from vmae_lab.utils.atomic_io import make_folder
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import UserError, first_of

commands = typer.Typer()
# In a checkout, its folders are links to those of the repository. A wheel has copies of them (pyproject.toml, package-data).
SOURCE = Path(__file__).parents[1] / "project"
FILES = ("params/**/*.yaml", "notebooks/*.ipynb", ".jupyter/**/*.json")


@commands.command(epilog="\b\nExamples:\n  vmae-lab init my_lab\n  vmae-lab init --force")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder to write to. It is created if it does not exist.")
    ] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Copy params/ and notebooks/ into a folder, so that notebooks run there."""
    files = sorted(path.relative_to(SOURCE) for pattern in FILES for path in SOURCE.glob(pattern))
    existing = [path.as_posix() for path in files if (folder / path).exists()]
    if existing and not force:
        raise UserError(f"{folder} already has {first_of(existing)}: choose another folder, or add --force to overwrite them")
    for path in files:
        make_folder((folder / path).parent)
        shutil.copyfile(SOURCE / path, folder / path)
    print(
        f"copied {counted(len(files), 'file')} to {folder.resolve()}. To work there:\n"
        f"  cd {shlex.quote(str(folder))}\n"
        "  vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale smoke   # tests that everything runs, about a minute\n"
        "  JUPYTER_CONFIG_PATH=.jupyter jupyter lab                           # start with notebooks/00_dual_masking_tour\n"
        "Notebooks need JupyterLab and papermill: pip install 'vmae-lab[lab]'. Results are written to runs/ and reports/."
    )
