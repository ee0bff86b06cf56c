"""Decoder masks: which tokens the decoder rebuilds, on a clip and in numbers."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.estimate import token_table
from vmae_lab.lab.experiments.common import (
    compared,
    comparison_cells,
    difference_range,
    floor_words,
    how_compared,
    how_made,
    main_probe,
    mean_and_spread,
    test_set_interval,
    verdict_words,
)
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.pictures import masks_of_pictures, picture_clip
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import summarise
from vmae_lab.paper import DecoderMaskRow


def results_table(plan: Plan, rows: pd.DataFrame, baseline: str, paper: Mapping[str, DecoderMaskRow]) -> pd.DataFrame:
    """One line an arm: accuracies (mean ± deviation over seeds), paired difference, cost, and what the paper reports."""
    probe, labels = main_probe(plan), plan.recipe.evaluate.probe.labels or "all"
    accuracy, tuned = summarise(rows, probe), summarise(rows, "finetune")
    differences = compared(plan, rows, probe, baseline, plan.pretrained)
    cost = token_table(plan)
    lines = []
    for arm in plan.recipe.arms:
        line = {
            "decoder mask": plan.arms[arm].label,
            f"frozen, {PROBE_NAMES[probe]}, {labels} labels: top-1 %": mean_and_spread(accuracy, arm),
            **comparison_cells(differences, arm, plan.arms[baseline].label),
            f"fine-tuned, {plan.recipe.evaluate.finetune_labels or 'all'} labels: top-1 %": mean_and_spread(tuned, arm),
            "M MAC a clip": f"{cost.MMAC[arm]:.2f}" if arm in cost.index else "",
            "paper, reported: SSv2 top-1 %": f"{paper[arm].top1_percent:.2f}" if arm in paper else "",
            "paper, reported: G MAC": f"{paper[arm].giga:.2f}" if arm in paper else "",
        }
        lines.append(line)
    return pd.DataFrame(lines)


def results_caption(plan: Plan, rows: pd.DataFrame, baseline: str, citation: str) -> str:
    """How the main table was made, and where the paper's columns come from."""
    differences = compared(plan, rows, main_probe(plan), baseline, plan.pretrained)
    made = f"{how_made(plan)} {how_compared(plan, differences)}"
    return f"{made} Paper: {citation}, table 1, ViT-B, 800 epochs; not a result of this run."


def details_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """The finite test set's interval, the other readouts, reconstruction errors and what a step took, one line an arm."""
    names: dict[str, str] = {probe: f"{PROBE_NAMES[probe]}: top-1 %" for probe in plan.recipe.evaluate.probe.probes[1:]}
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
        line[f"{PROBE_NAMES[main_probe(plan)]}: 95 % interval of the test set"] = test_set_interval(plan, rows, store, arm)
        line |= {name: mean_and_spread(summaries[metric], arm, digits[metric]) for metric, name in names.items()}
        lines.append(line)
    return pd.DataFrame(lines)


def masks_on_clip(plan: Plan, clip: int) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A clip's frames uint8 `(T, H, W, 3)`, and each arm's masks on it, bool `(T', H', W')` each, by label."""
    recipe, masks = plan.recipe, dict[str, tuple[np.ndarray, np.ndarray]]()
    for arm in recipe.arms:
        if not plan.arms[arm].pretrained:
            continue
        encoder_mask, decoder_mask = (
            mask[0].reshape(recipe.model.clip.grid).numpy() for mask in masks_of_pictures(plan.first(arm).recipe)
        )
        label = plan.arms[arm].label
        for other, shown in list(masks.items()):  # arms may differ in the loss alone: one row, under the shorter name
            if np.array_equal(shown[1], decoder_mask):
                label = min(label, other, key=len)
                del masks[other]
        masks[label] = encoder_mask, decoder_mask
    return picture_clip(plan, clip)[0].permute(1, 2, 3, 0).numpy(), masks


def conclusions(plan: Plan, rows: pd.DataFrame, baseline: str, floor: str) -> list[str]:
    """What the numbers say, in words computed from them."""
    probe, words = main_probe(plan), []
    pretrained = plan.pretrained
    if floor in plan.recipe.arms and pretrained:
        words += floor_words(plan, rows, probe, floor)
        tuned = compared(plan, rows, "finetune", floor, pretrained)
        others = [
            f"{PROBE_NAMES[other]} {difference_range(compared(plan, rows, other, floor, pretrained))}"
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
        words.append(verdict_words(plan, compared(plan, rows, probe, baseline, pretrained), baseline))
    return words


def _reconstruction_words(rows: pd.DataFrame) -> str:
    """How far the held-out errors are below that of saying each cube's mean."""
    error, trivial = (summarise(rows, metric)["mean"] for metric in ("reconstruction", "cube_mean"))
    below = 100 * (1 - error / trivial)
    return (
        f"Held-out reconstruction errors lie {below.min():.1f} to {below.max():.1f} % below that of saying each cube's mean; "
        "read the masks' worth from the readouts, not from these."
    )
