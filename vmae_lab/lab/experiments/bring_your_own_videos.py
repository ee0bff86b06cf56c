"""Own videos: checks of the files, a short pre-training, reconstructions, similar clips, readouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix

from vmae_lab.data.check import check_list
from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import MissingVideos, middle_clips
from vmae_lab.data.video_lists import groups_of, read_all
from vmae_lab.evaluation import retrieval
from vmae_lab.evaluation.probes import PROBE_NAMES, classical_answers, tokens_of
from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots import charts, clip_pictures
from vmae_lab.lab.plots.examples import clip_frames, example_clips, names_of, random_clips, reconstructions, window
from vmae_lab.lab.plots.text import short
from vmae_lab.lab.stages import WEIGHTS, Stage
from vmae_lab.lab.stages.probe import ProbeStage, load_encoder
from vmae_lab.utils.atomic_io import readable
from vmae_lab.utils.counts import counted
from vmae_lab.utils.processes import fixed_threads
from vmae_lab.utils.seeding import numpy_generator

BASELINE = "untrained"
ARMS: dict[str, Arm] = {"untrained": common.UNTRAINED, "pretrained": common.PRETRAINED}
NO_LABELS = "There are no labels, so this part is skipped."


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Build frozen readouts. Without labels: pre-training only, and nothing for the untrained encoder."""
    if recipe.data.labelled:
        return common.frozen_readouts(recipe, arm, encoder, seed)
    return {"pretrain": encoder} if arm.pretrained else {}


EXPERIMENT = Experiment(
    "Bring your own videos", "What does a short pre-training learn from these videos?",
    ARMS, stages, needs_labels=False, min_clips=retrieval.FEWEST, baseline=BASELINE,
)  # fmt: skip

# ---- Checks of the listed files ----

MOST_BROKEN, MOST_PAIRS = 20, 10  # lines of the tables of broken videos and of confused pairs of classes
CHECKED = ["list", "path", "status", "cause", "frames", "seconds", "bytes"]


def check_videos(plan: Plan, runs: Path) -> pd.DataFrame:
    """Decode every listed video once, completely: columns CHECKED; empty for the embedded data set.

    Results are kept below `runs`/checks, so that only new or changed files are decoded again. Raises RecipeError if the lists
    cannot be used.
    """
    plan.check_lists()
    lists, tables = plan.recipe.data.lists, [pd.DataFrame(columns=CHECKED)]
    if lists is None:
        return tables[0]
    folder, processes = _check_folder(plan, runs), plan.recipe.compute.processes
    for name, (videos, pattern) in read_all(lists).items():
        table = check_list(videos, lists.decoding, folder / name, processes, pattern, journals=runs / "checks")
        tables.append(table.assign(list=name, path=table.path.map(readable))[CHECKED])
    return pd.concat(tables[1:], ignore_index=True)


def _check_folder(plan: Plan, runs: Path) -> Path:
    return runs / "checks" / plan.recipe.data.fingerprint


def check_table(plan: Plan, checked: pd.DataFrame, runs: Path) -> Table:
    """Return one row per list: number of videos, their state, and how many are shorter than the window of a clip."""
    if checked.empty:
        line = {"list": "embedded data set", "state": "written by this project, not checked"}
        return Table(pd.DataFrame([line]), "check", "The files of the data set.")
    frames, stride, _ = window(plan.recipe)
    needed, lines = (frames - 1) * stride + 1, []
    for name, table in checked.groupby("list", sort=False):
        read = table[table.status != "failed"]
        lines.append({
            "list": name, "videos": len(table),
            **{status: int((table.status == status).sum()) for status in ("ok", "damaged", "failed")},
            "hours": f"{read.seconds.astype(float).sum() / 3600:.2f}", "GiB": f"{read.bytes.astype(float).sum() / 2**30:.2f}",
            "frames, median": f"{read.frames.median():.0f}" if len(read) else "",
            f"shorter than a clip's window of {counted(needed, 'frame')}": int((read.frames < needed).sum()),
        })  # fmt: skip
    caption = (
        "The listed videos. `damaged`: decodes with errors or ends early; `failed`: gives no frame. The full list is in "
        f"`{_check_folder(plan, runs).relative_to(runs.parent)}`."
    )
    return Table(pd.DataFrame(lines), "check", caption)


def broken_table(checked: pd.DataFrame) -> Table | None:
    """Return the first damaged or unreadable videos, with the cause; None if there are none."""
    broken = checked[checked.status != "ok"]
    caption = f"Damaged and unreadable videos, up to {MOST_BROKEN} of {len(broken)}. `failures.csv` of their list has all."
    frame = broken[CHECKED[:4]].head(MOST_BROKEN).reset_index(drop=True)
    return Table(frame, "broken", caption) if len(broken) else None


