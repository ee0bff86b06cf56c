"""Effects of a probe stage that its numbers do not show."""

import numpy as np
import pytest
import torch

from vmae_lab.evaluation.probes import ProbeSettings
from vmae_lab.lab.stages.probe import attentive_answers
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training import metrics
from vmae_lab.training.settings import Compute


def test_attentive_probes_are_not_runs_of_a_tracker(tmp_path, monkeypatch):
    """Their folders have equal names, which a tracker would use for its runs."""
    monkeypatch.setattr(metrics, "tracker", lambda *_: pytest.fail("a probe is sent to a tracker"))
    model = ModelSettings(size="micro", frames=4, side=16)
    tokens, labels = torch.randn(4, model.clip.tokens, model.dimensions.width), np.array([0, 1, 0, 1])
    said = attentive_answers(
        tmp_path, Compute(trackers=("wandb",)), ProbeSettings(attentive_steps=2), model, 2, 0, tokens, labels, tokens
    )
    assert said.shape == (4,)
