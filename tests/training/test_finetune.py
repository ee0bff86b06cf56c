"""The paper's fine-tuning recipe with all options: exact resume after a kill, and each option by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from warm_python import forked_pid

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.motionworld import MotionworldSettings
from vmae_lab.lab.config import RecipeError, build_recipe
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import BatchParts
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.finetune import FinetuneSettings, FinetuneTask, MixSettings


@pytest.fixture(scope="module")
def recipe(finetuning_recipe):
    return finetuning_recipe(sampling="sparse")


def task(recipe, clips, kind=FinetuneTask, **settings) -> FinetuneTask:
    changed = recipe.evaluate.finetune.model_copy(update=settings)
    return kind(recipe.model, changed, recipe.data, clips, list(range(len(clips))), None, seed=3)


def compute(workers: int = 0) -> Compute:
    return Compute(workers=workers, checkpoint_every=3, log_every=1, tensorboard=False)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def unbroken(recipe, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    model = train(task(recipe, clips), folder, compute(), progress=False).model
    return model.state_dict(), checkpoint(folder), read_metrics(folder)


KILLED = """
import json, sys, time
from pathlib import Path
from vmae_lab.data.dataset import load_clips
from vmae_lab.lab.config import build_recipe
from vmae_lab.training.tasks.finetune import FinetuneTask
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute

class Slow(FinetuneTask):
    def loss(self, model, batch, device):
        time.sleep(0.2)
        return super().loss(model, batch, device)

recipe = build_recipe(json.loads(sys.argv[1]))
clips = load_clips(recipe.data, "train")
task = Slow(recipe.model, recipe.evaluate.finetune, recipe.data, clips, list(range(len(clips))), None, seed=3)
compute = Compute(workers=int(sys.argv[3]), checkpoint_every=3, log_every=1, tensorboard=False)
train(task, Path(sys.argv[2]), compute, progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "kill_after"), [(0, 2, 4), (2, 0, 7)])
def test_a_killed_run_with_all_options_resumes_bit_equal(
    recipe, clips, unbroken, tmp_path, before, after, kill_after, warm
):  # fmt: skip
    """SIGKILL between two checkpoints, then resume with another number of workers: same average and last weights."""
    parameters = json.dumps(recipe.model_dump(mode="json"))
    process = subprocess.Popen([sys.executable, "-c", KILLED, parameters, str(tmp_path), str(before)], env=os.environ)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path)) < kill_after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(forked_pid(process.pid), signal.SIGKILL)
    process.wait()
    assert checkpoint(tmp_path)["step"] == kill_after - kill_after % 3
    trained = train(task(recipe, clips), tmp_path, compute(after), progress=False)
    assert 0 < trained.steps_run < 8, "it resumed"
    assert same(trained.model.state_dict(), unbroken[0])
    assert same(checkpoint(tmp_path)["model"], unbroken[1]["model"])


def test_the_result_is_the_moving_average_of_the_weights(recipe, clips, tmp_path):
    """Three steps with decay 0.5: initial weights count 1/8, those after the steps 1/8, 1/4 and 1/2."""
    before_steps = []

    class Watched(FinetuneTask):
        def loss(self, model, *rest):
            before_steps.append({name: value.clone() for name, value in model.state_dict().items()})
            return super().loss(model, *rest)

    trained = train(task(recipe, clips, Watched, steps=3, ema=0.5, lr=0.01), tmp_path, compute(), progress=False)
    weights = [*before_steps, checkpoint(tmp_path)["model"]]
    for name, value in trained.model.state_dict().items():
        by_hand = sum(share * state[name] for share, state in zip((0.125, 0.125, 0.25, 0.5), weights, strict=True))
        torch.testing.assert_close(value, by_hand, rtol=1e-5, atol=1e-7)
    assert not same(trained.model.state_dict(), weights[-1])


def test_without_a_moving_average_the_result_is_the_last_weights(recipe, clips, tmp_path):
    trained = train(task(recipe, clips, steps=2, ema=None), tmp_path, compute(), progress=False)
    assert same(trained.model.state_dict(), checkpoint(tmp_path)["model"])
    assert "average" not in checkpoint(tmp_path)


