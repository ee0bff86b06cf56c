"""The command line, `vmae-lab`. A command imports what it needs when it runs, so `--help` and usage errors are fast."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from vmae_lab.cli import bench, data, detection, doctor, export, features, info, init, notebooks, predict, reconstruct, stages
from vmae_lab.utils.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text, which can be piped into a file
    pretty_exceptions_enable=False,
    epilog="\b\nExamples:\n  vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo\n  vmae-lab COMMAND --help",
)
for module in (init, notebooks, stages, detection, predict, reconstruct, features, export, bench, doctor, info):
    app.add_typer(module.commands)
app.add_typer(data.commands, name="data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `vmae-lab`. Returns the exit status. An error that the user can fix is printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that are not in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_: f"vmae-lab: warning: {message}\n"  # without the line of code
    main_process = os.environ.get("RANK", "0") == "0"  # the other processes of a launcher print nothing
    try:
        with nullcontext() if main_process else redirect_stdout(io.StringIO()):
            app(arguments, prog_name="vmae-lab")
    except SystemExit as ended:
        if type(ended) is not SystemExit:  # `Stopped`: a training that has saved a checkpoint has its own status
            raise
        return int(ended.code or 0)
    except (UserError, FileNotFoundError) as error:
        print(f"vmae-lab: {error}", file=sys.stderr)
        return getattr(error, "exit_status", 2)
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vmae-lab {version_of('vmae-lab')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Pre-train, evaluate and study VideoMAE V2."""
