"""Activation checkpointing and compiled blocks do not change results; trackers; memory."""

import platform
import shutil
import subprocess
import sys

import pytest
import torch
from timm.models.vision_transformer import Block

from vmae_lab.data.dataset import load_clips
from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute, ImpossibleHere, TrainSettings
from vmae_lab.training.tasks.pretrain import PretrainTask


@pytest.fixture(scope="module")
def recipe(smoke) -> Recipe:
    return build_recipe({**smoke, "arms": ["none"], "override": {"pretrain.ema": 0.9}})


@pytest.fixture(scope="module")
def task(home, recipe) -> PretrainTask:
    return PretrainTask(recipe.model, recipe.mask, recipe.pretrain, recipe.data, load_clips(recipe.data, "train"), seed=1)


@pytest.fixture(scope="module")
def plain(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return train(task, folder, Compute(log_every=1, tensorboard=False), progress=False).model.state_dict(), read_metrics(folder)


def test_activation_checkpointing_is_bit_equal(task, plain, tmp_path):
    compute = Compute(log_every=1, tensorboard=False, checkpoint_activations=True, checkpoint_every=2)
    state = train(task, tmp_path, compute, progress=False).model.state_dict()
    assert state.keys() == plain[0].keys(), "weight names do not depend on how the model was trained"
    assert all(torch.equal(state[name], plain[0][name]) for name in state)


def test_activation_checkpointing_saves_memory(task):
    """A block saves only its input for backward."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    def kept(model) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            model.encoder(torch.zeros(1, 3, 8, 24, 24, dtype=torch.uint8))
        return sum(sizes)

    whole, recomputed = task.build(), task.build()
    apply_activation_checkpointing(recomputed, check_fn=lambda part: isinstance(part, Block))
    assert kept(recomputed) < 0.2 * kept(whole)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not torch.cuda.is_available(), reason="torch.compile needs a compiler")
def test_compiled_blocks_have_the_same_losses(task, plain, tmp_path):
    trained = train(task, tmp_path, Compute(log_every=1, tensorboard=False, compile=True), progress=False)
    assert trained.model.state_dict().keys() == plain[0].keys()
    assert [row["loss"] for row in read_metrics(tmp_path)] == pytest.approx([row["loss"] for row in plain[1]], rel=1e-3)


TRACKER = """
class Run:
    def __init__(self, **given):
        self.lines = [given]

    def log(self, values, **more):
        self.lines.append({**values, **more})

    def finish(self):
        self.lines.append("finished")

runs = []

def init(**given):
    runs.append(Run(**given))
    return runs[-1]

def finish():
    runs[-1].finish()
"""


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_the_logged_values(task, tmp_path, monkeypatch, name):
    """A module replaces the package, through accelerate's own tracker."""
    (tmp_path / f"{name}.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "some-stage"
    train(task, folder, Compute(log_every=3, tensorboard=False, trackers=(name,)), progress=False)
    [run] = sys.modules.pop(name).runs
    assert run.lines[0]["project"] == "vmae_lab"
    assert run.lines[0]["name"] == "some-stage"
    assert [line["loss"] for line in run.lines[1:-1]] == [row["loss"] for row in read_metrics(folder)]
    assert run.lines[-1] == "finished"


def test_a_missing_tracker_is_an_error(task, tmp_path):
    with pytest.raises(ImpossibleHere, match=r"compute\.trackers: trackio is not installed.*`pip install trackio`"):
        train(task, tmp_path, Compute(tensorboard=False, trackers=("trackio",)), progress=False)


def test_the_log_states_the_scaling_rule(task, tmp_path):
    settings = task.settings.model_copy(update={"lr": 1.5e-4, "lr_reference_batch": 2, "accumulation": 2})
    scaled = PretrainTask(task.model, task.masks, settings, task.data, task.clips, seed=1)
    train(scaled, tmp_path, Compute(tensorboard=False), progress=False)
    log = (tmp_path / "run.log").read_text()
    assert "4 clips per step = 1 process x 2 micro-batches x 2 clips" in log
    assert "peak learning rate 0.0003 = 0.00015 x 4 / 2 (linear scaling rule)" in log
    assert "(absolute)" in TrainSettings(steps=1, batch_size=4, lr=1e-3).lr_words


STEPS = """
import ctypes, resource, torch
from vmae_lab.training.distributed import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        kept = [torch.ones(2**16) for _ in range(64)]  # 16 MiB: 4096 pages
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
    ctypes.CDLL(None).mallopt(threshold, 128 * 1024)  # glibc's initial value; imports may have changed it
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_step():
    done = subprocess.run([sys.executable, "-c", STEPS], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert before > 3 * 4096
    assert after < 4096 / 2


def test_parameter_count_of_the_giant():
    """VideoMAE V2 reports 1.01 billion parameters of ViT-g, without the decoder."""
    with torch.device("meta"):
        model = VideoMAE(SIZES["giant"], ClipShape(patch=14))
    assert sum(weight.numel() for weight in model.encoder.parameters()) / 1e9 == pytest.approx(1.01, abs=0.005)
