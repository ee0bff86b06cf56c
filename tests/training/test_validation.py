"""Validation during training: it changes nothing, the best weights survive kills and roll-backs, and an overfit shows."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch.nn import functional

from vmae_lab.data.dataset import load_clips
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.models.checkpoints import read_weights
from vmae_lab.training import loop
from vmae_lab.training.checkpoint import kept_file
from vmae_lab.training.divergence import Divergence
from vmae_lab.training.loop import Trainer, train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.finetune import FinetuneTask, predict
from vmae_lab.training.validation import ACCURACY, LOSS, Validation

NAN = float("nan")


@pytest.fixture(scope="module")
def recipe(finetuning_recipe):
    return finetuning_recipe()


@pytest.fixture(scope="module")
def validation_clips(home, recipe):
    return load_clips(recipe.data, "validation", recipe.evaluate.sources)


class Disturbed(FinetuneTask):
    """A task that is interrupted at one call of the loss, and that has bad samples at some steps of the stream."""

    bad, stop_at, calls = (), None, 0

    def batch(self, step, rows):
        return {**super().batch(step, rows), "position": torch.full((len(rows),), step)}

    def loss(self, model, batch, device):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return super().loss(model, batch, device) * (NAN if int(batch["position"][0]) in self.bad else 1.0)


@pytest.fixture(scope="module")
def run(recipe, clips):
    """Train in a folder; with `validation`, validated."""

    def go(folder, validation=None, workers=0, every=3, keep=(), stop_at=None, bad=(), **settings):
        task = Disturbed(
            recipe.model, recipe.evaluate.finetune.model_copy(update=settings), recipe.data, clips, list(range(len(clips))),
            None, seed=3,
        )  # fmt: skip
        task.stop_at, task.bad = stop_at, bad
        compute = Compute(workers=workers, checkpoint_every=every, log_every=1, tensorboard=False)
        return train(task, folder, compute, progress=False, keep=keep, validation=validation)

    return go


@pytest.fixture(scope="module")
def validation(recipe, validation_clips):
    """Validation every few steps, as the fine-tuning stage makes it."""

    def make(every=3, keep_best=False, clips=validation_clips):
        return Validation(clips, lambda model, part: predict(model, part, recipe.model, recipe.data.stride), every, keep_best)

    return make


def given_accuracies(clips, *right: int) -> Validation:
    """A validation after every step, in which so many clips are right. It keeps the best weights."""
    left = list(right)

    def scores(_model, part):
        one_hot = functional.one_hot(torch.from_numpy(part.labels), 8).float()
        one_hot[left.pop(0) :] *= -1
        return one_hot

    return Validation(clips, scores, 1, keep_best=True)


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return run(folder, keep=range(1, 8)).model.state_dict(), folder


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def training_rows(folder: Path) -> list[dict]:
    """The log without what validation adds, and without times."""
    return [{name: row[name] for name in ("step", "loss", "lr")} for row in read_metrics(folder)]


def validation_rows(folder: Path) -> list[tuple]:
    return [(row["step"], row[LOSS], row[ACCURACY]) for row in read_metrics(folder) if LOSS in row]


# ---------------------------------------------------------------- validation does not change training


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_validated_training_is_bit_equal(run, validation, plain, tmp_path, workers):
    """The same weights, moving average, moments and losses as without validation."""
    trained = run(tmp_path, validation(), workers)
    assert trained.best is None
    assert same(trained.model.state_dict(), plain[0])
    assert same(checkpoint(tmp_path)["model"], checkpoint(plain[1])["model"])
    moments = [checkpoint(folder)["optimizer"]["state"] for folder in (tmp_path, plain[1])]
    assert all(same(moments[0][name], moments[1][name]) for name in moments[1])
    assert checkpoint(tmp_path).keys() == checkpoint(plain[1]).keys()
    assert training_rows(tmp_path) == training_rows(plain[1])
    assert [step for step, *_ in validation_rows(tmp_path)] == [3, 6, 8], "the last step too"


def random_states() -> list:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_a_validation_uses_no_global_random_state(run, validation, tmp_path, monkeypatch):
    """Nor does the first one, which builds a model."""
    changed, validate = [], Trainer.validate

    def watched(self):
        before, mode = random_states(), self.model.training
        scores = validate(self)
        changed.append((before != random_states(), mode != self.model.training))
        return scores

    monkeypatch.setattr(Trainer, "validate", watched)
    run(tmp_path, validation(every=2), steps=4)
    assert changed == [(False, False)] * 2


# ---------------------------------------------------------------- what is measured


def test_scores_by_hand(run, recipe, validation, validation_clips, tmp_path):
    """Cross-entropy and accuracy of the moving average of the weights, in evaluation mode."""
    trained = run(tmp_path, validation(every=100))
    scores = predict(trained.model, validation_clips, recipe.model, recipe.data.stride).double().numpy()
    labels, rows = validation_clips.labels, np.arange(len(validation_clips))
    losses = np.log(np.exp(scores).sum(1)) - scores[rows, labels]
    [(step, loss, accuracy)] = validation_rows(tmp_path)
    assert step == 8
    assert loss == pytest.approx(losses.mean(), rel=1e-12)
    assert accuracy == 100 * (scores.argmax(1) == labels).mean()
    state = checkpoint(tmp_path)
    assert same(trained.model.state_dict(), state["average"])
    assert not same(state["average"], state["model"])


def test_the_log_and_tensorboard_have_the_scores(run, recipe, clips, validation, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    task = FinetuneTask(recipe.model, recipe.evaluate.finetune, recipe.data, clips, list(range(8)), None, seed=3)
    train(task, tmp_path, Compute(log_every=100), progress=False, validation=validation(every=4))
    assert [set(row) for row in read_metrics(tmp_path)] == [{"step", "loss", "lr", LOSS, ACCURACY, "seconds_per_step"}] * 2
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, column in ((LOSS, 1), (ACCURACY, 2)):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(
            [row[column] for row in validation_rows(tmp_path)]
        )


def test_validation_is_not_counted_as_training_time(run, validation, validation_clips, tmp_path, monkeypatch):
    """The clock of the loop is replaced by one that advances by 1 s per step and 100 s per validation.

    The first step takes 50 s, as if it compiled the model. It has its own time.
    """
    now, loss, predict_quickly = [0.0], FinetuneTask.loss, validation(every=1).predict

    def timed_loss(*given):
        now[0] += 1 if now[0] else 50
        return loss(*given)

    def timed_predict(*given):
        now[0] += 100
        return predict_quickly(*given)

    monkeypatch.setattr(FinetuneTask, "loss", timed_loss)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    trained = run(tmp_path, Validation(validation_clips, timed_predict, 1), steps=3)
    assert (trained.first_step_seconds, trained.seconds_per_step) == (50, 1)
    assert "first step: 50.00 s" in (tmp_path / "run.log").read_text()
    assert [row["seconds_per_step"] for row in read_metrics(tmp_path)] == [50, 1, 1]
    assert now[0] == 50 + 2 + 3 * 100


# ---------------------------------------------------------------- the best weights


@pytest.mark.parametrize(
    ("right", "step"), [((1, 5, 2, 5, 0, 0, 0, 4), 2), ((3,) * 8, 1), ((0, 1, 2, 3, 4, 5, 6, 7), 8), ((0,) * 8, 1)]
)
def test_the_best_weights_are_the_result(run, plain, validation_clips, tmp_path, right, step):
    """Of equal ones, the earliest."""
    trained = run(tmp_path, given_accuracies(validation_clips, *right))
    assert trained.best == {"step": step, ACCURACY: 100 * right[step - 1] / len(validation_clips)}
    kept = plain[0] if step == 8 else read_weights(plain[1] / kept_file(step))
    assert same(trained.model.state_dict(), kept)
    assert training_rows(tmp_path) == training_rows(plain[1]), "training goes on with its own weights"


def test_without_a_moving_average_the_best_weights_are_those_of_the_step(run, validation_clips, tmp_path):
    trained = run(tmp_path, given_accuracies(validation_clips, 1, 2, 9, 3), keep=(3,), steps=4, ema=None)
    assert same(trained.model.state_dict(), read_weights(tmp_path / kept_file(3)))


@pytest.fixture(scope="module")
def best_of_unbroken(run, validation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    trained = run(folder, validation(2, keep_best=True))
    return trained.model.state_dict(), trained.best, training_rows(folder), validation_rows(folder)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [0, 3, 6, 7])
@pytest.mark.parametrize("every", [1, 3, 100])
def test_an_interrupted_run_resumes_with_the_best_weights(
    run, validation, best_of_unbroken, tmp_path, stop_at, every
):  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validation(2, keep_best=True), every=every, stop_at=stop_at)
    trained = run(tmp_path, validation(2, keep_best=True), every=every)
    assert trained.steps_run == 8 - stop_at + stop_at % every
    found = (trained.model.state_dict(), trained.best, training_rows(tmp_path), validation_rows(tmp_path))
    assert same(found[0], best_of_unbroken[0])
    assert found[1:] == best_of_unbroken[1:]


def test_a_finished_run_returns_the_best_weights_again(run, validation_clips, tmp_path):
    """It was killed before the stage wrote its result."""
    first = run(tmp_path, given_accuracies(validation_clips, 1, 2, 9, 3), steps=4)
    again = run(tmp_path, given_accuracies(validation_clips), steps=4)
    assert again.steps_run == 0
    assert again.best == first.best
    assert same(again.model.state_dict(), first.model.state_dict())


@pytest.mark.filterwarnings("ignore:.*back to step")
def test_a_roll_back_forgets_later_weights(run, validation_clips, tmp_path):
    """Step 6 diverges after the best validation, that of step 5. The roll-back to step 4 repeats steps 5 and 6."""
    validation = given_accuracies(validation_clips, 1, 2, 8, 3, 9, 3, 3, 3, 3)
    trained = run(tmp_path, validation, bad=(5,), divergence=Divergence(roll_back=4))
    assert [event["to"] for event in trained.rolled_back] == [4]
    assert trained.best == {"step": 3, ACCURACY: 100 * 8 / len(validation_clips)}


# ---------------------------------------------------------------- unreadable clips, invalid settings


class Broken:
    """Clips of which some cannot be read."""

    def __init__(self, clips, rows):
        self.clips, self.broken, self.labels = clips, rows, clips.labels

    def __len__(self):
        return len(self.clips)

    def subset(self, rows):
        return Broken(self.clips.subset(rows), [index for index, row in enumerate(rows) if row in self.broken])

    def videos(self, rows, *given):
        for row, video in zip(rows, self.clips.videos(rows, *given), strict=True):
            yield VideoError(f"video {row}", "broken") if row in self.broken else video


def test_an_unreadable_clip_stops_the_training(run, validation, validation_clips, tmp_path):
    with pytest.raises(MissingVideos, match=r"2 of 16 videos .*\n  .*video 3.*\n  .*video 9.*\n.*evaluate\.missing") as caught:
        run(tmp_path, validation(clips=Broken(validation_clips, [3, 9])))
    assert list(caught.value.failed) == [3, 9]


def test_invalid_settings_are_refused(smoke):
    def changed(override):
        return build_recipe({**smoke, "arms": ["none"], "override": override})

    with pytest.raises(RecipeError, match=r"evaluate\.finetune: keep best needs .*validate_every"):
        changed({"evaluate.finetune.keep": "best"})
    with pytest.raises(RecipeError, match=r"distill: validate_every is only for fine-tuning"):
        changed({"distill.validate_every": 2})
    settings = changed({"post_pretrain.keep": "best", "post_pretrain.validate_every": 3}).post_pretrain
    assert (settings.steps, settings.validations) == (4, 2)
    assert changed({}).post_pretrain.validations == 0


# ---------------------------------------------------------------- real processes

JOB = """
import json, sys, time
from pathlib import Path
import torch
from accelerate import PartialState
from vmae_lab.data.dataset import load_clips
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.lab.config import build_recipe
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.finetune import FinetuneTask, predict
from vmae_lab.training.validation import Validation

