"""Learning rates in the settings of a run."""

import pytest
from pydantic import ValidationError

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages import pretrain_stage
from vmae_lab.training.settings import TrainSettings

SETTINGS = {"steps": 100, "batch_size": 2048, "lr": 1.5e-4, "lr_reference_batch": 256, "min_lr": 1e-5, "warmup_steps": 10}


@pytest.mark.parametrize(("scaled", "lowest"), [(False, 1e-5), (True, 8e-5)])
def test_scale_min_lr(scaled, lowest):
    settings = TrainSettings(**SETTINGS, scale_min_lr=scaled)
    assert settings.lr_at(100) == pytest.approx(lowest)
    assert settings.lr_at(10) == pytest.approx(1.2e-3)
    assert settings.lr_at(0) == 0
    assert all(settings.lr_at(step) > lowest for step in range(10, 100))


def test_the_lowest_learning_rate_is_at_most_the_peak():
    for scaled in (False, True):
        settings = TrainSettings(**{**SETTINGS, "min_lr": 1.0}, scale_min_lr=scaled)
        assert settings.lr_at(10) == settings.lr_at(100) == settings.peak_lr


def test_scale_min_lr_needs_a_reference_batch():
    with pytest.raises(ValidationError, match="lr_reference_batch"):
        TrainSettings(**{**SETTINGS, "lr_reference_batch": None}, scale_min_lr=True)


def test_scale_min_lr_changes_the_stage_key_only_if_set(smoke):
    recipe = Recipe(**{**smoke, "arms": ["x"]})
    reference = recipe.with_overrides({"pretrain.lr_reference_batch": 8})
    stage, scaled = (pretrain_stage(reference.with_overrides({"pretrain.scale_min_lr": on}), 0) for on in (False, True))
    assert "scale_min_lr" not in stage.settings["pretrain"]
    assert stage.key == pretrain_stage(reference, 0).key != scaled.key
