"""The training loop: equal weights for any workers, micro-batches and kills; a stop at the first bad loss."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from warm_python import forked_pid

from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.training.distributed import accelerator_for
from vmae_lab.training.divergence import TrainingDiverged
from vmae_lab.training.loop import Trainer, train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.optim import cosine_schedule, parameter_groups
from vmae_lab.training.settings import Compute, ImpossibleHere
from vmae_lab.training.tasks.pretrain import PretrainTask


@pytest.fixture(scope="module")
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": ["none"], "override": {"pretrain.steps": 12}})


def task(recipe: Recipe, clips, **settings) -> PretrainTask:
    return PretrainTask(recipe.model, recipe.mask, recipe.pretrain.model_copy(update=settings), recipe.data, clips, seed=1)


def compute(**settings) -> Compute:
    return Compute(**{"checkpoint_every": 4, "log_every": 3, "tensorboard": False, **settings})


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def unbroken(recipe, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return train(task(recipe, clips), folder, compute(), progress=False).model, read_metrics(folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_do_not_change_the_result(recipe, clips, unbroken, tmp_path, workers):
    trained = train(task(recipe, clips), tmp_path, compute(workers=workers), progress=False)
    assert same_weights(trained.model, unbroken[0])


@pytest.mark.parametrize(("seconds", "steps"), [(0.5, 10), (60.0, 1)])
def test_several_processes_look_at_stop_requests_about_every_five_seconds(recipe, clips, tmp_path, seconds, steps):
    """Also if the log has lines less often. The number of steps until then is a function of a mean that all processes have."""
    own = task(recipe, clips)
    trainer = Trainer(own, tmp_path, compute(), accelerator_for(own.settings), keep=())
    trainer.losses, trainer.steps_run = [torch.ones(())] * 20, 50
    trainer.checked_at = time.perf_counter() - 20 * seconds
    assert trainer._check(stop=True) == (None, True)
    assert 50 + max(1, steps - 2) <= trainer.next_check <= 50 + steps
    assert trainer._check(stop=False) == (None, False)


def test_another_seed_changes_the_result(recipe, clips, unbroken, tmp_path):
    other = task(recipe, clips)
    other.seed = 2
    assert not same_weights(train(other, tmp_path, compute(), progress=False).model, unbroken[0])


def test_the_global_generator_is_not_used(recipe, clips, unbroken, tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    trained = train(task(recipe, clips), tmp_path, compute(), progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(trained.model, unbroken[0])


def test_micro_batches_equal_the_batch(recipe, clips, unbroken, tmp_path):
    """Only the order of float32 sums differs, also if clips have unequal numbers of tokens in the loss."""
    uneven = recipe.with_overrides({"mask.decoder": "random"})
    whole = train(task(uneven, clips, steps=3), tmp_path / "whole", compute(), progress=False).model
    parts = train(task(uneven, clips, steps=3, accumulation=4), tmp_path / "parts", compute(), progress=False).model
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        if not name.endswith("qkv.bias"):  # the gradient of its k part is rounding noise, which Adam scales up
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


KILLED = """
import sys, time
from pathlib import Path
from vmae_lab.lab.config import build_recipe
from vmae_lab.data.dataset import load_clips
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainTask
import json

recipe = build_recipe(json.loads(sys.argv[1]))

class Slow(PretrainTask):
    def loss(self, model, batch, device):
        time.sleep(0.15)
        return super().loss(model, batch, device)

clips = load_clips(recipe.data, "train")
task = Slow(recipe.model, recipe.mask, recipe.pretrain, recipe.data, clips, seed=1)
train(task, Path(sys.argv[2]), Compute(checkpoint_every=4, log_every=1, tensorboard=False), progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [2, 5, 11])
def test_a_killed_run_resumes_bit_equal(recipe, clips, unbroken, tmp_path, kill_after, warm):
    """SIGKILL after the given step (before the first checkpoint, between two, after the last), then resume."""
    parameters = json.dumps(recipe.model_dump(mode="json"))
    process = subprocess.Popen([sys.executable, "-c", KILLED, parameters, str(tmp_path)], env=os.environ)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path)) < kill_after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(forked_pid(process.pid), signal.SIGKILL)
    process.wait()
    assert (tmp_path / "checkpoint.pt").exists() == (kill_after >= 5)
    trained = train(task(recipe, clips), tmp_path, compute(log_every=1), progress=False)
    assert trained.steps_run < 12 or kill_after < 4, "it resumed"
    assert same_weights(trained.model, unbroken[0])
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 13))


