"""Probes on features with known answers, and draws of labeled clips."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vmae_lab.data.dataset import load_clips
from vmae_lab.evaluation.classification import top1
from vmae_lab.evaluation.probes import arrange, classical_answers, draw_labelled, extract_tokens, token_bytes, token_device
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.stages.probe import ReadClips
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.settings import TrainSettings
from vmae_lab.training.tasks.attentive_probe import AttentiveProbeTask

GRID = (1, 2, 2)


def features(labels: np.ndarray, placed: bool) -> torch.Tensor:
    """Return tokens `(n, 4, 8)` of GRID: the class is a vector in every token or, if `placed`, the position of a mark."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(scale=0.1, size=(len(labels), 4, 8))
    for i, label in enumerate(labels):
        if placed:
            tokens[i, label % 4, 0] += 3
        else:
            tokens[i, :, label] += 3
    return torch.from_numpy(tokens.astype(np.float32))


@pytest.mark.parametrize("probe", ["ridge", "linear_2x2", "linear_mean", "knn"])
def test_a_class_in_every_token_is_predicted(probe):
    labels = np.arange(80) % 4
    answers = classical_answers(probe, features(labels, placed=False), labels, features(labels[::-1], placed=False), GRID)
    assert top1(answers, labels[::-1]) == 100


def test_only_probes_that_keep_positions_predict_a_position():
    """This is why the conclusions of the demo use flattened tokens."""
    labels = np.arange(160) % 4
    accuracy = {}
    for probe in ("ridge", "linear_2x2", "linear_mean"):
        answers = classical_answers(probe, features(labels, placed=True), labels, features(labels[::-1], placed=True), GRID)
        accuracy[probe] = top1(answers, labels[::-1])
    assert accuracy["ridge"] == accuracy["linear_2x2"] == 100
    assert accuracy["linear_mean"] < 60


def test_quarters_of_the_frame_are_averaged():
    """Tokens contain their own number, on a grid of 2 x 4 x 4."""
    tokens = torch.arange(32.0).reshape(1, 32, 1)
    frame = np.arange(16.0).reshape(4, 4) + 8  # the mean over both time steps
    expected = [frame[rows, columns].mean() for rows in (slice(2), slice(2, 4)) for columns in (slice(2), slice(2, 4))]
    assert arrange("linear_2x2", tokens, (2, 4, 4)).tolist() == [expected]


def test_draws_of_labels_are_balanced_and_deterministic():
    labels = np.repeat(np.arange(8), 10)
    first = draw_labelled(labels, 16, 0, 0)
    assert (np.bincount(labels[first]) == 2).all()
    assert np.array_equal(first, draw_labelled(labels, 16, 0, 0))
    assert not np.array_equal(first, draw_labelled(labels, 16, 0, 1))
    with pytest.raises(ValueError, match=r"88 labels over 8 classes are 11 clips per class .*; class 0 has 10"):
        draw_labelled(labels, 88, 0, 0)


@pytest.fixture(scope="module")
def parts(smoke, home):
    recipe = build_recipe({**smoke, "arms": ["none"]})
    torch.manual_seed(0)
    model = VideoMAE(recipe.model.dimensions, recipe.model.clip, target_eps=recipe.pretrain.target_eps)
    return recipe, model, load_clips(recipe.data, "validation")


def test_tokens_do_not_depend_on_the_batch(parts):
    recipe, model, clips = parts
    together = extract_tokens(model.encoder, clips, range(len(clips)), recipe.model, recipe.data.stride)
    alone = extract_tokens(model.encoder, clips, [5], recipe.model, recipe.data.stride)
    assert together.shape == (len(clips), 144, 96)
    torch.testing.assert_close(together[5:6], alone, atol=1e-5, rtol=1e-5)
    pooled = extract_tokens(model.encoder, clips, [5], recipe.model, recipe.data.stride, pooled=True)
    torch.testing.assert_close(pooled[:, 0], alone.mean(1), atol=1e-6, rtol=1e-5)


def test_the_error_of_the_patch_mean_equals_that_of_zero(parts):
    """A head that predicts zero has the same error if the target is normalized."""
    recipe, model, clips = parts
    torch.nn.init.zeros_(model.head.weight)
    errors = reconstruction_errors(model, clips, recipe.model, recipe.mask, recipe.data.stride)
    assert errors["reconstruction"] == pytest.approx(errors["cube_mean"], rel=1e-5)
    model.normalise_target = False
    raw = reconstruction_errors(model, clips, recipe.model, recipe.mask, recipe.data.stride)
    assert raw["cube_mean"] < raw["reconstruction"], "for raw pixels, the mean of a patch is better than zero"


@pytest.mark.parametrize(("free", "kept"), [(4.0, "cuda"), (3.9, "cpu")])
def test_tokens_stay_on_a_gpu_with_enough_memory(free, kept, monkeypatch):
    """They may use a quarter of the free memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 2**40))
    assert token_device(torch.device("cuda", 0), 2**30).type == kept


def test_tokens_computed_on_the_cpu_stay_there():
    assert token_device(torch.device("cpu"), 1) == torch.device("cpu")


def test_the_size_of_tokens(parts):
    recipe, model, clips = parts
    for pooled in (False, True):
        tokens = extract_tokens(model.encoder, clips, [0, 1, 2], recipe.model, recipe.data.stride, pooled)
        assert token_bytes(recipe.model, 3, pooled) == tokens.nbytes


def test_tokens_on_a_gpu_are_indexed_on_the_gpu():
    """Fake tensors refuse to mix devices. Batches have only rows, because a loader cannot pin tensors on a GPU."""
    settings = TrainSettings(steps=2, batch_size=2, lr=1e-3, warmup_steps=0, precision="fp32")
    with FakeTensorMode():
        tokens, device = torch.empty(4, 6, 8, device="cuda"), torch.device("cuda")
        task = AttentiveProbeTask(tokens, torch.tensor([0, 1, 0, 1]), 2, 2, settings, seed=0)
        batch = task.batch(1, range(2))
        assert {name: part.device.type for name, part in batch.items()} == {"row": "cpu", "label": "cpu"}
        assert task.loss(lambda tokens: tokens.mean(1)[:, :2], batch, device).device.type == "cuda"
        read = ReadClips([np.array([3, 7])], np.array([3, 5, 7]), tokens, np.arange(8), tokens, None, {})
        [(drawn, labels)] = read.draws()
        assert (drawn.device.type, drawn.shape, labels.tolist()) == ("cuda", (2, 6, 8), [3, 7])


def test_an_attentive_probe_uses_the_rows_of_its_batch():
    tokens, labels = torch.randn(5, 6, 8), torch.arange(5) % 2
    settings = TrainSettings(steps=4, batch_size=3, lr=1e-3, warmup_steps=0, precision="fp32")
    task = AttentiveProbeTask(tokens, labels, 2, 2, settings, seed=0)
    model, batch = task.build(), task.batch(1, range(3))
    expected = torch.nn.functional.cross_entropy(model(tokens[batch["row"]]), labels[batch["row"]])
    assert torch.equal(task.loss(model, batch, torch.device("cpu")), expected)
    assert torch.equal(batch["label"], labels[batch["row"]])
    assert sorted(row for step in range(5) for row in task.batch(step, range(3))["row"].tolist()) == sorted([*range(5)] * 3)
