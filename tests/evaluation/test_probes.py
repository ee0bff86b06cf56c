"""The readouts on features whose answer is known, and draws of labels that arms share."""

import numpy as np
import pytest
import torch

from vmae_lab.data.clips import load_clips
from vmae_lab.evaluation.metrics import top1
from vmae_lab.evaluation.probes import arrange, draw_labelled, extract_tokens, fit_classical
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.lab.recipe import build_recipe
from vmae_lab.models.videomae import VideoMAE


def features(labels: np.ndarray, placed: bool) -> np.ndarray:
    """Tokens `(n, 4, 8)`: the class as a vector, in every token, or (placed) told only by which token holds one mark."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(scale=0.1, size=(len(labels), 4, 8))
    for i, label in enumerate(labels):
        if placed:
            tokens[i, label % 4, 0] += 3
        else:
            tokens[i, :, label] += 3
    return tokens.astype(np.float32)


@pytest.mark.parametrize("probe", ["ridge", "linear_mean", "knn"])
def test_a_class_that_every_token_shows_is_read(probe):
    labels = np.arange(80) % 4
    readout = fit_classical(probe, features(labels, placed=False), labels)
    assert top1(readout.predict(arrange(probe, features(labels[::-1], placed=False))), labels[::-1]) == 100


def test_only_readouts_that_keep_places_read_a_place():
    """Why the demo's conclusions are drawn from flattened tokens."""
    labels = np.arange(160) % 4
    accuracy = {}
    for probe in ("ridge", "linear_mean"):
        readout = fit_classical(probe, features(labels, placed=True), labels)
        accuracy[probe] = top1(readout.predict(arrange(probe, features(labels[::-1], placed=True))), labels[::-1])
    assert accuracy["ridge"] == 100
    assert accuracy["linear_mean"] < 60


def test_draws_of_labels_are_balanced_repeatable_and_different():
    labels = np.repeat(np.arange(8), 10)
    first = draw_labelled(labels, 16, 0, 0)
    assert (np.bincount(labels[first]) == 2).all()
    assert np.array_equal(first, draw_labelled(labels, 16, 0, 0))
    assert not np.array_equal(first, draw_labelled(labels, 16, 0, 1))
    with pytest.raises(ValueError, match=r"88 labels over 8 classes need 11 clips of each .* there are 10 of class 0"):
        draw_labelled(labels, 88, 0, 0)


@pytest.fixture(scope="module")
def parts(smoke, home):
    recipe = build_recipe({**smoke, "arms": ["none"]})
    torch.manual_seed(0)
    model = VideoMAE(recipe.model.dimensions, recipe.model.clip, target_eps=recipe.pretrain.target_eps)
    return recipe, model, load_clips(recipe.data, "validation")


def test_tokens_do_not_depend_on_the_batch_they_are_in(parts):
    recipe, model, clips = parts
    together = extract_tokens(model.encoder, clips, range(len(clips)), recipe.model, recipe.data.stride)
    alone = extract_tokens(model.encoder, clips, [5], recipe.model, recipe.data.stride)
    assert together.shape == (len(clips), 144, 96)
    torch.testing.assert_close(together[5:6], alone, atol=1e-5, rtol=1e-5)
    pooled = extract_tokens(model.encoder, clips, [5], recipe.model, recipe.data.stride, pooled=True)
    torch.testing.assert_close(pooled[:, 0], alone.mean(1), atol=1e-6, rtol=1e-5)


def test_the_error_of_the_cube_mean_is_that_of_saying_zero(parts):
    """A head that says zero has just that error where the target is normalised."""
    recipe, model, clips = parts
    torch.nn.init.zeros_(model.head.weight)
    errors = reconstruction_errors(model, clips, recipe.model, recipe.mask, recipe.data.stride)
    assert errors["reconstruction"] == pytest.approx(errors["cube_mean"], rel=1e-5)
    model.normalise_target = False
    raw = reconstruction_errors(model, clips, recipe.model, recipe.mask, recipe.data.stride)
    assert raw["cube_mean"] < raw["reconstruction"], "of raw pixels a cube's mean says more than zero does"
