"""`vmae-lab bench`: list or run the scripts of benchmarks/."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from vmae_lab.utils.paths import how_to_find_it, project_root

commands = typer.Typer()


@commands.command(
    context_settings={"allow_interspersed_args": False},  # options after the name are the script's
    epilog="\b\nExamples:\n  vmae-lab bench\n  vmae-lab bench paper_costs",
)
def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A script of benchmarks/. Without it, all are listed.")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGUMENT", help="Arguments of the script.")] = None,
) -> None:
    """List the benchmarks, or run one and exit with its status."""
    folder = project_root() / "benchmarks"
    scripts = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if not scripts:
        raise FileNotFoundError(
            f"there are no benchmarks in {folder}; only a clone of the repository has them{how_to_find_it()}"
        )
    if name is None:
        print("\n".join(f"{script:<{max(map(len, scripts))}}  {_first_line(path)}" for script, path in scripts.items()))
        return
    if name not in scripts:
        raise FileNotFoundError(f"there is no benchmark {name} in {folder}; choose one of {', '.join(scripts)}")
    status = subprocess.run([sys.executable, scripts[name], *(arguments or ())], check=False).returncode
    raise typer.Exit(status if status >= 0 else 128 - status)  # a signal, as shells report it


def _first_line(script: Path) -> str:
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split("\n")[0]