# ---- Example clips ----


def shown_clips(plan: Plan, count: int) -> list[int]:
    """Draw the rows of random clips to show, with the first seed. Raises RecipeError if too few can be read."""
    rows = random_clips(plan, max(count, retrieval.FEWEST))
    if len(rows) < retrieval.FEWEST:
        split = plan.recipe.evaluate.split if plan.recipe.data.labelled else "pretrain"
        raise RecipeError(
            f"the {split} split has {counted(len(rows), 'video')} that can be read; at least {retrieval.FEWEST} are needed to "
            "compare clips with each other: list more videos, or hold out a larger part (data.lists.hold_out)"
        )
    return rows[:count]


def clips_plot(plan: Plan, rows: Sequence[int]) -> Plot:
    """Show frames of example clips, each under its class (or source, if there are several) and file."""
    clips, strips = example_clips(plan), {}
    named = plan.recipe.data.labelled or len(plan.recipe.data.sources) > 1
    for place, (row, name, strip) in enumerate(zip(rows, names_of(plan, clips, rows), clip_frames(plan, rows), strict=True), 1):
        kind = f"{short(name, 30)}\n" if named else ""
        strips[f"{place}. {kind}{short(Path(clips.name(row)).name, 30)}"] = strip
    return Plot(clip_pictures.strips(strips), "clips", "Random clips as they are evaluated, one frame per time step.")


def losses(results: Results) -> Plot:
    return common.loss_plot(results)


def reconstruction(results: Results, rows: Sequence[int]) -> Plot:
    """Show reconstructions of example clips by the pre-trained arm."""
    plan, arm = results.plan, results.plan.pretrained[0]
    strips = {
        f"{place}. {name}": strip
        for place, row in enumerate(rows, 1)
        for name, strip in reconstructions(plan, results.store, arm, row).items()
    }
    kind = "held-out" if plan.recipe.data.labelled else "random (perhaps seen in training)"
    caption = (
        f"The first of the {kind} clips below, and their reconstruction by '{results.label(arm)}', seed {plan.recipe.seeds[0]}"
        ", with the true mean and contrast of each patch."
    )
    return Plot(clip_pictures.strips(strips), "reconstruction", caption)


# ---- Similar clips ----

MOST = 1000  # clips of the map and the neighbors: more would hide each other and take long
BATCH = 32
NEIGHBOURS = 5
SAME_CLASS = "same_class"  # metric: share of clips whose nearest neighbor has the same class


@dataclass(frozen=True)
class Encoded:
    """Features of clips.

    `names`: class of each clip, or its source without labels. `titles`: class, or file without labels. `labels`: None without
    labels. `groups`: clips of one group are not compared with each other; None if there are fewer than two groups. `frames`:
    middle frames, uint8 `(n, H, W, 3)`. `features`: standardized mean tokens `(n, D)` by arm and seed. `pictured`: the
    features of the figures, those of the pre-trained arm at the first seed. `total`: clips of the split. `unreadable`: clips
    that were left out.
    """

    names: list[str]
    titles: list[str]
    labels: np.ndarray | None
    groups: np.ndarray | None
    frames: np.ndarray
    features: dict[tuple[str, int], np.ndarray]
    pictured: np.ndarray
    total: int
    unreadable: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def count(self) -> str:
        return f"{len(self):,} of {self.total:,}" if len(self) < self.total else f"all {len(self):,}"


