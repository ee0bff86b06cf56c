"""Entry point of the processes that launcher.py starts: runs the stage described in a JSON file."""

import os
import select
import sys
from pathlib import Path

from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.training.settings import Compute
from vmae_lab.utils.atomic_io import read_json
from vmae_lab.utils.processes import end_when

GRACE_S = 5.0  # for a step and a checkpoint when the process that started the launcher, or the launcher itself, is killed


def main(specification: Path) -> None:
    """Run the stage that a file in its folder describes, with the compute settings in that file."""
    launcher = os.getppid()
    # The standard input is a pipe from the process that started the launcher. Nothing is written to it: readable means closed.
    end_when(lambda: os.getppid() != launcher or bool(select.select([sys.stdin], [], [], 0)[0]), GRACE_S)
    given = read_json(specification)
    store = RunStore(specification.parent.parent)
    store.complete(Stage.from_plain(given["stage"]), Compute(**given["compute"]), given["progress"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
