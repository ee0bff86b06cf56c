"""Stage `probe`: frozen readouts of an encoder, also of intermediate weights and, as a control, with shuffled labels."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmae_lab.data.dataset import Clips
from vmae_lab.evaluation.classification import top1
from vmae_lab.evaluation.probes import ProbeSettings, classical_answers, extract_tokens, labelled_draws, pooled_only
from vmae_lab.evaluation.reconstruction import reconstruction_errors
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import BACKWARD, Work, reading_seconds, ridge_macs, token_counts
from vmae_lab.lab.stages.inputs import EvaluatedStage, inference
from vmae_lab.lab.stages.pretrain import PretrainStage
from vmae_lab.lab.stages.stage import HELD_OUT, WEIGHTS, Job, Stage, build
from vmae_lab.models.checkpoints import load_weights, read_weights
from vmae_lab.models.flops import pretrain_cost
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import VideoEncoder
from vmae_lab.training.checkpoint import kept_file
from vmae_lab.training.loop import train
from vmae_lab.training.settings import Compute, TrainSettings
from vmae_lab.training.tasks.attentive_probe import AttentiveProbeTask
from vmae_lab.training.tasks.finetune import encoder_state
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.seeding import derive, numpy_generator


@dataclass(frozen=True)
class ReadClips:
    """Tokens of the labeled clips in any draw, and of the held-out clips.

    `rows`: rows of the training split, one array per draw. `needed`: the rows of all draws, in the order of `tokens`.
    `counts`: what the result of the stage records.
    """

    rows: list[np.ndarray]
    needed: np.ndarray
    tokens: torch.Tensor
    labels: np.ndarray
    test_tokens: torch.Tensor
    held_out: Clips
    counts: dict[str, Any]

    def draws(self) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Yield the tokens `(n, N, D)` and labels `(n,)` of each draw."""
        for rows in self.rows:
            chosen = torch.from_numpy(np.searchsorted(self.needed, rows))
            yield self.tokens[chosen.to(self.tokens.device)], self.labels[rows]


class ProbeStage(EvaluatedStage):
    """Accuracy of frozen readouts, and the reconstruction error if the input is a pre-training.

    `step`: evaluate the weights that the pre-training kept after this step. `labels_shuffled`: shuffle the labels between the
    labeled clips (a control).
    """

    kind = "probe"
    reads = ("train", HELD_OUT)

    seed: int
    probe: ProbeSettings
    step: int | None = None
    labels_shuffled: bool = False

    def run(self, job: Job) -> dict[str, Any]:
        weights = job.inputs[0] / (kept_file(self.step) if self.step else WEIGHTS)
        read = self.read(load_encoder(self.model, weights), job.compute, pooled_only(self.probe.probes))
        accuracies: dict[str, list[float]] = {probe: [] for probe in self.probe.probes}
        for draw, (tokens, labels) in enumerate(read.draws()):
            if self.labels_shuffled:
                labels = numpy_generator(self.seed, "shuffled labels", draw).permutation(labels)
            for probe in self.probe.probes:
                if probe == "attentive":
                    predicted = attentive_answers(
                        job.folder / f"attentive-{draw}", job.compute, self.probe, self.model, self.data.classes,
                        derive(self.seed, "attentive probe", draw), tokens, labels, read.test_tokens,
                    )  # fmt: skip
                else:
                    predicted = classical_answers(probe, tokens, labels, read.test_tokens, self.model.clip.grid)
                accuracies[probe].append(top1(predicted, read.held_out.labels))
        metrics = {probe: float(np.mean(values)) for probe, values in accuracies.items()}
        if source := self.reconstructed:
            model = VideoMAE.from_pretrained(job.inputs[0]).to(process_state().device)
            metrics |= reconstruction_errors(
                model, read.held_out, source.model, source.mask, self.data.stride, inference(job.compute)
            )
        return {"metrics": metrics, "draws": accuracies, **read.counts}

    def remove_checkpoints(self, folder: Path) -> None:
        super().remove_checkpoints(folder)
        for probe in folder.glob("attentive-*"):
            shutil.rmtree(probe)

    def read(self, encoder: VideoEncoder, compute: Compute, pooled: bool = False) -> ReadClips:
        """Extract the tokens of the labeled and of the held-out clips; only their means if `pooled`."""
        labelled = self.clips("train", self.evaluated_sources, compute)
        held_out, counts = self.held_out_clips(compute)
        drawn = labelled_draws(labelled.labels, self.probe, self.data.seed)
        draws, needed, unlabelled = self.readable_draws(labelled, drawn, compute)
        tokens, test_tokens = (
            extract_tokens(encoder, clips, rows, self.model, self.data.stride, pooled, inference(compute))
            for clips, rows in ((labelled, needed.tolist()), (held_out, range(len(held_out))))
        )
        return ReadClips(draws, needed, tokens, labelled.labels, test_tokens, held_out, {**counts, **unlabelled})

    @property
    def reconstructed(self) -> PretrainStage | None:
        """The pre-training whose reconstruction error is measured too, with its final weights and its own masks."""
        source = self.inputs[0]
        return source if isinstance(source, PretrainStage) and not (self.step or self.labels_shuffled) else None

    @property
    def drawn_labels(self) -> dict[str, int | None]:
        return {"evaluate.probe.labels": self.probe.labels}

    @property
    def macs(self) -> float:
        return self.clip_macs * ((self.probe.labels or 0) * self.probe.draws + self.held_out_count)

    @property
    def work(self) -> Work:
        """Tokens of labeled and held-out clips, the readouts of every draw, and the reconstruction after a pre-training."""
        probe, width, tokens, clips = self.probe, self.model.dimensions.width, self.model.clip.tokens, self.held_out_count
        labels, macs, trained_steps = probe.labels or 0, self.macs, 0
        columns = {"ridge": width * tokens, "linear_2x2": 4 * width, "linear_mean": width}
        solved = sum(ridge_macs(labels, columns[name], clips, self.data.classes) for name in probe.probes if name in columns)
        read = labels * probe.draws + clips
        if "attentive" in probe.probes:
            trained_steps = probe.draws * probe.attentive_steps
            pooling = 2 * tokens * width * (width + 1) + 10 * width**2  # keys and values of all tokens; one query and its MLP
            macs += pooling * (BACKWARD * trained_steps * min(32, labels) + probe.draws * clips)
        if source := self.reconstructed:
            counts = token_counts(source.mask, self.model.clip)
            cost = pretrain_cost(self.model.dimensions, self.model.clip, counts.visible, counts.decoded, embed_visible=True)
            macs += clips * cost.macs
            read += clips
        reading_s = read * reading_seconds(self.model, self.data)
        return Work(prediction=macs, readout=probe.draws * solved, layer_steps=2 * trained_steps, reading_s=reading_s)