def encode_clips(results: Results, most: int = MOST) -> Encoded:
    """Encode at most `most` example clips with each arm and seed; without labels, only with the encoder of the figures.

    A feature is the mean of an encoder's tokens over the middle clip. Raises MissingVideos.
    """
    plan, recipe, clips = results.plan, results.recipe, example_clips(results.plan)
    rng = numpy_generator(recipe.seeds[0], "clips of the map")
    rows = np.sort(rng.permutation(len(clips))[:most]).tolist()
    existing, video = _read(plan, clips, rows)
    first, features = plan.first(plan.pretrained[0]), {}
    for cell in plan.cells if recipe.data.labelled else [first]:
        with fixed_threads(recipe.compute.threads):
            encoder = load_encoder(cell.recipe.model, results.store.folder(cell.encoder) / WEIGHTS)
            precision = recipe.compute.evaluation_precision
            tokens = torch.cat([tokens_of(encoder, part, True, precision) for part in video.split(BATCH)])
        features[cell.arm, cell.seed] = retrieval.standardised(tokens[:, 0].cpu().numpy())
    names, labels = names_of(plan, clips, existing), clips.labels[existing] if recipe.data.labelled else None
    titles = [Path(clips.name(row)).name for row in existing] if labels is None else names
    return Encoded(
        names, titles, labels, _groups(recipe, existing), video[:, :, video.shape[2] // 2].permute(0, 2, 3, 1).numpy(),
        features, features[first.arm, first.seed], len(clips), len(rows) - len(existing),
    )  # fmt: skip


def _read(plan: Plan, clips: Clips, rows: list[int]) -> tuple[list[int], torch.Tensor]:
    """Return the readable rows and their clips. Raises MissingVideos if none is readable, or if none may be left out."""
    try:
        return rows, middle_clips(clips, rows, *window(plan.recipe))
    except MissingVideos as missing:
        existing = [row for row in rows if row not in missing.failed]
        if not existing or (plan.recipe.data.labelled and plan.recipe.evaluate.missing == "refuse"):
            raise
    return existing, middle_clips(clips, existing, *window(plan.recipe))


def _groups(recipe: Recipe, rows: list[int]) -> np.ndarray | None:
    """Return the groups of example clips as numbers; None if there are fewer than two."""
    lists = recipe.data.lists
    groups = groups_of(lists, recipe.evaluate.split) if lists and lists.train else None
    if groups is None or len(set(groups[rows])) < 2:
        return None
    return np.unique(groups[rows].astype(str), return_inverse=True)[1]


def map_plot(results: Results, encoded: Encoded) -> Plot:
    points = retrieval.feature_map(encoded.pictured, results.recipe.seeds[0])
    figure = charts.clip_map(points, encoded.names, "source" if encoded.labels is None else "class")
    settings = f"t-SNE, perplexity {retrieval.perplexity_of(len(encoded)):.3g}, initialized with the principal components"
    return Plot(figure, "map", f"{features_caption(results, encoded)} Map: {settings}.")


def nearest_clips(encoded: Encoded) -> np.ndarray:
    """Return the rows of the nearest other clips, by the features of the figures: `(n, 5)`, fewer if there are fewer clips."""
    return retrieval.nearest(encoded.pictured, NEIGHBOURS, encoded.groups)


def queries(results: Results, encoded: Encoded) -> list[int]:
    """Draw the clips whose neighbors are shown, with the first seed, from as many classes (or sources) as possible."""
    order = numpy_generator(results.recipe.seeds[0], "queries").permutation(len(encoded))
    names = pd.Series(np.asarray(encoded.names)[order])
    return order[names.groupby(names).cumcount().argsort(kind="stable")][: clip_pictures.QUERIES].tolist()


def neighbours_plot(results: Results, encoded: Encoded) -> Plot:
    chosen = queries(results, encoded)
    figure = clip_pictures.neighbour_pictures(encoded.frames, chosen, nearest_clips(encoded), encoded.titles, encoded.labels)
    others = "" if encoded.groups is None else " of other groups (hold_out.group)"
    marks = "" if encoded.labels is None else " `=` and blue: the query's class; `x` and vermilion: another class."
    caption = (
        f"Random clips and the nearest clips{others} by cosine, middle frames.{marks} {features_caption(results, encoded)}"
    )
    return Plot(figure, "neighbours", caption)


def features_caption(results: Results, encoded: Encoded) -> str:
    """Describe the features that the figures show."""
    recipe, arm = results.recipe, results.plan.pretrained[0]
    split = f"the {recipe.evaluate.split} split" if recipe.data.labelled else "the videos to pre-train on"
    left_out = f" (unreadable and left out: {encoded.unreadable})" if encoded.unreadable else ""
    return (
        f"Features: mean token of the frozen encoder '{results.label(arm)}', seed {recipe.seeds[0]}, over the middle clip of "
        f"each video, standardized; {encoded.count} clips of {split}{left_out}."
    )


def with_neighbours(results: Results, encoded: Encoded) -> Results:
    """Return the results with one more metric, SAME_CLASS, per arm and seed; unchanged without labels."""
    if encoded.labels is None:
        return results
    rows = [
        {
            "ablation": results.plan.name, "arm": arm, "seed": seed, "metric": SAME_CLASS,
            "value": retrieval.same_class(encoded.labels, retrieval.nearest(features, 1, encoded.groups)),
            "stage": results.plan.cell(arm, seed).encoder.key,
        }
        for (arm, seed), features in encoded.features.items()
    ]  # fmt: skip
    before = results.rows[results.rows.metric != SAME_CLASS]
    return replace(results, rows=pd.concat([before, pd.DataFrame(rows)], ignore_index=True))


def retrieval_table(results: Results, encoded: Encoded) -> Table | None:
    """Return one row per arm: share of clips whose nearest neighbor has the same class, and by chance; None without labels."""
    if encoded.labels is None:
        return None
    differences = results.compare(SAME_CLASS, BASELINE)
    chance = retrieval.same_class_by_chance(encoded.labels, encoded.groups)
    lines = [
        {
            "encoder": results.label(arm), "nearest clip has the same class, %": results.value(arm, SAME_CLASS),
            **common.comparison_cells(differences, arm, "the untrained one"), "by chance, %": f"{chance:.1f}",
            "clips": len(encoded),
        }
        for arm in results.plan.possible
    ]  # fmt: skip
    groups = "" if encoded.groups is None else " Clips of one group (hold_out.group) are not compared."
    caption = (
        f"Nearest other clip by the cosine of standardized mean tokens: {encoded.count} clips of the "
        f"{results.recipe.evaluate.split} split, mean ± standard deviation over "
        f"{counted(len(results.recipe.seeds), 'seed')}.{groups} {common.how_compared(results.margin, differences)}"
    )
    return Table(pd.DataFrame(lines), "retrieval", caption)


# ---- Readouts ----


def readouts_table(results: Results) -> Table | None:
    """Return one row per arm: the main readout with its comparison and the interval of the test set, then the others."""
    plan, (probe, *others) = results.plan, results.recipe.evaluate.probe.probes
    if not plan.recipe.data.labelled:
        return None
    differences = results.compare(probe, BASELINE)
    lines = [
        {
            "encoder": results.label(arm), f"{PROBE_NAMES[probe]}: top-1 %": results.value(arm, probe),
            **common.comparison_cells(differences, arm, "the untrained one"),
            "95% interval of the test set": common.test_set_interval(results, arm),
            **{f"{PROBE_NAMES[name]}: top-1 %": results.value(arm, name) for name in others},
        }
        for arm in plan.possible
    ]  # fmt: skip
    labels = example_clips(plan).labels
    commonest = 100 * np.bincount(labels).max() / len(labels)
    caption = (
        f"{common.caption(results, differences)} Chance is {results.chance:.1f}%; always predicting the most frequent class "
        f"gives {commonest:.1f}%."
    )
    return Table(pd.DataFrame(lines), "readouts", caption)


def confusion(results: Results, arm: str) -> np.ndarray:
    """Count the predictions of an arm's ridge readout on the held-out clips, over seeds and draws: int64, class x prediction.

    They are computed again from the encoders, labels and clips of the stages.
    """
    recipe, counts = results.recipe, np.zeros((results.recipe.data.classes,) * 2, dtype=np.int64)
    for cell in (cell for cell in results.plan.cells if cell.arm == arm):
        with fixed_threads(recipe.compute.threads):
            encoder = load_encoder(cell.recipe.model, results.store.folder(cell.encoder) / WEIGHTS)
            probe = cell.measures["probe"]
            assert isinstance(probe, ProbeStage)
            read = probe.read(encoder, recipe.compute)
            for tokens, labels in read.draws():
                predicted = classical_answers("ridge", tokens, labels, read.test_tokens, cell.recipe.model.clip.grid)
                counts += confusion_matrix(read.held_out.labels, predicted, labels=range(len(counts)))
    return counts


def confusion_plot(results: Results, counts: np.ndarray) -> Plot:
    probe, arm = results.recipe.evaluate.probe, results.plan.pretrained[0]
    draws = common.label_words(probe.labels, probe.draws)
    return common.confusion_plot(results, counts, f"ridge on flattened tokens of '{results.label(arm)}', {draws},")


def confused_table(plan: Plan, counts: np.ndarray) -> Table | None:
    """Return the pairs of classes that are confused most often, the most frequent first; None if all predictions are right."""
    names, mixed = plan.recipe.data.class_names, counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-mixed, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [(true, answer) for true, answer in zip(*np.unravel_index(order, mixed.shape), strict=True) if mixed[true, answer]]
    lines = [
        (names[true], names[answer], int(mixed[true, answer]), f"{100 * mixed[true, answer] / counts[true].sum():.0f}")
        for true, answer in pairs
    ]
    frame = pd.DataFrame(lines, columns=["class", "predicted", "predictions", "of the class's predictions, %"])
    return Table(frame, "confused", "The pairs of classes that this readout confuses most often.") if lines else None


def conclusions(results: Results, encoded: Encoded) -> list[str]:
    """State what pre-training changes or, without labels, that nothing was scored."""
    replaced = max(results.store.result(stage).get("quarantined", 0) for stage in results.plan.stages)
    words = [f"Pre-training could not read {counted(replaced, 'video')} and used others instead."] if replaced else []
    if encoded.labels is None:
        return [*words, "Without labels there are no scores: only the losses and the figures show what was learned."]
    measured = {results.probe: PROBE_NAMES[results.probe]}
    if retrieval.same_class_by_chance(encoded.labels, encoded.groups):  # else no class has two clips that are compared
        measured[SAME_CLASS] = "class of the nearest clip"
    pairs = [(arm, BASELINE) for arm in results.plan.pretrained]
    for metric, what in measured.items():
        words += [f"{what}: {sentence}" for sentence in common.pair_words(results, metric, pairs)]
    return words
