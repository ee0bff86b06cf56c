"""The command line: a thin face on the workbook. `vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo`."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from vmae_lab.cli import bench, data, detection, features, info, notebooks, stages
from vmae_lab.data.decoding import DecoderUnavailable, VideoError
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.video_lists import ListError
from vmae_lab.evaluation.features import FeatureError
from vmae_lab.lab.config import RecipeError
from vmae_lab.models.checkpoints import CheckpointError
from vmae_lab.training.checkpoint import FolderInUse, UnreadableCheckpoint
from vmae_lab.training.divergence import TrainingDiverged
from vmae_lab.training.preemption import Stopped
from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.atomic_io import StorageError
from vmae_lab.utils.distributed import ProcessLost

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # help and messages in plain text, also where they are piped into a file
    pretty_exceptions_enable=False,
    epilog="\b\nExamples:\n  vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo\n  vmae-lab COMMAND --help",
)
for room in (notebooks, stages, detection, features, bench, info):
    app.add_typer(room.commands)
app.add_typer(data.commands, name="data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `vmae-lab`. Returns the exit status; errors that a person can mend are one message, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_: f"vmae-lab: warning: {message}\n"  # without the line of code
    first = os.environ.get("RANK", "0") == "0"  # of a launcher's processes one speaks
    silent = nullcontext() if first else redirect_stdout(io.StringIO())
    try:
        with silent:
            app(arguments, prog_name="vmae-lab")
    except Stopped:  # saved where it stands; who asked for it waits for its own status
        raise
    except SystemExit as ended:  # how typer tells a status
        return int(ended.code or 0)
    except (TrainingDiverged, MissingVideos) as error:
        print(f"vmae-lab: {error}", file=sys.stderr)
        return 1
    except (
        RecipeError, ListError, VideoError, FeatureError, CheckpointError, UnreadableCheckpoint, FolderInUse,
        DecoderUnavailable, StorageError, ImpossibleHere, ProcessLost, FileNotFoundError,
    ) as error:  # fmt: skip
        print(f"vmae-lab: {error}", file=sys.stderr)
        return 2
    return 0


def _say_version(asked: bool) -> None:
    if asked:
        print(f"vmae-lab {version_of('vmae-lab')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and exit.")
    ] = False,
) -> None:
    """A research workbook of VideoMAE V2."""
