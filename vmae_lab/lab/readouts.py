"""What a probe stage does with an encoder: read clips with it, train an attentive readout, and measure reconstruction."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmae_lab.data.dataset import Clips, DataSettings
from vmae_lab.evaluation.probes import ProbeSettings, extract_tokens, labelled_draws
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.lab.loading import held_out_clips, load_split, readable_draws
from vmae_lab.masking import MaskSettings
from vmae_lab.models.checkpoints import load_weights, read_weights
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import VideoEncoder
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute, TrainSettings
from vmae_lab.training.tasks.attentive_probe import AttentiveProbeTask
from vmae_lab.training.tasks.finetune import encoder_state
from vmae_lab.training.tasks.pretrain import PretrainSettings
from vmae_lab.utils.processes import process_state


@dataclass(frozen=True)
class ReadClips:
    """Clips as an encoder reads them: the labelled ones that any draw needs, and those a readout is judged on.

    `rows` of the draws are rows of the training split, of which `needed` were read; `said` goes into a stage's result.
    """

    rows: list[np.ndarray]
    needed: np.ndarray
    tokens: torch.Tensor
    labels: np.ndarray
    test_tokens: torch.Tensor
    held_out: Clips
    said: dict[str, Any]

    def draws(self) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Each draw's tokens `(n, N, D)` and labels `(n,)`."""
        for rows in self.rows:
            chosen = torch.from_numpy(np.searchsorted(self.needed, rows))
            yield self.tokens[chosen.to(self.tokens.device)], self.labels[rows]


def read_with(encoder: VideoEncoder, settings: Mapping[str, Any], compute: Compute, pooled: bool) -> ReadClips:
    """What the readouts of a probe stage are fitted to and judged on, by its `settings`; mean tokens alone where `pooled`."""
    model, probe = ModelSettings(**settings["model"]), ProbeSettings(**settings["probe"])
    data, labelled = load_split(settings, "train", settings["sources"], compute)
    held_out, said = held_out_clips(settings, settings["sources"], compute)
    draws = labelled_draws(labelled.labels, probe, data.seed)
    draws, needed, unlabelled = readable_draws(settings, labelled, draws)
    tokens = extract_tokens(encoder, labelled, needed.tolist(), model, data.stride, pooled)
    test_tokens = extract_tokens(encoder, held_out, range(len(held_out)), model, data.stride, pooled)
    return ReadClips(draws, needed, tokens, labelled.labels, test_tokens, held_out, {**said, **unlabelled})


def load_encoder(model: ModelSettings, weights: Path) -> VideoEncoder:
    """The encoder of a pre-training's or an untrained model's weights, on the device, with its final LayerNorm."""
    encoder = VideoEncoder(model.dimensions, model.clip)
    load_weights(encoder, encoder_state(read_weights(weights)), str(weights))
    return encoder.to(process_state().device).eval()


def load_classifier(settings: Mapping[str, Any], weights: Path) -> VideoClassifier:
    """The classifier that a fine-tuning stage with these `settings` has left, on the device."""
    model, data = ModelSettings(**settings["model"]), DataSettings(**settings["data"])
    classifier = VideoClassifier(model.dimensions, model.clip, data.classes, settings["finetune"]["readout"])
    load_weights(classifier, read_weights(weights), str(weights))
    return classifier.to(process_state().device).eval()


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
    quiet = compute.model_copy(update={"tensorboard": False, "trackers": (), "workers": 0})  # batches are rows of the tokens
    head = train(task, folder, quiet, progress=False).model.eval()
    with torch.no_grad():
        parts = [head(part.to(process_state().device)).argmax(1).cpu() for part in test_tokens.split(256)]
    return torch.cat(parts).numpy()


def pretrained_errors(weights: Path, settings: Mapping[str, Any], held_out: Clips, stride: int) -> dict[str, float]:
    """Held-out reconstruction errors of a pre-trained model, under the masks of its own stage's `settings`."""
    model_settings, recipe = ModelSettings(**settings["model"]), PretrainSettings(**settings["pretrain"])
    model = VideoMAE(model_settings.dimensions, model_settings.clip, recipe.normalise_target, recipe.target_eps)
    load_weights(model, read_weights(weights), str(weights))
    model = model.to(process_state().device).eval()
    return reconstruction_errors(model, held_out, model_settings, MaskSettings(**settings["mask"]), stride)
