"""Entry point of the processes that `together.launch` starts: each completes the stage that a JSON file describes."""

import os
import select
import sys
from pathlib import Path

from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.training.settings import Compute
from vmae_lab.utils.atomic_io import read_json
from vmae_lab.utils.processes import end_when

GRACE_S = 5.0  # that a step and a checkpoint may take when the process that asked for them, or the launcher, is killed


def main(specification: Path) -> None:
    """Complete the stage that a file in its folder describes, with the settings in that file."""
    launcher = os.getppid()
    # The standard input is a pipe from the process that asked for the stage. Nothing is written to it, so it only ends.
    end_when(lambda: os.getppid() != launcher or bool(select.select([sys.stdin], [], [], 0)[0]), GRACE_S)
    given = read_json(specification)
    store = RunStore(specification.parent.parent)
    store.complete(Stage.from_plain(given["stage"]), Compute(**given["compute"]), given["progress"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
