"""Several stages at a time (`compute.jobs`): what is printed if one of them fails."""

import time

import pytest

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Job, Stage, pretrain_stage
from vmae_lab.training.checkpoint import Checkpoints
from vmae_lab.training.metrics import latest_step


class FailingStage(Stage):
    """Fails when another stage of the store has trained a step."""

    kind = "failing"

    other: str

    def run(self, job: Job) -> dict:
        deadline = time.monotonic() + 900
        while latest_step(job.folder.parent / self.other) == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        raise RuntimeError("on purpose")


@pytest.mark.slow
def test_the_error_of_a_failed_job_is_the_only_message(smoke, home, tmp_path, capfd, warm):
    """The other job gets a stop request and saves, but the user did not ask for that."""
    changes = {"compute.jobs": 2, "compute.log_every": 1, "compute.checkpoint_every": 10**6, "pretrain.steps": 10**5}
    recipe = build_recipe({**smoke, "arms": ["one"], "override": changes})
    store, training = RunStore(tmp_path), pretrain_stage(recipe, 0)
    with pytest.raises(RuntimeError, match="on purpose"):
        store.complete_all([training, FailingStage(other=training.key)], recipe.compute)
    assert 0 < Checkpoints(store.folder(training)).load()["step"] < 10**5
    shown = capfd.readouterr()
    assert "saved after step" not in shown.out + shown.err
