"""Decoder masks: which tokens the decoder rebuilds, on a clip and in numbers."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from einops import rearrange

from vmae_lab.data.clips import Clips, load_clips
from vmae_lab.data.evaluated import middle_clips, readable
from vmae_lab.evaluation.metrics import wilson_interval
from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.ablation import Plan, paired_differences, summarise
from vmae_lab.lab.cost import token_table
from vmae_lab.lab.presentation.common import (
    difference_cell,
    difference_range,
    differences_to,
    floor_words,
    how_made,
    main_probe,
    mean_and_spread,
    verdict,
)
from vmae_lab.lab.recipe import Recipe
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.stages import WEIGHTS
from vmae_lab.masking import draw_masks
from vmae_lab.models.checkpoints import load_weights, read_weights
from vmae_lab.models.sizes import ClipShape
from vmae_lab.models.videomae import VideoMAE, cube_statistics
from vmae_lab.paper import DecoderMaskRow
from vmae_lab.randomness import torch_generator


def results_table(plan: Plan, rows: pd.DataFrame, baseline: str, paper: Mapping[str, DecoderMaskRow]) -> pd.DataFrame:
    """One line an arm: accuracies (mean ± deviation over seeds), paired difference, cost, and what the paper reports."""
    probe, labels = main_probe(plan), plan.recipe.evaluate.probe.labels or "all"
    accuracy, tuned = summarise(rows, probe), summarise(rows, "finetune")
    differences = differences_to(plan, rows, probe, baseline)
    cost = token_table(plan)
    lines = []
    for arm in plan.recipe.arms:
        line = {
            "decoder mask": plan.arms[arm].label,
            f"frozen, {PROBE_NAMES[probe]}, {labels} labels: top-1 %": mean_and_spread(accuracy, arm),
            f"difference to {plan.arms[baseline].label} [95 %]": difference_cell(differences, arm),
            f"fine-tuned, {plan.recipe.evaluate.finetune_labels or 'all'} labels: top-1 %": mean_and_spread(tuned, arm),
            "M MAC a clip": f"{cost.MMAC[arm]:.2f}" if arm in cost.index else "",
            "paper, reported: SSv2 top-1 %": f"{paper[arm].top1_percent:.2f}" if arm in paper else "",
            "paper, reported: G MAC": f"{paper[arm].giga:.2f}" if arm in paper else "",
        }
        lines.append(line)
    return pd.DataFrame(lines)


def results_caption(plan: Plan, citation: str) -> str:
    """How the main table was made, and where the paper's columns come from."""
    return f"{how_made(plan)} Paper: {citation}, table 1, ViT-B, 800 epochs; not a result of this run."


def details_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """The finite test set's interval, the other readouts, reconstruction errors and what a step took, one line an arm."""
    names = {probe: f"{PROBE_NAMES[probe]}: top-1 %" for probe in plan.recipe.evaluate.probe.probes[1:]}
    digits = dict.fromkeys(names, 1)
    others = {
        "reconstruction": "reconstruction error",
        "cube_mean": "error of the cube mean",
        "pretrain_seconds_per_step": "seconds a step",
        "pretrain_peak_memory_mib": "peak GPU memory, MiB",
    }
    names |= {metric: name for metric, name in others.items() if metric in set(rows.metric)}
    digits |= {"reconstruction": 4, "cube_mean": 4, "pretrain_seconds_per_step": 3, "pretrain_peak_memory_mib": 0}
    summaries = {metric: summarise(rows, metric) for metric in names}
    lines = []
    for arm in plan.recipe.arms:
        line = {"decoder mask": plan.arms[arm].label}
        line[f"{PROBE_NAMES[main_probe(plan)]}: 95 % interval of the test set"] = _test_set_interval(plan, rows, store, arm)
        line |= {name: mean_and_spread(summaries[metric], arm, digits[metric]) for metric, name in names.items()}
        lines.append(line)
    return pd.DataFrame(lines)


def example_clips(plan: Plan) -> Clips:
    """The clips that pictures are drawn from: the evaluated split."""
    recipe = plan.recipe
    return load_clips(recipe.data, recipe.evaluate.split, recipe.evaluate.sources)


def picture_clip(plan: Plan, clip: int) -> torch.Tensor:
    """The middle of one clip, to be shown: uint8 `(1, C, T, H, W)`. Where missing ones are skipped, the next that can be read.

    Raises MissingVideos.
    """
    clips, recipe = example_clips(plan), plan.recipe
    shape = (recipe.model.frames, recipe.data.stride, recipe.model.side)
    if recipe.evaluate.missing == "skip":
        clip = next((row for row in range(clip, len(clips)) if readable(clips, [row], *shape)[0]), clip)
    return middle_clips(clips, [clip], *shape)


