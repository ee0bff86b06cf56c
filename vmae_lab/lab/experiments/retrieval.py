"""Which clips an encoder finds alike: neighbours, a map, and how often neighbours are of one class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import MissingVideos, middle_clips
from vmae_lab.data.video_lists import groups_of
from vmae_lab.evaluation.probes import tokens_of
from vmae_lab.evaluation.retrieval import nearest as nearest_rows
from vmae_lab.evaluation.retrieval import perplexity_of, same_class, same_class_by_chance, standardised
from vmae_lab.lab.experiments.common import compared, comparison_cells, gain_words, how_compared, mean_and_spread
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.maps import QUERIES
from vmae_lab.lab.plots.pictures import example_clips, names_of, window
from vmae_lab.lab.readouts import load_encoder
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import WEIGHTS
from vmae_lab.lab.statistics import summarise
from vmae_lab.utils.distributed import fixed_threads
from vmae_lab.utils.seeding import numpy_generator

MOST = 1000  # clips of the map and the neighbours: more would be drawn over one another, and take long
BATCH = 32
NEIGHBOURS = 5
SAME_CLASS = "same_class"  # the metric: share of clips whose nearest neighbour is of their class


@dataclass(frozen=True)
class Encoded:
    """Clips as encoders see them, in one order.

    `names`: class of each, or source where there are no labels, and `labels` then is None. `titles`: class, or file. `groups`:
    what was held out together, whose clips are no neighbours of one another; None where none are told, or all clips are of
    one. `frames`: a frame from the middle of each, uint8 `(n, side, side, 3)`. `features`: by arm and seed, standardised mean
    tokens `(n, D)`. `total`: clips there are; `unreadable`: clips that were left out.
    """

    names: list[str]
    titles: list[str]
    labels: np.ndarray | None
    groups: np.ndarray | None
    frames: np.ndarray
    features: dict[tuple[str, int], np.ndarray]
    total: int
    unreadable: int

    def __len__(self) -> int:
        return len(self.names)


def encode_clips(plan: Plan, store: RunStore, most: int = MOST) -> Encoded:
    """Features of the example clips, or of `most` of them, by each arm and seed; without labels by the pictures' model alone.

    A feature is the mean of an encoder's tokens over the middle clip. The mean keeps what is seen, and loses where and when:
    of a direction of motion it holds only what the encoder has written into its tokens. Raises MissingVideos.
    """
    recipe, clips = plan.recipe, example_clips(plan)
    rng = numpy_generator(recipe.seeds[0], "clips of the map")
    rows = np.sort(rng.permutation(len(clips))[:most]).tolist()
    there, video = _read(plan, clips, rows)
    features = {}
    for cell in plan.cells if recipe.data.labelled else [plan.first(plan.pretrained[0])]:
        with fixed_threads(recipe.compute.threads):
            encoder = load_encoder(cell.recipe.model, store.folder(cell.encoder) / WEIGHTS)
            tokens = torch.cat([tokens_of(encoder, part, pooled=True) for part in video.split(BATCH)])
        features[cell.arm, cell.seed] = standardised(tokens[:, 0].cpu().numpy())
    names, labels = names_of(plan, clips, there), clips.labels[there] if recipe.data.labelled else None
    titles = [Path(clips.name(row)).name for row in there] if labels is None else names
    return Encoded(
        names, titles, labels, _groups(plan, there),
        video[:, :, video.shape[2] // 2].permute(0, 2, 3, 1).numpy(), features, len(clips), len(rows) - len(there),
    )  # fmt: skip


def _read(plan: Plan, clips: Clips, rows: list[int]) -> tuple[list[int], torch.Tensor]:
    """Those of some rows that can be read and their clips. Where broken ones may not be left out: Raises MissingVideos."""
    try:
        return rows, middle_clips(clips, rows, *window(plan.recipe))
    except MissingVideos as missing:
        there = [row for row in rows if row not in missing.failed]
        if not there or (plan.recipe.data.labelled and plan.recipe.evaluate.missing == "refuse"):
            raise
    return there, middle_clips(clips, there, *window(plan.recipe))


def _groups(plan: Plan, rows: list[int]) -> np.ndarray | None:
    """The groups of some example clips as numbers, where neighbours can be sought across them."""
    lists = plan.recipe.data.lists
    groups = groups_of(lists, plan.recipe.evaluate.split) if lists and lists.train else None
    if groups is None or len(set(groups[rows])) < 2:
        return None
    return np.unique(groups[rows].astype(str), return_inverse=True)[1]


def pictured(plan: Plan, encoded: Encoded) -> np.ndarray:
    """The features that pictures are drawn from: those of the pre-trained arm at the first seed."""
    return encoded.features[plan.pretrained[0], plan.recipe.seeds[0]]


def queries(plan: Plan, encoded: Encoded) -> list[int]:
    """Clips whose neighbours are shown: drawn by the first seed, of as many classes (or sources) as can be."""
    order = numpy_generator(plan.recipe.seeds[0], "queries").permutation(len(encoded))
    names = pd.Series(np.asarray(encoded.names)[order])
    return order[names.groupby(names).cumcount().argsort(kind="stable")][:QUERIES].tolist()


def nearest(plan: Plan, encoded: Encoded) -> np.ndarray:
    """The nearest other clips of each clip in the pictured features: rows `(n, 5)`, fewer where there are fewer clips."""
    return nearest_rows(pictured(plan, encoded), NEIGHBOURS, encoded.groups)


def with_neighbours(plan: Plan, rows: pd.DataFrame, encoded: Encoded) -> pd.DataFrame:
    """A plan's results, and with labels how often the nearest other clip is of the same class, a row an arm and seed."""
    if encoded.labels is None:
        return rows
    found = pd.DataFrame([
        {
            "ablation": plan.name, "arm": arm, "seed": seed, "metric": SAME_CLASS,
            "value": same_class(encoded.labels, nearest_rows(features, 1, encoded.groups)),
            "stage": plan.cell(arm, seed).encoder.key,
        }
        for (arm, seed), features in encoded.features.items()
    ])  # fmt: skip
    return pd.concat([rows, found], ignore_index=True)