def test_learning_rates_of_layers_in_a_run(recipe, clips, tmp_path):
    """Groups of the optimizer after the last step: learning rate times decay to the power of the number of layers above."""
    finetune_task = task(recipe, clips, steps=3, layer_decay=0.5)
    train(finetune_task, tmp_path, compute(), progress=False)
    depth = recipe.model.dimensions.depth
    expected = {finetune_task.settings.lr_at(2) * 0.5**above for above in range(depth + 2)}
    assert sorted({group["lr"] for group in checkpoint(tmp_path)["optimizer"]["param_groups"]}) == pytest.approx(
        sorted(expected)
    )


@pytest.mark.parametrize("part", ["drop_path", "dropout", "repeats", "sampling", "mix", "augment", "label_smoothing"])
def test_every_option_changes_the_loss(recipe, clips, unbroken, tmp_path, part):
    """Otherwise the option would have no effect."""
    off = {"repeats": 1, "sampling": "dense", "mix": None, "augment": None}.get(part, 0.0)
    train(task(recipe, clips, steps=2, **{part: off}), tmp_path, compute(), progress=False)
    loss, other = (rows[1]["loss"] for rows in (read_metrics(tmp_path), unbroken[2]))  # the initial head is near zero
    assert loss != other


MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
DATA = DataSettings(motionworld=MotionworldSettings(side=16), resident_side=16)


class Flat:
    """Clips of one gray level each, so that a pixel identifies its clip. Records the requested frames."""

    labels = np.arange(8)

    def __init__(self):
        self.requests = []

    def __len__(self) -> int:
        return 8

    def video(self, index: int, choose, short_side: int | None = None) -> torch.Tensor:
        self.requests.append((index, list(choose(40))))
        return torch.full((3, MODEL.frames, 20, 20), 10 * index, dtype=torch.uint8)


def batches(**settings):
    given = FinetuneSettings(**{"steps": 20, "batch_size": 8, "lr": 1e-3, **settings})
    clips = Flat()
    task = FinetuneTask(MODEL, given, DATA, clips, list(range(8)), None, seed=0)
    return BatchParts(task.batch, range(given.batch_size)), clips


def test_mixup_and_cutmix_mix_pixels_and_labels_equally():
    """Gray levels show how clip i and clip B - 1 - i are mixed, which must agree with the soft labels."""
    mixed, _ = batches(mix=MixSettings(), label_smoothing=0.16)
    plain, _ = batches()
    seen = {"mixup": 0, "cutmix": 0}
    for step in range(16):
        first, second = mixed[step], plain[step]
        assert first["video"].shape == second["video"].shape
        assert first["video"].dtype == torch.uint8
        torch.testing.assert_close(first["label"].sum(1), torch.ones(8))
        grays, labels = 10 * second["label"], second["label"]
        shares = (first["label"].gather(1, labels[:, None])[:, 0] - 0.02) / 0.84  # of 8 classes, smoothed by 0.16
        torch.testing.assert_close(first["label"].gather(1, labels.flip(0)[:, None])[:, 0], 0.84 * (1 - shares) + 0.02)
        assert shares.max() - shares.min() < 1e-5, "one share per batch"
        for clip, gray, partner, share in zip(first["video"], grays, grays.flip(0), shares, strict=True):
            values = clip.unique().tolist()
            if set(values) <= {gray.item(), partner.item()} and len(values) == 2:
                seen["cutmix"] += 1
                inside = clip == partner
                assert (inside == inside[:1, :1]).all(), "the same box in all frames and channels"
                rows, columns = inside[0, 0].any(1), inside[0, 0].any(0)
                assert inside[0, 0].equal(rows[:, None] & columns[None]), "a box"
                assert 1 - inside.float().mean().item() == pytest.approx(share.item(), abs=1e-5)
            elif len(values) == 1 and 0.02 < share < 0.98:
                seen["mixup"] += 1
                assert values[0] == pytest.approx((share * gray + (1 - share) * partner).item(), abs=0.51)
    assert min(seen.values()) >= 16, f"each is used in about half of the batches: {seen}"