def masks_on_clip(plan: Plan, clip: int) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A clip's frames uint8 `(T, H, W, 3)`, and each arm's masks on it, bool `(T', H', W')` each, by label."""
    recipe, masks = plan.recipe, {}
    for arm in recipe.arms:
        if not plan.arms[arm].pretrained:
            continue
        drawn = tuple(mask[0].reshape(recipe.model.clip.grid).numpy() for mask in _draw(plan.first(arm).recipe, 1))
        label = plan.arms[arm].label
        for other, shown in list(masks.items()):  # arms may differ in the loss alone: one row, under the shorter name
            if np.array_equal(shown[1], drawn[1]):
                label = min(label, other, key=len)
                del masks[other]
        masks[label] = drawn
    return picture_clip(plan, clip)[0].permute(1, 2, 3, 0).numpy(), masks


@torch.no_grad()
def reconstructions(plan: Plan, store: RunStore, arm: str, clip: int) -> dict[str, np.ndarray]:
    """Strips for one clip: original, what the encoder sees, cube means, and the reconstruction; one frame a time step.

    With a normalised target the model says nothing of a cube's mean and deviation: they are taken from the true cube,
    which flatters the picture, so the cube means stand beside it as what the truth alone gives. Every hidden cube is decoded.
    """
    cell = plan.first(arm)
    recipe = cell.recipe
    settings, pretrain = recipe.model, recipe.pretrain
    model = VideoMAE(settings.dimensions, settings.clip, pretrain.normalise_target, pretrain.target_eps)
    path = store.folder(cell.encoder) / WEIGHTS
    load_weights(model, read_weights(path), str(path))
    model = model.to(PartialState().device).eval()
    video = picture_clip(plan, clip).to(PartialState().device)
    encoder_mask, _ = _draw(recipe, 1)
    prediction, decoded = model(video, encoder_mask)
    raw = model.pixels_at(video, decoded)
    mean, deviation = cube_statistics(raw)
    filled = prediction.reshape(raw.shape)
    if pretrain.normalise_target:
        filled = filled * (deviation + pretrain.target_eps) + mean
    frames = {"original": video[0].permute(1, 2, 3, 0).cpu().numpy()}
    grey = torch.full_like(raw, 0.55)
    for name, values in (("encoder sees", grey), ("cube means", mean.expand_as(raw)), ("reconstruction", filled)):
        frames[name] = _paste(frames["original"], values[0].cpu().numpy(), decoded[0].cpu().numpy(), settings.clip)
    return {name: strip[:: settings.tubelet] for name, strip in frames.items()}


def conclusions(plan: Plan, rows: pd.DataFrame, baseline: str, floor: str) -> list[str]:
    """What the numbers say, in words computed from them."""
    probe, words = main_probe(plan), []
    pretrained = plan.pretrained
    if floor in plan.recipe.arms and pretrained:
        words += floor_words(plan, rows, probe, floor)
        tuned = paired_differences(rows, "finetune", floor).loc[pretrained]
        others = [
            f"{PROBE_NAMES[other]} {difference_range(paired_differences(rows, other, floor).loc[pretrained])}"
            for other in plan.recipe.evaluate.probe.probes[1:]
        ]
        if others:
            words.append(f"The other readouts change by: {'; '.join(others)} points.")
        words.append(
            f"Against training from scratch, pre-training changes the accuracy after fine-tuning "
            f"({plan.recipe.evaluate.finetune_labels or 'all'} labels) by {difference_range(tuned)} points."
        )
    words.append(_reconstruction_words(rows))
    if baseline in pretrained and len(pretrained) > 1:
        words.append(verdict(plan, paired_differences(rows, probe, baseline), pretrained, baseline, "decoder mask"))
    return words


def _test_set_interval(plan: Plan, rows: pd.DataFrame, store: RunStore, arm: str) -> str:
    """Wilson interval of an arm's mean accuracy: what the finite number of held-out clips leaves open, seeds apart."""
    clips = store.result(plan.first(arm).measures["probe"])["test_clips"]
    low, high = wilson_interval(round(summarise(rows, main_probe(plan))["mean"][arm] / 100 * clips), clips)
    return f"{low:.1f} to {high:.1f}"


def _reconstruction_words(rows: pd.DataFrame) -> str:
    """How far the held-out errors are below that of saying each cube's mean."""
    error, trivial = (summarise(rows, metric)["mean"] for metric in ("reconstruction", "cube_mean"))
    below = 100 * (1 - error / trivial)
    return (
        f"Held-out reconstruction errors lie {below.min():.1f} to {below.max():.1f} % below that of saying each cube's mean; "
        "read the masks' worth from the readouts, not from these."
    )


def _paste(frames: np.ndarray, values: np.ndarray, positions: np.ndarray, clip: ClipShape) -> np.ndarray:
    """Frames with some cubes replaced: uint8 `(T, H, W, 3)`, float `(M, t*p*p, 3)` in [0, 1], int `(M,)`."""
    (time, height, width), patch = clip.grid, clip.patch
    layout = "(t k) (h p) (w q) c -> (t h w) (k p q) c"
    tokens = rearrange(frames, layout, k=clip.tubelet, p=patch, q=patch).copy()
    tokens[positions] = (255 * values.clip(0, 1)).round()
    back = "(t h w) (k p q) c -> (t k) (h p) (w q) c"
    return rearrange(tokens, back, t=time, h=height, w=width, k=clip.tubelet, p=patch, q=patch)


def _draw(recipe: Recipe, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generators = (torch_generator(0, f"picture {side} mask") for side in ("encoder", "decoder"))
    return draw_masks(recipe.mask, recipe.model.clip.grid, batch, *generators)