def test_logged_losses_do_not_depend_on_interruptions(recipe, clips, unbroken, tmp_path):
    """Interrupt at step 4 of 12, within a log interval, and resume."""

    class Stops(PretrainTask):
        def loss(self, *arguments):
            if (tmp_path / "checkpoint.pt").exists():
                raise KeyboardInterrupt
            return super().loss(*arguments)

    whole = task(recipe, clips)
    with pytest.raises(KeyboardInterrupt):
        train(Stops(whole.model, whole.masks, whole.settings, whole.data, clips, 1), tmp_path, compute(), progress=False)
    train(whole, tmp_path, compute(), progress=False)
    assert [row["loss"] for row in read_metrics(tmp_path)] == [row["loss"] for row in unbroken[1]]


def test_a_non_finite_loss_stops_the_run(recipe, clips, tmp_path):
    class Breaks(PretrainTask):
        calls = 0

        def loss(self, *arguments):
            self.calls += 1
            return super().loss(*arguments) * (float("nan") if self.calls == 6 else 1)

    whole = task(recipe, clips)
    with pytest.raises(TrainingDiverged, match=r"nan at step 5 of 12 in .*learning rate .*Lower lr"):
        train(Breaks(whole.model, whole.masks, whole.settings, whole.data, clips, 1), tmp_path, compute(), progress=False)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4


def test_an_indivisible_batch_is_refused(recipe, clips, tmp_path):
    with pytest.raises(ImpossibleHere, match="batch_size 4 cannot be split into 1 process x 3 micro-batches"):
        train(task(recipe, clips, accumulation=3), tmp_path, compute(), progress=False)


