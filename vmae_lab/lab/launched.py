"""What `together` starts in several processes: one stage of a store, by the file that specifies it."""

import sys
from pathlib import Path

from vmae_lab.files import read_json
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.training.settings import Compute


def main(specification: Path) -> None:
    """Complete the stage that a file in its folder says, as it says."""
    given = read_json(specification)
    store = RunStore(specification.parent.parent)
    store.complete(Stage.from_plain(given["stage"]), Compute(**given["compute"]), given["progress"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
