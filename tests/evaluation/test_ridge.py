"""Ridge on coordinates in the span of the training rows equals scikit-learn's ridge on all columns."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from vmae_lab.evaluation import probes
from vmae_lab.evaluation.probes import ridge_answers, wide_decision

ALPHAS = np.logspace(0, 6, 13)


def clips(rows: int, columns: int, seed: int, classes: int = 8) -> tuple[torch.Tensor, np.ndarray]:
    """Return features like flattened tokens, float32: a class and many nuisance factors in separate directions, and noise."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(1)
    labels = np.arange(rows) % classes
    directions, nuisances = (fixed.normal(size=(count, columns)) for count in (classes, 20))
    offsets, scales = fixed.normal(size=columns), 10 ** fixed.uniform(-2, 1, size=columns)
    signal = 0.5 * directions[labels] + rng.normal(size=(rows, 20)) @ nuisances + 2 * rng.normal(size=(rows, columns))
    return torch.from_numpy((offsets + scales * signal).astype(np.float32)), labels


def plain() -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=ALPHAS))


def constant_columns(x: torch.Tensor) -> torch.Tensor:
    x[:, ::3] = 0.7
    return x


def duplicate_clips(x: torch.Tensor) -> torch.Tensor:
    """Repeat clips. Labels repeat every 8 rows, so that copies have the label of their original."""
    return torch.cat([x[: len(x) // 2]] * 2)


def rank_deficient(x: torch.Tensor) -> torch.Tensor:
    return x[:, :9] @ torch.randn(9, x.shape[1], generator=torch.Generator().manual_seed(0))


def large_offsets(x: torch.Tensor) -> torch.Tensor:
    return x + 1000


def as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x


CHANGES = [as_it_is, constant_columns, duplicate_clips, rank_deficient, large_offsets]


@pytest.mark.parametrize("classes", [8, 2])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("rows", "columns"), [(80, 2000), (80, 81), (80, 80), (80, 30)])
def test_predictions_equal_scikit_learns(rows, columns, change, seed, classes, monkeypatch):
    """Small blocks, so that several are summed."""
    monkeypatch.setattr(probes, "BLOCK", 50_000)
    (x, labels), (others, true) = (clips(count, columns, start, classes) for count, start in ((rows, seed), (200, seed + 100)))
    x, others = change(x), change(others)
    expected = plain().fit(x.numpy(), labels).predict(others.numpy())
    assert np.array_equal(ridge_answers(x, labels, others, ALPHAS), expected)
    if change is as_it_is and columns > 1000:
        assert (expected == true).mean() > 1.5 / classes, "agreement at chance level would prove little"


@pytest.mark.parametrize("classes", [8, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_decision_values_and_strength_equal_scikit_learns(change, classes):
    (x, labels), (others, _) = clips(80, 3000, 0, classes), clips(200, 3000, 100, classes)
    x, others = change(x), change(others)
    expected, classifier = plain().fit(x.double().numpy(), labels), RidgeClassifierCV(alphas=ALPHAS)
    values = wide_decision(classifier, x, labels, others)
    assert classifier.coef_.shape[-1] <= len(x)
    assert classifier.alpha_ == expected[-1].alpha_
    wanted = expected.decision_function(others.double().numpy())
    np.testing.assert_allclose(values.squeeze(), wanted, atol=1e-7, rtol=1e-7)


def test_columns_are_not_all_copied_to_float64(monkeypatch):
    """At the scale `gpu`, such a copy would need 7 GB."""
    x, labels = clips(40, 5000, 0)
    monkeypatch.setattr(probes, "BLOCK", 8000)
    sizes, to = [], torch.Tensor.to

    def noted(tensor, *arguments, **named):
        made = to(tensor, *arguments, **named)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch.Tensor, "to", noted)
    ridge_answers(x, labels, x[:10], ALPHAS)
    assert max(sizes) > 1000
    assert max(sizes) <= 8000


@pytest.mark.parametrize("classes", [2, 3])
def test_equal_rows_are_fitted_with_an_intercept(classes):
    """If all clips are equal, the most frequent class is predicted, as by scikit-learn."""
    labels = np.array([0, 1, *[classes - 1] * 5])
    features = torch.full((len(labels), 40), 3.0)
    expected = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=[1.0, 10.0])).fit(features.numpy(), labels)
    answers = ridge_answers(features, labels, features[:3], [1.0, 10.0])
    assert answers.tolist() == expected.predict(features[:3].numpy()).tolist() == [classes - 1] * 3