def test_tensorboard_gets_the_logged_loss(recipe, clips, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(task(recipe, clips, steps=3), tmp_path, compute(tensorboard=True), progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("loss")[0].value == pytest.approx(read_metrics(tmp_path)[0]["loss"])


def test_schedule_by_hand():
    """Five warm-up steps, the fifth at the peak, then half a cosine that would reach the end at step 15."""
    rates = [cosine_schedule(step, 15, 5, 0.0, 1.0, 0.2) for step in range(15)]
    assert rates[:6] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    assert (rates[10], rates[14]) == pytest.approx((0.6, 0.6 - 0.4 * np.cos(0.1 * np.pi)))
    assert all(later < earlier for earlier, later in pairwise(rates[5:]))


def test_weight_decay_and_layer_decay_by_hand():
    """Matrices decay; biases, LayerNorms, mask token and learned query do not. Two blocks are layers 1 and 2 of 4."""
    from vmae_lab.models.classifier import VideoClassifier
    from vmae_lab.models.sizes import ClipShape, Size
    from vmae_lab.models.videomae import VideoMAE

    size, clip = Size(32, 2, 2, 64, 24, 1, 2, 48, patch=4), ClipShape(frames=4, side=16, patch=4)
    model = VideoMAE(size, clip)
    decays = {id(p): group["weight_decay"] for group in parameter_groups(model, 0.05) for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.05 if name.endswith("weight") and ".norm" not in f".{name}" else 0), name
    model = VideoClassifier(size, clip, 3, readout="attentive")
    found = {id(p): group for group in parameter_groups(model, 0.05, 0.5) for p in group["params"]}
    groups = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    above = {"encoder.embed.weight": 3, "encoder.trunk.blocks.0.attn.qkv.weight": 2, "encoder.trunk.blocks.1.mlp.fc1.bias": 1}
    assert {name: groups[name]["lr_scale"] for name in above} == {name: 0.5**layers for name, layers in above.items()}
    assert {groups[name]["lr_scale"] for name in groups if name.startswith("head.")} == {1.0}
    assert groups["head.pool.latent"]["weight_decay"] == groups["encoder.embed.bias"]["weight_decay"] == 0
    assert groups["head.head.weight"]["weight_decay"] == groups["encoder.embed.weight"]["weight_decay"] == 0.05


def test_the_gradient_is_clipped(recipe, clips, tmp_path):
    """AdamW's first step does not depend on the gradient's norm, but its second moment is (1 - beta2) times the square."""
    norms, beta2 = {}, recipe.pretrain.betas[1]
    for largest in (None, 0.01):
        folder = tmp_path / str(largest)
        train(task(recipe, clips, steps=1, warmup_steps=0, clip_grad=largest), folder, compute(), progress=False)
        moments = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["state"].values()
        norms[largest] = (sum(moment["exp_avg_sq"].sum() for moment in moments) / (1 - beta2)).sqrt().item()
    assert norms[None] > 0.1
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)


def test_schedules_equal_the_official_ones(parity):
    facts = json.loads((parity / "schedules.json").read_text())["cosine_scheduler"]
    for entry in facts.values():
        if not isinstance(entry, dict):
            continue
        settings = entry["args"]
        steps = settings["epochs"] * settings["niter_per_ep"]
        warmup = settings.get("warmup_steps", settings.get("warmup_epochs", 0) * settings["niter_per_ep"])
        start = settings.get("start_warmup_value", 0.0)
        ours = [
            cosine_schedule(step, steps, warmup, start, settings["base_value"], settings["final_value"])
            for step in range(steps)
        ]
        assert ours == pytest.approx(entry["values"], rel=1e-9, abs=1e-15)


def test_parameter_groups_equal_the_official_ones(parity):
    """The same parameters decay as in the official groups."""
    from vmae_lab.models.checkpoints import from_official_pretrain
    from vmae_lab.models.sizes import SIZES, ClipShape
    from vmae_lab.models.videomae import VideoMAE

    facts = json.loads((parity / "schedules.json").read_text())["param_groups_pretrain_base"]
    names = {name: torch.zeros(1, 1) for name in facts["decay"] if not name.startswith("mask_token")}
    expected = set(from_official_pretrain(names))
    with torch.device("meta"):
        model = VideoMAE(SIZES["base"], ClipShape())
    decaying = {id(p) for group in parameter_groups(model, 0.05) if group["weight_decay"] for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in decaying} == expected


def official_name(name: str) -> str:
    """Our name of an official classifier's parameter. q and v biases are parts of one parameter."""
    place = name.replace("patch_embed.proj.", "encoder.embed.").replace("q_bias", "qkv.bias").replace("v_bias", "qkv.bias")
    place = f"encoder.trunk.{place}" if place.startswith("blocks.") else place
    return f"head.{place}" if place.startswith(("fc_norm.", "head.")) else place


def test_layer_decay_equals_the_official_groups(parity):
    """The same 28 groups of parameters: 14 layers, each with and without weight decay."""
    from vmae_lab.models.classifier import VideoClassifier
    from vmae_lab.models.sizes import SIZES, ClipShape

    facts = json.loads((parity / "schedules.json").read_text())["layer_decay_vit_base_0.75"]
    with torch.device("meta"):
        model = VideoClassifier(SIZES["base"], ClipShape(), 400)
    groups = parameter_groups(model, 0.05, 0.75)
    assert len(groups) == facts["n_groups"]
    assert sorted({group["lr_scale"] for group in groups}) == pytest.approx(facts["values"])
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    ours = {name: found[id(p)] for name, p in model.named_parameters()}
    assert {official_name(name) for name in facts["params"]} == set(ours)
    for name, entry in facts["params"].items():
        assert ours[official_name(name)] == pytest.approx((entry["lr_scale"], entry["weight_decay"])), name


def test_fine_tuning_settings_give_the_official_learning_rates(parity):
    """With warm-up and the linear scaling rule, the learning rates equal the official schedule."""
    from vmae_lab.training.tasks.finetune import FinetuneSettings

    entry = json.loads((parity / "schedules.json").read_text())["cosine_scheduler"]["lr_warmup5_start0"]
    given, steps = entry["args"], entry["args"]["epochs"] * entry["args"]["niter_per_ep"]
    settings = FinetuneSettings(
        steps=steps, batch_size=64, lr=4 * given["base_value"], lr_reference_batch=256, min_lr=given["final_value"],
        warmup_steps=given["warmup_epochs"] * given["niter_per_ep"],
    )  # fmt: skip
    assert [settings.lr_at(step) for step in range(steps)] == pytest.approx(entry["values"], rel=1e-9, abs=1e-15)


def test_an_incomplete_last_line_is_ignored(tmp_path):
    assert read_metrics(Path(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1}]