recipe, folder, pause, broken = build_recipe(json.loads(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

def scores(model, part):
    if rows := [row for row in range(len(part)) if broken and part.name(row) == held_out.name(5)]:
        raise MissingVideos({row: VideoError(part.name(row), "broken") for row in rows}, len(part))
    found = predict(model, part, recipe.model, recipe.data.stride)
    with open(folder / "validating", "a") as file:
        file.write("x")
    time.sleep(pause)
    return found

if __name__ == "__main__":
    torch.set_num_threads(1)
    clips, settings = load_clips(recipe.data, "train"), recipe.evaluate.finetune
    held_out = load_clips(recipe.data, "validation", recipe.evaluate.sources).subset(range(15))  # not a multiple of two
    task = FinetuneTask(recipe.model, settings, recipe.data, clips, list(range(len(clips))), None, seed=3)
    compute = Compute(checkpoint_every=3, log_every=1, tensorboard=False)
    validation = Validation(held_out, scores, 2, keep_best=True)
    try:
        trained = train(task, folder, compute, progress=False, validation=validation)
    except Exception as error:
        (folder / f"error-{PartialState().process_index}.txt").write_text(f"{type(error).__name__}: {error}")
        time.sleep(2)  # the launcher ends the other process when this one ends
        raise
    if PartialState().is_main_process:
        torch.save({"weights": trained.model.state_dict(), "best": trained.best}, folder / "last.pt")
"""


@pytest.fixture(scope="module")
def start(clips, validation_clips, smoke, tmp_path_factory):
    """Start a validated run in one process, or in several. Its results do not depend on their number, up to rounding."""
    script = tmp_path_factory.mktemp("script") / "job.py"
    script.write_text(JOB)
    override = {f"evaluate.finetune.{name}": value for name, value in {"steps": 6, "drop_path": 0.0}.items()}
    parameters = json.dumps(build_recipe({**smoke, "arms": ["none"], "override": override}).model_dump(mode="json"))

    def begin(folder: Path, processes=1, pause=0.0, broken="", **environment) -> subprocess.Popen:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        command = [sys.executable, *launcher, str(script), parameters, str(folder), str(pause), broken]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
        with open(folder / "output.txt", "a") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    return begin


def finish(process: subprocess.Popen, folder: Path) -> dict:
    assert process.wait(240) == 0, (folder / "output.txt").read_text()[-3000:]
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return finish(start(folder), folder), validation_rows(folder)


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_share_the_clips(start, alone, tmp_path, sharded):
    """The scores and the best weights are those of one process. 15 clips are not two equal parts."""
    ends, rows = finish(start(tmp_path, 2, **(FSDP if sharded else {})), tmp_path), validation_rows(tmp_path)
    assert [step for step, *_ in rows] == [2, 4, 6]
    for row, of_one in zip(rows, alone[1], strict=True):
        assert row == pytest.approx(of_one, rel=1e-4)
    assert ends["best"] == alone[0]["best"]
    assert (tmp_path / "validating").read_text() == 6 * "x", "both processes predict"
    for name, weight in alone[0]["weights"].items():
        torch.testing.assert_close(ends["weights"][name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_all_processes_stop_at_an_unreadable_clip(start, tmp_path):
    """Only one of them reads it. The other must not wait for that one."""
    assert start(tmp_path, 2, broken="yes").wait(240)
    errors = [(tmp_path / f"error-{process}.txt").read_text() for process in range(2)]
    assert errors[0] == errors[1]
    assert errors[0].startswith("MissingVideos: 1 of 15 videos")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_while_it_validates_resumes(start, alone, tmp_path, processes):
    """SIGKILL in the validation of step 4, after the checkpoint of step 3, which has the best weights of step 2."""
    process, mark, deadline = start(tmp_path, processes, pause=1.0), tmp_path / "validating", time.monotonic() + 240
    while not mark.exists() or len(mark.read_text()) < 1 + processes:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait(60)
    psutil.wait_procs(family, 60)
    state = checkpoint(tmp_path)
    assert (state["step"], state["best"]["step"]) == (3, 2)
    ends = finish(start(tmp_path, processes), tmp_path)
    assert ends["best"] == alone[0]["best"]
    assert [step for step, *_ in validation_rows(tmp_path)] == [2, 4, 6]
    if processes == 1:
        assert same(ends["weights"], alone[0]["weights"])
        assert validation_rows(tmp_path) == alone[1]


# ---------------------------------------------------------------- overfit


@pytest.mark.slow
def test_an_overfit_shows(recipe, clips, validation, tmp_path):
    """Eight labels and many steps: the training loss falls to zero while the validation loss rises."""
    settings = recipe.evaluate.finetune.model_copy(
        update={
            "steps": 80, "batch_size": 8, "lr": 2e-3, "warmup_steps": 0, "label_smoothing": 0.0, "head_init_scale": 1.0,
            "mix": None, "augment": None, "drop_path": 0.0, "dropout": 0.0, "repeats": 1, "ema": None, "layer_decay": 1.0,
        }
    )  # fmt: skip
    rows = [int(np.flatnonzero(clips.labels == label)[0]) for label in range(8)]
    task = FinetuneTask(recipe.model, settings, recipe.data, clips, rows, None, seed=3)
    train(task, tmp_path, Compute(log_every=4, tensorboard=False), progress=False, validation=validation(every=4))
    log = read_metrics(tmp_path)
    losses, validated = ([row[name] for row in log] for name in ("loss", LOSS))
    assert losses[-1] < 0.1 * losses[0]
    lowest = int(np.argmin(validated))
    assert lowest < len(validated) // 2
    assert validated[-1] > validated[lowest] + 0.5
    assert losses[-1] < losses[lowest]
