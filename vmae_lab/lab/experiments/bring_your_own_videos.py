"""Own videos: what a short pre-training makes of them, in pictures and numbers, and how far these are to be trusted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vmae_lab.evaluation.probes import PROBE_NAMES, classical_answers
from vmae_lab.evaluation.retrieval import FEWEST
from vmae_lab.lab.config import RecipeError
from vmae_lab.lab.experiments.common import (
    clips_words,
    compared,
    comparison_cells,
    gain_words,
    how_compared,
    how_made,
    main_probe,
    mean_and_spread,
    test_set_interval,
)
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.labels import short
from vmae_lab.lab.plots.maps import SHOWN
from vmae_lab.lab.plots.pictures import clip_frames, example_clips, names_of, random_clips, reconstructions
from vmae_lab.lab.readouts import load_encoder, read_with
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import WEIGHTS
from vmae_lab.lab.statistics import summarise
from vmae_lab.utils.distributed import fixed_threads

NAMED = 10  # mixed-up pairs of classes that a table names


def shown_clips(plan: Plan, count: int) -> list[int]:
    """Rows of some clips to look at, drawn by the first seed. Raises RecipeError if too few can be read."""
    rows = random_clips(plan, max(count, FEWEST))
    if len(rows) < FEWEST:
        split = plan.recipe.evaluate.split if plan.recipe.data.labelled else "pretrain"
        raise RecipeError(
            f"the {split} split has {len(rows)} videos that can be read; {FEWEST} at least are needed to compare clips with "
            "each other: list more videos, or hold out a larger part (data.lists.hold_out)"
        )
    return rows[:count]


def clip_strips(plan: Plan, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Frames of some example clips, each under its class (or source, where there are several) and file."""
    clips, strips = example_clips(plan), clip_frames(plan, rows)
    told = plan.recipe.data.labelled or len(plan.recipe.data.sources) > 1
    names = [f"{short(name, 30)}\n" if told else "" for name in names_of(plan, clips, rows)]
    return {
        f"{place}. {name}{short(Path(clips.name(row)).name, 30)}": strip
        for place, (name, row, strip) in enumerate(zip(names, rows, strips, strict=True), 1)
    }


def rebuilt_strips(plan: Plan, store: RunStore, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Reconstructions of some example clips by the pre-trained arm, numbered, one below the other."""
    arm = plan.pretrained[0]
    return {
        f"{place}. {name}": strip
        for place, row in enumerate(rows, 1)
        for name, strip in reconstructions(plan, store, arm, row).items()
    }


def results_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """One line an arm: the main readout with its paired difference and the test set's own interval, then the others."""
    probe, *others = plan.recipe.evaluate.probe.probes
    accuracy, differences = summarise(rows, probe), compared(plan, rows, probe, "untrained")
    lines = []
    for arm in plan.possible:
        lines.append({
            "encoder": plan.arms[arm].label, f"{PROBE_NAMES[probe]}: top-1 %": mean_and_spread(accuracy, arm),
            **comparison_cells(differences, arm, "the untrained one"),
            "95% interval of the test set": test_set_interval(plan, rows, store, arm),
            **{f"{PROBE_NAMES[name]}: top-1 %": mean_and_spread(summarise(rows, name), arm) for name in others},
        })  # fmt: skip
    return pd.DataFrame(lines)


def results_caption(plan: Plan, rows: pd.DataFrame) -> str:
    """How the readouts' table was made, and what is right without looking."""
    labels = example_clips(plan).labels
    commonest = 100 * np.bincount(labels).max() / len(labels)
    return (
        f"{how_made(plan)} By chance {100 / plan.recipe.data.classes:.1f} % are right, always naming the commonest class of "
        f"the split {commonest:.1f} %. {how_compared(plan, compared(plan, rows, main_probe(plan), 'untrained'))}"
    )


def confusion(plan: Plan, store: RunStore, arm: str) -> np.ndarray:
    """Answers of an arm's ridge readout on the held-out clips, over all seeds and draws: int64, class x answer.

    The answers are made again from the stages' encoders, labels and clips.
    """
    counts = np.zeros((plan.recipe.data.classes,) * 2, dtype=np.int64)
    for cell in (cell for cell in plan.cells if cell.arm == arm):
        with fixed_threads(plan.recipe.compute.threads):
            encoder = load_encoder(cell.recipe.model, store.folder(cell.encoder) / WEIGHTS)
            read = read_with(encoder, cell.measures["probe"].settings, plan.recipe.compute, pooled=False)
            for tokens, labels in read.draws():
                answers = classical_answers("ridge", tokens, labels, read.test_tokens, cell.recipe.model.clip.grid)
                np.add.at(counts, (read.held_out.labels, answers), 1)
    return counts


def confused_table(plan: Plan, counts: np.ndarray) -> pd.DataFrame:
    """The pairs of classes that are mixed up most often: part of a class's answers, most frequent first."""
    names, mixed = plan.recipe.data.class_names, counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-mixed, axis=None, kind="stable")[:NAMED]
    pairs = zip(*np.unravel_index(order, mixed.shape), strict=True)
    lines = [
        {
            "class": names[true], "taken for": names[answer], "answers": int(mixed[true, answer]),
            "of the class's answers, %": f"{100 * mixed[true, answer] / counts[true].sum():.0f}",
        }
        for true, answer in pairs if mixed[true, answer]
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["class", "taken for", "answers", "of the class's answers, %"])


def confusion_caption(plan: Plan, counts: np.ndarray) -> str:
    """Whose answers the matrix holds."""
    probe, arm = plan.recipe.evaluate.probe, plan.arms[plan.pretrained[0]].label
    draws = f" and {probe.draws} draws of {probe.labels} labels" if probe.labels else ", all labels"
    most = f" The {SHOWN} classes with most clips." if (counts.sum(1) > 0).sum() > SHOWN else ""
    return (
        f"Answers of the ridge readout on flattened tokens of '{arm}' on the {plan.recipe.evaluate.split} split, in % of a "
        f"class's clips, numbers of answers in brackets; added up over {len(plan.recipe.seeds)} seeds{draws}.{most}"
    )


def rebuilt_caption(plan: Plan) -> str:
    """What the reconstructions are of, and what they owe to the truth."""
    kind = "held-out" if plan.recipe.data.labelled else "random (perhaps seen in training)"
    return (
        f"The first two of the {kind} clips below, rebuilt by '{plan.arms[plan.pretrained[0]].label}', seed "
        f"{plan.recipe.seeds[0]}; cube means and contrast are the truth's."
    )


def conclusions(plan: Plan, rows: pd.DataFrame, store: RunStore) -> list[str]:
    """What the numbers say, in words computed from them; without labels what was done, and that nothing was scored."""
    words = _replaced_words(plan, store)
    if not plan.recipe.data.labelled:
        words.append("Without labels nothing is scored: the losses fall or do not, and the pictures are for looking.")
        return words
    probe, clips = main_probe(plan), store.result(plan.first(plan.pretrained[0]).measures["probe"])["test_clips"]
    words += gain_words(plan, rows, probe, f"The readout ({PROBE_NAMES[probe]})", "untrained")
    accuracy = float(summarise(rows, probe)["mean"][plan.pretrained[0]])
    return [*words, clips_words(accuracy, clips)]


def _replaced_words(plan: Plan, store: RunStore) -> list[str]:
    """How many videos training replaced by others. What evaluation left out is told at the head of every report."""
    replaced = max(store.result(stage).get("quarantined", 0) for stage in plan.stages)
    return [f"Videos that pre-training could not read and replaced by others: {replaced}."] if replaced else []