def test_a_batch_is_a_function_of_its_step():
    forwards, _ = batches(mix=MixSettings(), repeats=2)
    backwards, _ = batches(mix=MixSettings(), repeats=2)
    expected = [forwards[step] for step in range(6)]
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    for step in reversed(range(6)):
        assert same(backwards[step], expected[step])
    assert np.array_equal(np.random.get_state()[1], before)


def test_loss_of_mixed_labels_by_hand():
    given = FinetuneSettings(steps=1, batch_size=2, lr=1e-3, mix=MixSettings())
    finetune_task = FinetuneTask(MODEL, given, DATA, Flat(), list(range(8)), None, seed=0)
    scores, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.7, 0.3], [0.5, 0.5]])
    by_hand = -(0.7 * -np.log1p(np.exp(-2)) + 0.3 * (-2 - np.log1p(np.exp(-2)))
                + 0.5 * (-1 - np.log1p(np.exp(-1))) + 0.5 * -np.log1p(np.exp(-1))) / 2  # fmt: skip
    batch = {"video": torch.zeros(2, 1), "label": targets}
    assert finetune_task.loss(lambda video: scores, batch, torch.device("cpu")).item() == pytest.approx(by_hand, rel=1e-6)


def test_repeats_share_a_decoded_clip_and_count_as_samples():
    """As in pre-training, a batch of 8 with 2 repeats decodes 4 clips, and an epoch of 8 clips has two steps."""
    drawn, clips = batches(repeats=2)
    labels = torch.stack([drawn[step]["label"] for step in range(4)])
    assert len(clips.requests) == 16
    assert torch.equal(labels[:, ::2], labels[:, 1::2]), "consecutive samples are of one clip"
    for epoch in (labels[:2], labels[2:]):
        assert sorted(epoch.flatten().tolist()) == sorted([*range(8), *range(8)])


def test_repeats_are_augmented_independently(recipe, clips):
    first = task(recipe, clips, mix=None, batch_size=8).batch(0, range(8))["video"]
    assert all(not torch.equal(first[i], first[i + 1]) for i in range(0, 8, 2))


def test_sparse_clips_have_one_frame_per_segment():
    drawn, clips = batches(sampling="sparse")
    for step in range(4):
        drawn[step]
    frames = np.array([frames for _, frames in clips.requests])
    assert (frames // 10 == np.arange(4)).all(), "40 frames, 4 segments"
    assert len(np.unique(frames, axis=0)) > 25, "drawn for each clip"
    dense, clips = batches()
    dense[0]
    assert {tuple(np.diff(frames)) for _, frames in clips.requests} == {(DATA.stride,) * 3}


def test_invalid_mix_settings_are_refused(smoke):
    with pytest.raises(RecipeError, match=r"evaluate\.finetune: batch_size 3 is odd: mixup and cutmix mix"):
        build_recipe({**smoke, "arms": ["none"], "override": {"evaluate.finetune.mix": {}, "evaluate.finetune.batch_size": 3}})
    with pytest.raises(RecipeError, match=r"evaluate\.finetune\.mix: mixup and cutmix are both 0"):
        build_recipe({**smoke, "arms": ["none"], "override": {"evaluate.finetune.mix": {"mixup": 0, "cutmix": 0}}})
    given = FinetuneSettings(steps=1, batch_size=6, lr=1e-3, mix=MixSettings())
    with pytest.raises(ValueError, match="3 clips per process"):
        FinetuneTask(MODEL, given, DATA, Flat(), list(range(8)), None, seed=0).batch(0, range(3))


def test_one_setting_of_a_missing_section_can_be_set(smoke):
    recipe = build_recipe({**smoke, "arms": ["none"]}).with_overrides({"evaluate.finetune.mix.cutmix": 0.5})
    assert recipe.evaluate.finetune.mix == MixSettings(cutmix=0.5)


def test_dropout_applies_before_the_linear_layer_only_in_training():
    model = VideoClassifier(MODEL.dimensions, MODEL.clip, 3, dropout=0.5, init_scale=1.0)
    video = torch.randint(256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    seen = []
    model.head.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()(video)
    model.train()(video)
    assert (seen[0] != 0).all()
    kept = seen[1] != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(seen[1][kept], 2 * seen[0][kept], rtol=1e-4, atol=1e-5)
