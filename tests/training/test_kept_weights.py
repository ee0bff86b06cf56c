"""Weights kept during a run: those of their steps, also after a kill or a roll-back, without changing the result."""

import pytest
import torch

from vmae_lab.data.dataset import load_clips
from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.models.checkpoints import load_weights, read_weights
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.checkpoint import kept_file
from vmae_lab.training.divergence import Divergence, TrainingDiverged
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask

pytestmark = pytest.mark.slow  # all share runs that take half a minute
KEEP, NAN = (4, 8), float("nan")


class Disturbed(PretrainTask):
    """A task that is interrupted at one call of the loss, and that has bad samples at some steps of the stream."""

    def __init__(self, *given, bad=(), stop_at=None):
        super().__init__(*given)
        self.bad, self.stop_at, self.calls = bad, stop_at, 0

    def batch(self, step, rows):
        return {**super().batch(step, rows), "position": torch.tensor([step])}

    def loss(self, model, batch, device):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return super().loss(model, batch, device) * (NAN if int(batch["position"]) in self.bad else 1.0)


@pytest.fixture(scope="module")
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": ["none"], "override": {"pretrain.steps": 12}})


@pytest.fixture(scope="module")
def run(home, recipe):
    clips = load_clips(recipe.data, "train")

    def go(folder, keep=KEEP, every=3, bad=(), stop_at=None, ema=None, **divergence):
        settings = recipe.pretrain.model_copy(update={"divergence": Divergence(**divergence), "ema": ema})
        task = Disturbed(recipe.model, recipe.mask, settings, recipe.data, clips, 1, bad=bad, stop_at=stop_at)
        compute = Compute(checkpoint_every=every, log_every=5, tensorboard=False)
        return train(task, folder, compute, progress=False, keep=keep)

    return go


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


def kept(folder) -> dict[int, bytes]:
    return {step: (folder / kept_file(step)).read_bytes() for step in KEEP if (folder / kept_file(step)).exists()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_kept_weights_equal_those_of_the_checkpoint(run, unbroken, tmp_path):
    """Compare with the checkpoint of a run that is stopped after this step."""
    for step in KEEP:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(step), (), every=step, stop_at=step)
        state = torch.load(tmp_path / str(step) / "checkpoint.pt", weights_only=True)
        assert state["step"] == step
        assert same(read_weights(unbroken[0] / kept_file(step)), state["model"])


def test_kept_weights_are_a_complete_model(recipe, unbroken):
    """They have the names of `model.safetensors`."""
    model = VideoMAE(recipe.model.dimensions, recipe.model.clip)
    weights = read_weights(unbroken[0] / kept_file(8))
    assert weights.keys() == model.state_dict().keys()
    load_weights(model, weights, "kept")


def test_keeping_weights_does_not_change_the_result(run, unbroken, tmp_path):
    plain = run(tmp_path, ())
    assert same(plain.model.state_dict(), unbroken[1].model.state_dict())
    assert [row["loss"] for row in read_metrics(tmp_path)] == [row["loss"] for row in read_metrics(unbroken[0])]
    assert not list(tmp_path.glob("model-step-*"))


@pytest.mark.parametrize("stop_at", [0, 3, 5, 9, 11])
@pytest.mark.parametrize("every", [1, 3, 4, 100])
def test_a_killed_run_keeps_all_weights(run, unbroken, tmp_path, stop_at, every):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, every=every, stop_at=stop_at)
    assert set(kept(tmp_path)) == {step for step in KEEP if step <= stop_at}
    run(tmp_path, every=every)
    assert kept(tmp_path) == kept(unbroken[0])


def test_a_resumed_run_deletes_later_weights(run, tmp_path):
    """Later weights are from an earlier attempt. They would look valid if the resumed run were lost before these steps."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, every=5, stop_at=9)
    assert set(kept(tmp_path)) == {4, 8}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, every=5, stop_at=0)
    assert set(kept(tmp_path)) == {4}


@pytest.mark.filterwarnings("ignore:.*back to step")
def test_a_roll_back_overwrites_kept_weights(run, unbroken, tmp_path):
    """After step 9 diverges, the samples of steps 6 to 11 are skipped, so the weights after step 8 change."""
    trained = run(tmp_path, bad=(9,), roll_back=6)
    assert [(event["step"], event["to"]) for event in trained.rolled_back] == [(9, 6)]
    before, after = kept(unbroken[0]), kept(tmp_path)
    assert after[4] == before[4]
    assert after[8] != before[8]


@pytest.mark.filterwarnings("ignore:.*back to step")
def test_a_roll_back_deletes_later_weights(run, tmp_path):
    """After the roll-back to step 6, it diverges at once, at step 12 of the stream."""
    with pytest.raises(TrainingDiverged):
        run(tmp_path, bad=(9, 12), roll_back=6, at_most=1)
    assert set(kept(tmp_path)) == {4}


def test_diverged_weights_are_not_kept(run, tmp_path):
    """Step 7 is the eighth. Its loss is first checked when the weights have to be kept."""
    with pytest.raises(TrainingDiverged):
        run(tmp_path, every=100, bad=(7,))
    assert set(kept(tmp_path)) == {4}


def test_kept_weights_of_a_moving_average(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, every=4, stop_at=5, ema=0.9)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same(read_weights(tmp_path / kept_file(4)), state["average"])
    assert not same(state["model"], state["average"])


@pytest.mark.parametrize(
    ("keep_at", "steps", "kept_steps"),
    [
        ((), 1000, ()),
        ((0.25, 0.5), 1000, (250, 500)),
        ((0.3, 0.7), 6, (2, 4)),
        ((0.3, 0.7), 2, (1,)),
        ((0.1, 0.9), 1, ()),
    ],
)
def test_kept_steps_of_fractions(keep_at, steps, kept_steps):
    assert PretrainSettings(steps=steps, batch_size=1, lr=1e-3, keep_at=keep_at).kept_steps == kept_steps


@pytest.mark.parametrize("keep_at", [(0.5, 0.25), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (-0.1,), (250,), (NAN,)])
def test_invalid_fractions_are_refused(keep_at):
    with pytest.raises(ValueError, match="keep_at"):
        PretrainSettings(steps=1000, batch_size=1, lr=1e-3, keep_at=keep_at)
    with pytest.raises(ValueError, match="warmup_steps"):
        PretrainSettings(steps=2, batch_size=1, lr=1e-3, warmup_steps=2)