def retrieval_table(plan: Plan, encoded: Encoded, rows: pd.DataFrame) -> pd.DataFrame:
    """One line an arm: share of clips whose nearest neighbour is of their class, beside what chance gives."""
    shares, differences = summarise(rows, SAME_CLASS), compared(plan, rows, SAME_CLASS, "untrained")
    assert encoded.labels is not None, "without labels there are no classes to share"
    chance = same_class_by_chance(encoded.labels, encoded.groups)
    return pd.DataFrame([
        {
            "encoder": plan.arms[arm].label, "nearest clip is of the same class, %": mean_and_spread(shares, arm),
            **comparison_cells(differences, arm, "the untrained one"),
            "by chance, %": f"{chance:.1f}", "clips": len(encoded),
        }
        for arm in plan.possible
    ])  # fmt: skip


def retrieval_caption(plan: Plan, encoded: Encoded, rows: pd.DataFrame) -> str:
    """How the shares were counted."""
    scenes = (
        "Clips of one group (hold_out.group) are not compared."
        if encoded.groups is not None
        else "Clips of one scene find each other, whatever they show; hold_out.group would keep them from it."
    )
    return (
        f"How often the nearest other clip, by the cosine of standardised mean tokens, shows the same class: {_some(encoded)} "
        f"clips of the {plan.recipe.evaluate.split} split against one another, mean ± standard deviation over "
        f"{len(plan.recipe.seeds)} seeds. {scenes + ' ' if plan.recipe.data.lists else ''}"
        f"{how_compared(plan, compared(plan, rows, SAME_CLASS, 'untrained'))}"
    )


def features_caption(plan: Plan, encoded: Encoded) -> str:
    """What the pictured features are of, in a sentence."""
    split = f"the {plan.recipe.evaluate.split} split" if plan.recipe.data.labelled else "the videos to pre-train on"
    left_out = f" (unreadable and left out: {encoded.unreadable})" if encoded.unreadable else ""
    return (
        "Features: mean token of the frozen encoder over the middle clip of a video, each column standardised; "
        f"{_some(encoded)} clips of {split}{left_out}; encoder '{plan.arms[plan.pretrained[0]].label}', seed "
        f"{plan.recipe.seeds[0]}"
    )


def _some(encoded: Encoded) -> str:
    return f"{len(encoded):,} of {encoded.total:,}" if len(encoded) < encoded.total else f"all {len(encoded):,}"


def map_caption(plan: Plan, encoded: Encoded) -> str:
    """How the map was made."""
    return (
        f"{features_caption(plan, encoded)}. t-SNE (perplexity {perplexity_of(len(encoded)):.3g}, begun at the principal "
        "components): who is near whom can be read from it, distances and sizes of groups cannot."
    )


def neighbours_caption(plan: Plan, encoded: Encoded) -> str:
    """What the rows of neighbours show."""
    others = "" if encoded.groups is None else " of other groups (hold_out.group)"
    marks = "" if encoded.labels is None else ": blue and `=` of the query's class, vermilion and `x` of another"
    return (
        f"Some clips, drawn by the seed, and to the right the clips{others} most like each (cosine), the nearest first"
        f"{marks}. A picture is the middle frame. {features_caption(plan, encoded)}."
    )


def conclusions(plan: Plan, rows: pd.DataFrame, encoded: Encoded) -> list[str]:
    """Whether pre-training makes neighbours of clips of one class, in a sentence; none without labels."""
    if encoded.labels is None:
        return []
    if not same_class_by_chance(encoded.labels, encoded.groups):
        return ["Retrieval is not measured: no class has two clips that are compared."]
    return gain_words(plan, rows, SAME_CLASS, "The class of the nearest clip", "untrained")