def probe_stage(recipe: Recipe, encoder: Stage, seed: int) -> Stage:
    """Build a stage that evaluates frozen readouts of an encoder."""
    return build(ProbeStage, recipe, encoder, seed=seed)


def kept_probe_stage(recipe: Recipe, encoder: Stage, seed: int, step: int) -> Stage:
    """Build a probe of the weights that a pre-training kept after a step: the main readout, and those of mean tokens."""
    probes = recipe.evaluate.probe.probes
    cheap = tuple(probe for probe in probes if probe == probes[0] or pooled_only([probe]))
    settings = recipe.evaluate.probe.model_copy(update={"probes": cheap})
    return build(ProbeStage, recipe, encoder, seed=seed, probe=settings, step=step)


def shuffled_probe_stage(recipe: Recipe, encoder: Stage, seed: int) -> Stage:
    """Build a control: the main frozen readout of an encoder, with labels shuffled between the labeled clips."""
    settings = recipe.evaluate.probe.model_copy(update={"probes": recipe.evaluate.probe.probes[:1]})
    return build(ProbeStage, recipe, encoder, seed=seed, probe=settings, labels_shuffled=True)


def load_encoder(model: ModelSettings, weights: Path) -> VideoEncoder:
    """Load the encoder of a pre-trained or untrained model on the device, with its final LayerNorm if it has one.

    Encoders of classifiers and of transformers' pre-training models have none.
    """
    state = encoder_state(read_weights(weights))
    encoder = VideoEncoder(model.dimensions, model.clip, norm="trunk.norm.weight" in state)
    load_weights(encoder, state, str(weights))
    return encoder.to(process_state().device).eval()


def attentive_answers(
    folder: Path, compute: Compute, settings: ProbeSettings, model: ModelSettings, classes: int, seed: int,
    tokens: torch.Tensor, labels: np.ndarray, test_tokens: torch.Tensor,
) -> np.ndarray:  # fmt: skip
    """Train an attentive probe on labeled tokens `(n, N, D)` in its folder. Return its classes of the others, int64 `(m,)`."""
    training = TrainSettings(
        steps=settings.attentive_steps, batch_size=min(32, len(labels)), lr=settings.attentive_lr,
        warmup_steps=settings.attentive_steps // 10, precision="fp32",
    )  # fmt: skip
    task = AttentiveProbeTask(tokens, torch.from_numpy(labels), model.dimensions.heads, classes, training, seed)
    quiet = compute.model_copy(update={"tensorboard": False, "trackers": (), "workers": 0})  # batches are tokens
    head = train(task, folder, quiet, progress=False).model.eval()
    with torch.no_grad():
        parts = [head(part.to(process_state().device)).argmax(1).cpu() for part in test_tokens.split(256)]
    return torch.cat(parts).numpy()
