"""A diverged run stops, or rolls back and skips the bad samples, reproducibly."""

import warnings

import pytest
import torch

from vmae_lab.data.dataset import load_clips
from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.training.divergence import ENOUGH, RECENT, Divergence, TrainingDiverged, first_bad
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainTask


class Poisoned(PretrainTask):
    """A task in which the samples of some steps are bad: their loss is multiplied."""

    bad: dict[int, float | None]  # step in the stream of samples -> factor; None: finite loss, but gradients are NaN

    def batch(self, step, rows):
        return {**super().batch(step, rows), "position": torch.tensor([step])}

    def loss(self, model, batch, device):
        loss, factor = super().loss(model, batch, device), self.bad.get(int(batch["position"]), 1.0)
        return loss + (next(model.parameters()).sum() * 0).sqrt() if factor is None else loss * factor


@pytest.fixture(scope="module")
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": ["none"], "override": {"pretrain.steps": 12}})


@pytest.fixture(scope="module")
def run(home, recipe):
    """Train in a folder with bad samples."""
    clips = load_clips(recipe.data, "train")

    def go(folder, bad, compute=None, stop_at=None, **divergence):
        settings = recipe.pretrain.model_copy(update={"divergence": Divergence(**divergence)})
        task = Poisoned(recipe.model, recipe.mask, settings, recipe.data, clips, seed=1)
        task.bad = bad
        if stop_at is not None:
            inner, calls = task.loss, iter(range(1000))

            def stopping(*arguments):
                if next(calls) == stop_at:
                    raise KeyboardInterrupt
                return inner(*arguments)

            task.loss = stopping
        how = {"checkpoint_every": 4, "log_every": 1, "tensorboard": False, **(compute or {})}
        return train(task, folder, Compute(**how), progress=False)

    return go


def same(first, second) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    )


NAN = float("nan")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*back to step")
def test_a_roll_back_skips_the_bad_samples(run, tmp_path):
    trained = run(tmp_path, {7: NAN}, roll_back=3)
    assert [(event["step"], event["to"]) for event in trained.rolled_back] == [(7, 6)]
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 13))
    assert (
        "the loss is nan at step 7: rolled back to step 6, skipping the samples of 3 steps"
        in (tmp_path / "run.log").read_text()
    )
    # A roll-back because of step 6 skips the same samples.
    assert same(trained, run(tmp_path / "sixth", {6: NAN}, roll_back=3))
    assert not same(trained, run(tmp_path / "good", {}, roll_back=3))


TWICE_BAD = {7: NAN, 13: float("inf")}


@pytest.fixture(scope="module")
def rolled_back_twice(run, tmp_path_factory):
    """The loss is computed for steps 0 to 7 (bad), 6 to 10 (bad: step 13 in the stream), and 9 to 11."""
    with warnings.catch_warnings(action="ignore"):
        return run(tmp_path_factory.mktemp("whole"), TWICE_BAD, roll_back=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*back to step")
@pytest.mark.parametrize("stop_at", [2, 8, 9, 13])
@pytest.mark.parametrize("compute", [{}, {"checkpoint_every": 5, "log_every": 4, "workers": 1}])
def test_roll_backs_do_not_depend_on_interruptions(run, rolled_back_twice, tmp_path, stop_at, compute):
    assert [event["step"] for event in rolled_back_twice.rolled_back] == [7, 10]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, TWICE_BAD, compute, stop_at, roll_back=3)
    ended = run(tmp_path, TWICE_BAD, compute, roll_back=3)
    assert same(ended, rolled_back_twice)
    assert ended.rolled_back == rolled_back_twice.rolled_back


@pytest.mark.slow
def test_roll_back_checkpoints_do_not_change_the_result(run, tmp_path):
    """The first roll-back checkpoint is saved before the first step, when the optimizer has no moments yet."""
    assert same(run(tmp_path / "ready", {}, roll_back=3), run(tmp_path / "plain", {}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*back to step")
def test_a_roll_back_to_the_start_restores_everything(run, tmp_path):
    """Weights and moments: training continues from the same state after a bad first or second step."""
    back = run(tmp_path / "back", {1: NAN}, roll_back=3)
    assert [(event["step"], event["to"]) for event in back.rolled_back] == [(1, 0)]
    assert same(back, run(tmp_path / "first", {0: NAN}, roll_back=3))


@pytest.mark.filterwarnings("ignore:.*back to step")
def test_the_number_of_roll_backs_is_limited(run, tmp_path):
    everywhere = dict.fromkeys(range(5, 100), NAN)
    with pytest.raises(TrainingDiverged, match=r"nan at step 4 of 12 .*rolled back 2 times"):
        run(tmp_path, everywhere, roll_back=2, at_most=2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4


def test_non_finite_weights_are_never_saved(run, tmp_path):
    """A finite loss with NaN gradients in the last step: there is no next loss that would show it."""
    with pytest.raises(TrainingDiverged, match="weights are no longer finite at step 11"):
        run(tmp_path, {11: None}, compute={"checkpoint_every": 100})
    assert not (tmp_path / "checkpoint.pt").exists()


def test_detection_of_spikes():
    recent = []
    assert first_bad([1.0] * ENOUGH, recent, 3.0, 0) is None
    assert first_bad([2.9, 3.1], recent, 3.0, ENOUGH).step == ENOUGH + 1
    assert len(recent) == ENOUGH + 1  # the spike is not added
    assert first_bad([3.1], recent, None, 0) is None
    assert first_bad([1.0] * 2 * RECENT, recent, 3.0, 0) is None
    assert len(recent) == RECENT
    assert first_bad([100.0] * (ENOUGH - 1), [], 3.0, 0) is None  # the first losses of a run vary widely
    assert "over 3 times the median 1" in first_bad([9.0], recent, 3.0, 5).what


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*back to step")
def test_a_spike_is_rolled_back(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("vmae_lab.training.divergence.ENOUGH", 5)
    trained = run(tmp_path, {8: 50.0}, roll_back=4, spike=5.0)
    assert [(event["step"], event["to"]) for event in trained.rolled_back] == [(8, 8)]
    with pytest.raises(TrainingDiverged, match="times the"):
        run(tmp_path / "stops", {8: 50.0}, spike=5.0)
