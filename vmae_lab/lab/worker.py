"""Entry point of the processes that launcher.py starts: runs the stage in a file that the launcher has written."""

import os
import pickle
import select
import sys
from pathlib import Path

from vmae_lab.lab.run_store import RunStore
from vmae_lab.utils.processes import end_when

GRACE_S = 5.0  # to finish a step and save if the launcher, or the process that started it, is killed


def main(specification: Path) -> None:
    """Run a stage with its compute settings. `specification`: the file with both, in the folder of the stage."""
    launcher = os.getppid()
    # The standard input is a pipe from the process that started the launcher, which writes nothing: readable means closed.
    end_when(lambda: os.getppid() != launcher or bool(select.select([sys.stdin], [], [], 0)[0]), GRACE_S)
    stage, compute, progress = pickle.loads(specification.read_bytes())
    RunStore(specification.parent.parent).complete(stage, compute, progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
