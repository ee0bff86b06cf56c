"""What a probe stage does with an encoder beside closed forms: train an attentive readout, and measure reconstruction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from vmae_lab.data.clips import Clips
from vmae_lab.evaluation.probes import ProbeSettings
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import load_weights, read_weights
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.loop import Compute, TrainSettings, train
from vmae_lab.training.pretrain import PretrainSettings
from vmae_lab.training.probe import AttentiveProbeTask


def attentive_answers(
    folder: Path, compute: Compute, settings: ProbeSettings, model: ModelSettings, classes: int, seed: int,
    tokens: torch.Tensor, labels: np.ndarray, test_tokens: torch.Tensor,
) -> np.ndarray:  # fmt: skip
    """Train an attentive probe on labelled tokens `(n, N, D)`, in its folder, and name the classes of others: int64 `(m,)`."""
    training = TrainSettings(
        steps=settings.attentive_steps, batch_size=min(32, len(labels)), lr=settings.attentive_lr,
        warmup_steps=settings.attentive_steps // 10, precision="fp32",
    )  # fmt: skip
    task = AttentiveProbeTask(tokens, torch.from_numpy(labels), model.dimensions.heads, classes, training, seed)
    quiet = compute.model_copy(update={"tensorboard": False})
    head = train(task, folder, quiet, progress=False).model.eval()
    with torch.no_grad():
        parts = [head(part.to(PartialState().device)).argmax(1).cpu() for part in test_tokens.split(256)]
    return torch.cat(parts).numpy()


def pretrained_errors(weights: Path, settings: Mapping[str, Any], held_out: Clips, stride: int) -> dict[str, float]:
    """Held-out reconstruction errors of a pre-trained model, under the masks of its own stage's `settings`."""
    model_settings, recipe = ModelSettings(**settings["model"]), PretrainSettings(**settings["pretrain"])
    model = VideoMAE(model_settings.dimensions, model_settings.clip, recipe.normalise_target, recipe.target_eps)
    load_weights(model, read_weights(weights), str(weights))
    model = model.to(PartialState().device).eval()
    return reconstruction_errors(model, held_out, model_settings, MaskSettings(**settings["mask"]), stride)
