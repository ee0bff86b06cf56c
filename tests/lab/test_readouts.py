"""What a probe stage does with an encoder, where that is not seen in its numbers."""

import numpy as np
import pytest
import torch

from vmae_lab.evaluation.probes import ProbeSettings
from vmae_lab.lab.stages.probe import attentive_answers
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training import metrics
from vmae_lab.training.settings import Compute


def test_attentive_probes_are_no_runs_of_a_tracker(tmp_path, monkeypatch):
    """All folders of them are called alike, and a tracker's runs go by that name."""
    monkeypatch.setattr(metrics, "tracker", lambda *_: pytest.fail("a probe is told to a tracker"))
    model = ModelSettings(size="micro", frames=4, side=16)
    tokens, labels = torch.randn(4, model.clip.tokens, model.dimensions.width), np.array([0, 1, 0, 1])
    said = attentive_answers(
        tmp_path, Compute(trackers=("wandb",)), ProbeSettings(attentive_steps=2), model, 2, 0, tokens, labels, tokens
    )
    assert said.shape == (4,)
