"""What experiments share: their parts and results, arms, stages, and the captions, cells and sentences of comparisons."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from vmae_lab.data.motionworld.dataset import Split
from vmae_lab.evaluation.attention import attention_rollout, class_relevance
from vmae_lab.evaluation.classification import wilson_interval
from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.estimate import calibrate, token_table
from vmae_lab.lab.plan import Arm, Controls, Encoder, Measures, Overrides, Plan, own_encoder
from vmae_lab.lab.plots import charts, clip_pictures, curves
from vmae_lab.lab.plots.examples import masks_of_pictures
from vmae_lab.lab.plots.style import BLUE, GREY
from vmae_lab.lab.plots.text import markdown
from vmae_lab.lab.report.tables import interval, plus_minus
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage, finetune_stage, probe_stage
from vmae_lab.lab.statistics import NOT_MEASURED, compare, compare_pairs, points, summarise
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.validation import LOSS
from vmae_lab.utils.counts import counted

# ---- An experiment and its results ----


@dataclass(frozen=True)
class Experiment:
    """What a notebook compares, and the stages that evaluate each arm.

    `baseline`: the arm that the main table compares the others with, by `metric` ("probe" is the recipe's main readout).
    `floor`: an arm outside of that comparison. `controls`: control stages, made from the cells with pre-training. `sources`:
    sources that the embedded data set needs. `min_clips`: clips that the figures need. `one_seed`: nothing is compared, so the
    first seed is enough. `encoder` builds what an arm starts from. `prepare` adapts the recipe. `calibrate` measures
    multiply-accumulates per second before the run.
    """

    title: str
    question: str
    arms: Mapping[str, Arm]
    stages: Measures
    encoder: Encoder = own_encoder
    baseline: str | None = None
    metric: str = "probe"
    floor: str | None = None
    controls: Controls | None = None
    skip_impossible: bool = False
    needs_labels: bool = True
    one_seed: bool = False
    sources: tuple[str, ...] = ()
    min_clips: int = 1
    prepare: Callable[[Recipe], Recipe] = lambda recipe: recipe
    calibrate: Callable[[Recipe], float] = calibrate

    def metric_of(self, recipe: Recipe) -> str:
        """Return the name, in the rows, of the metric that arms are compared by."""
        return self.metric.replace("probe", recipe.evaluate.probe.probes[0])


@dataclass(frozen=True)
class Results:
    """The rows of a plan that has run, with the plan and the store of its stages. Tables and figures are made from it."""

    plan: Plan
    rows: pd.DataFrame
    store: RunStore

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def probe(self) -> str:
        """The main readout: the first one of the recipe. Conclusions are drawn from it."""
        return self.recipe.evaluate.probe.probes[0]

    @property
    def chance(self) -> float:
        """Accuracy of guessing, in percent."""
        return 100 / self.recipe.data.classes

    @property
    def margin(self) -> float:
        return self.recipe.evaluate.margin

    def label(self, arm: str) -> str:
        return self.plan.arms[arm].label

    def summary(self, metric: str) -> pd.DataFrame:
        return summarise(self.rows, metric)

    def value(self, arm: str, metric: str, digits: int = 1) -> str:
        """Return `70.1 ± 0.4` over seeds; empty if the arm has no value."""
        return mean_and_spread(self.summary(metric), arm, digits)

    def compare(self, metric: str, baseline: str, arms: Sequence[str] | None = None) -> pd.DataFrame:
        """Return `statistics.compare` with the recipe's margin; an empty table if the baseline is an arm that was not run.

        `arms`: by default all others of the plan. Raises ValueError if no row has the metric, or if there is no such arm.
        """
        known = baseline in self.plan.arms and metric in set(self.rows.metric)
        arms = self.plan.possible if arms is None else arms
        return compare(self.rows, metric, baseline, self.margin, arms, required=not known)

    def stage_result(self, arm: str, measure: str) -> dict[str, Any]:
        """Return the result of an arm's stage at the first seed."""
        return self.store.result(self.plan.first(arm).measures[measure])


@dataclass(frozen=True, repr=False)
class Table:
    """A table of a report. A notebook shows its frame."""

    frame: pd.DataFrame
    name: str
    caption: str

    def __repr__(self) -> str:
        return repr(self.frame)

    def _repr_html_(self) -> str:
        return self.frame._repr_html_()


@dataclass(frozen=True, repr=False)
class Plot:
    """A figure of a report: matplotlib's, or the bytes of a GIF."""

    figure: Figure | bytes
    name: str
    caption: str


# ---- Arms and stages ----


def decoder_mask(kind: str, ratio: float, loss_on: str = "invisible") -> Overrides:
    return {"mask.decoder": kind, "mask.decoder_ratio": ratio, "mask.loss_on": loss_on}


def running_cells(ratio: float) -> Overrides:
    """Return running cells of a ratio; no decoder mask if the ratio is 0."""
    return decoder_mask("running_cell", ratio) if ratio else decoder_mask("none", 0.0)


SCRATCH = Arm("no pre-training", GREY, "X", pretrained=False)
UNTRAINED = Arm("untrained encoder", GREY, "X", pretrained=False)
PRETRAINED = Arm("pre-trained", BLUE, "D", running_cells(0.5))


def clips_per_action(recipe: Recipe, parts: Mapping[str, float]) -> dict[str, int]:
    """Return clips per source and action, at least one. `parts`: source -> part of the clips that it has."""
    available = require(recipe.data.motionworld, "data.motionworld").train
    return {source: max(1, round(part * available)) for source, part in parts.items()}


def frozen_readouts(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> dict[str, Stage]:
    return {"probe": probe_stage(recipe, encoder, seed)}


def readouts_and_finetuning(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> dict[str, Stage]:
    return {
        "probe": probe_stage(recipe, encoder, seed),
        "finetune": finetune_stage(recipe, encoder if arm.pretrained else None, seed),
    }


# ---- Ways to use labels ----

TOP1 = "top-1"  # the metric of the rows of `by_method`


@dataclass(frozen=True)
class Method:
    """A way to use labels: its name in tables, and the arm and the metric that measure it ("probe" is the main readout)."""

    label: str
    arm: str
    metric: str


def by_method(results: Results, methods: Mapping[str, Method]) -> pd.DataFrame:
    """Return the accuracies of methods: columns arm (a key of `methods`), seed, metric, value."""
    rows = results.rows
    parts = []
    for name, method in methods.items():
        metric = results.probe if method.metric == "probe" else method.metric
        chosen = rows[(rows.arm == method.arm) & (rows.metric == metric)]
        parts.append(chosen[["seed", "value"]].assign(arm=name, metric=TOP1))
    return pd.concat(parts, ignore_index=True)


def methods_frame(
    results: Results, methods: Mapping[str, Method], what: str, differences: pd.DataFrame, to: str,
    references: Mapping[str, str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per measured method: its name (column `what`), accuracy, difference to another method, and verdict.

    `differences`: comparisons by method, with what `to` says. `references`: method -> the other, if it is not always the same.
    """
    accuracy = summarise(by_method(results, methods), TOP1)
    lines = []
    for name in accuracy.index:
        line = {what: methods[name].label, "top-1 %": mean_and_spread(accuracy, name)}
        if references:
            line["compared with"] = methods[references[name]].label if name in differences.index else ""
        lines.append({**line, **comparison_cells(differences, name, to)})
    return pd.DataFrame(lines)


def label_words(count: int | None, draws: int = 0) -> str:
    """Return `160 labels` or `3 draws of 160 labels`; `all labels` if there is no count."""
    if not count:
        return "all labels"
    return f"{counted(draws, 'draw')} of {counted(count, 'label')}" if draws else counted(count, "label")


def readout_labels(recipe: Recipe) -> str:
    """Return the labels of the frozen readouts as text: `mean over 3 draws of 160 labels`, or `all labels`."""
    probe = recipe.evaluate.probe
    return f"{'mean over ' if probe.labels else ''}{label_words(probe.labels, probe.draws)}"


def labels_used(recipe: Recipe, readouts: str) -> str:
    """Describe how the methods of a table use labels, for its caption. `readouts`: the kind of the frozen readouts."""
    tuning, labels = recipe.evaluate.finetune, recipe.evaluate.finetune_labels
    tuned = f"one draw of {counted(labels, 'label')} per seed" if labels else "all labels"
    return (
        f"{readouts} with {readout_labels(recipe)}; trained from scratch or fine-tuned with {tuned}, "
        f"{counted(tuning.steps, 'step')} of {counted(tuning.batch_size, 'clip')}"
    )


def method_words(results: Results, methods: Mapping[str, Method], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return one sentence per pair of methods that was measured, as `pair_words`."""
    names = {name: method.label for name, method in methods.items()}
    return pair_words(results, TOP1, pairs, by_method(results, methods), names)


# ---- Captions ----


def how_made(plan: Plan, evaluation: str = "", sources: Sequence[str] = ()) -> str:
    """Describe how a table of accuracies was made.

    `evaluation`: how labels were used, by default by frozen readouts. `sources`: the sources of the evaluated clips, by default
    the recipe's.
    """
    recipe, world = plan.recipe, plan.recipe.data.motionworld
    every = world.sources if world else ("the list files",)
    evaluated = tuple(sources or recipe.evaluate.sources or every)
    data = f"evaluated on {', '.join(map(markdown, evaluated))}"
    pools = {tuple(plan.first(arm).recipe.data.pretrain_sources or every) for arm in plan.pretrained}
    if len(pools) == 1 and pools != {evaluated}:  # if arms have different pools, the table names them
        data = f"pre-trained on {', '.join(map(markdown, *pools))}, {data}"
    return (
        f"Scale `{recipe.scale}`: {recipe.model.size} model, {recipe.model.clip.pixels} pixels, "
        f"{counted(recipe.pretrain.steps, 'pre-training step')} of {counted(recipe.pretrain.batch_size, 'clip')} unless the "
        f"arm sets another number; mean ± standard deviation over {counted(len(recipe.seeds), 'seed')}, "
        f"{recipe.evaluate.split} split; {evaluation or f'frozen readouts, {readout_labels(recipe)}'}; {data}."
    )


def caption(results: Results, *comparisons: pd.DataFrame, evaluation: str = "", sources: Sequence[str] = ()) -> str:
    """Describe how a table with comparisons was made: `how_made` and `how_compared`."""
    return f"{how_made(results.plan, evaluation, sources)} {how_compared(results.margin, *comparisons)}"


# Is the error of a comparison pooled? -> from what it is estimated.
ERRORS = {
    False: "each comparison's own paired differences (Bonferroni)",
    True: "all arms and seeds (two-way analysis of variance, Dunnett's critical value)",
}


def how_compared(margin: float, *columns: pd.DataFrame) -> str:
    """Describe how the comparisons of a table were made and what they can detect. `columns`: one `compare` frame per column."""
    tables = [table[table["std"].notna()] for table in columns]
    tables = [table for table in tables if len(table)]
    if not tables:
        varied = " and differences that vary over the seeds" if any(map(_several_seeds, columns)) else ""
        return f"No comparison has an interval, because an interval needs two seeds of both arms{varied}."
    rows = pd.concat(tables)
    error = " or ".join(words for pooled, words in ERRORS.items() if (rows.pooled == pooled).any())
    return (
        "Differences are paired by seed. The 95% intervals are simultaneous over the comparisons of the "
        f"{'column' if len(columns) > 1 else 'table'} ({_range(rows.comparisons, '.0f')}); "
        f"their error is estimated from {error}. "
        f"The smallest difference that {_range(rows.seeds, '.0f')} seeds detect with 80% power is "
        f"{_range(rows.detectable, '.1f')} points. "
        f"Arms are equivalent if two one-sided tests at 5% (Holm) find the difference to be less than {points(margin)}."
    )


def _several_seeds(comparisons: pd.DataFrame) -> bool:
    """Return whether a comparison has at least two seeds. Without an interval, its difference is then equal at all seeds."""
    return bool((comparisons.seeds >= 2).any())


def _range(numbers: pd.Series, form: str, sign: str = "") -> str:
    """Return `1.2 to 3.4`; one number if both are equal. `sign`: `+` also shows the sign of positive numbers."""
    return " to ".join(dict.fromkeys(f"{number:{sign}{form}}" for number in (numbers.min(), numbers.max())))


def equal_cost_words(plan: Plan) -> str:
    """Describe how `charts.accuracy_against_cost` draws arms of equal cost, after a space; empty if all costs differ."""
    return " Points of equal cost are drawn side by side." if token_table(plan).MMAC.duplicated().any() else ""


# ---- Cells of tables, and conclusions ----


def mean_and_spread(summary: pd.DataFrame, arm: str, digits: int = 1) -> str:
    return plus_minus(summary["mean"][arm], summary["std"][arm], digits) if arm in summary.index else ""


def difference_cell(comparisons: pd.DataFrame, arm: str) -> str:
    """Return `+1.2 [-0.3, +2.7]`; empty if the arm is not compared."""
    if arm not in comparisons.index or comparisons.verdict[arm] == NOT_MEASURED:
        return ""
    row = comparisons.loc[arm]
    return interval(row.difference, row.low, row.high)


def comparison_cells(comparisons: pd.DataFrame, arm: str, to: str, before: str = "") -> dict[str, str]:
    """Return the two columns of a comparison: the difference with its interval, and the verdict."""
    verdict = comparisons.verdict[arm] if arm in comparisons.index else ""
    return {f"{before}difference to {to} [95%]": difference_cell(comparisons, arm), f"{before}verdict": verdict}


def comparison_words(row: pd.Series) -> str:
    """Return `+1.2 [+0.3, +2.1] points, higher`."""
    return f"{interval(row.difference, row.low, row.high)} points, {row.verdict}"


def pair_words(
    results: Results, metric: str, pairs: Sequence[tuple[str, str]], rows: pd.DataFrame | None = None,
    names: Mapping[str, str] | None = None,
) -> list[str]:  # fmt: skip
    """Return one sentence per pair of arms that has values: both means, the paired difference and the verdict.

    `rows`: by default those of the results; `names`: arm -> name, by default its label.
    """
    rows = results.rows if rows is None else rows
    names = {arm: style.label for arm, style in results.plan.arms.items()} if names is None else names
    summary = summarise(rows, metric)
    return [
        f"'{names[arm]}' compared with '{names[other]}' ({mean_and_spread(summary, arm)} and "
        f"{mean_and_spread(summary, other)}%): {comparison_words(row)}."
        for (arm, other), row in compare_pairs(rows, metric, pairs, results.margin).iterrows()
    ]


def best_arms(means: pd.Series) -> list[str]:
    """Return the arms with the highest mean; several if their means are equal. Index of `means`: arm."""
    return list(means.index[np.isclose(means, means.max())])


def quoted(names: Iterable[str]) -> str:
    """Return `'a', 'b' and 'c'`."""
    *others, last = [f"'{name}'" for name in names]
    return f"{', '.join(others)} and {last}" if others else last


def highest_mean_words(means: pd.Series, names: Mapping[str, str]) -> str:
    """Name the arm with the highest mean, or all such arms, in one sentence. Index of `means`: arm; `names`: arm -> name."""
    return f"The highest mean is that of {quoted(names[arm] for arm in best_arms(means))}."


def verdict_words(results: Results, comparisons: pd.DataFrame, baseline: str) -> str:
    """State the verdicts of all compared arms in one sentence, grouped by verdict."""
    name = results.label(baseline)
    if not _several_seeds(comparisons):
        return f"With one seed or arm, nothing can be concluded about differences from '{name}'."
    kinds: dict[str, list[str]] = {}
    for arm, row in comparisons.iterrows():
        kind, _, detail = str(row.verdict).partition(" (")
        cell = difference_cell(comparisons, str(arm)) + (f", {detail[:-1]}" if detail else "")
        kinds.setdefault(kind, []).append(f"'{results.label(str(arm))}' ({cell})")
    listed = "; ".join(f"{kind}: {', '.join(arms)}" for kind, arms in sorted(kinds.items()))
    return f"Compared with '{name}' over {int(comparisons.seeds.max())} seeds, {listed}."


def readout_words(results: Results, metric: str, floor: str, baseline: str) -> list[str]:
    """State what pre-training changes compared with the untrained encoder, and the verdicts of the arms against the baseline.

    No sentence about an arm that was not run.
    """
    plan, words = results.plan, []
    if floor in plan.possible:
        gains = results.compare(metric, floor, plan.pretrained)
        least = [f"'{results.label(arm)}': {comparison_words(gains.loc[arm])}" for arm in best_arms(-gains.difference)]
        words.append(
            f"Pre-training changes the frozen readout ({PROBE_NAMES[results.probe]}) by "
            f"{_range(gains.difference, '.1f', '+')} points compared with the untrained encoder. The smallest change is that "
            f"of {'; '.join(least)}."
        )
    if baseline in plan.possible:
        words.append(verdict_words(results, results.compare(metric, baseline, plan.pretrained), baseline))
    return words


def test_set_interval(results: Results, arm: str) -> str:
    """Return `65.9 to 71.7`: the uncertainty of an arm's mean accuracy from the number of test clips alone (Wilson, 95%)."""
    return _wilson(results.summary(results.probe)["mean"][arm], results.stage_result(arm, "probe")["test_clips"])


def test_set_words(accuracy: float, clips: int) -> str:
    """Return the interval of `test_set_interval` as a sentence, for any accuracy in percent."""
    between = _wilson(accuracy, clips).replace("to", "and")
    return f"The {clips} test clips alone leave an accuracy of {accuracy:.1f}% between {between}% (Wilson, 95%)."


def _wilson(accuracy: float, clips: int) -> str:
    low, high = wilson_interval(round(accuracy / 100 * clips), clips)
    return f"{low:.1f} to {high:.1f}"


def over_seeds(results: Results, arm: str, measure: str, part: str, names: Iterable[str]) -> pd.DataFrame:
    """Return the mean and standard deviation over seeds of one part of a stage's results. Index: the names that have values."""
    cells = [results.plan.cell(arm, seed) for seed in results.recipe.seeds]
    table = pd.DataFrame([results.store.result(cell.measures[measure])[part] for cell in cells])
    table = table.reindex(columns=list(names)).dropna(axis=1, how="all")
    return pd.DataFrame({"mean": table.mean(), "std": table.std(ddof=1)})


def class_counts(plan: Plan, labels: Callable[[Split], pd.Series], classes: Sequence[str]) -> pd.DataFrame:
    """Count how often each class is annotated in the training split and in the evaluated split. Index: class."""
    splits: tuple[Split, ...] = ("train", plan.recipe.evaluate.split)
    counts = pd.DataFrame({split: labels(split).value_counts() for split in splits})
    return counts.reindex(classes).rename_axis("action").fillna(0).astype(int)


def evaluated_again(results: Results, measure: str, score: Callable[[Path], float]) -> pd.Series:
    """Return a score of every run, computed from the files in its stage's folder, in percent. Index: arm and seed."""
    folders = {(cell.arm, cell.seed): results.store.folder(cell.measures[measure]) for cell in results.plan.cells}
    return pd.Series({cell: 100 * score(folder) for cell, folder in folders.items()})


# ---- Losses, confusions and masks ----


def loss_history(results: Results, measure: str | None = None) -> pd.DataFrame:
    """Return what the pre-trainings, or the stages of a measure, logged during training: columns step, loss, …, arm, seed."""
    parts = []
    for cell in results.plan.cells:
        if measure in cell.measures if measure else results.plan.arms[cell.arm].pretrained:
            stage = cell.measures[measure] if measure else cell.encoder
            rows = pd.DataFrame(read_metrics(results.store.folder(stage)))
            parts.append(rows.assign(arm=cell.arm, seed=cell.seed))
    return pd.concat(parts, ignore_index=True)


def loss_plot(
    results: Results, measure: str | None = None, legend: str = "", loss: str = "reconstruction loss", note: str = ""
) -> Plot:
    """Plot the losses of the pre-training, or of a measure's stages."""
    figure = charts.loss_curves(loss_history(results, measure), results.plan.arms, legend, loss)
    return Plot(figure, "loss", f"Training: {loss} after the first tenth of the steps, mean and range over seeds{note}.")


def validation_plot(results: Results, measure: str, legend: str) -> Plot | None:
    """Losses and accuracy on the validation split during the training of a measure's stages; None without validation."""
    log = loss_history(results, measure)
    if LOSS not in log:
        return None
    caption = (
        "Loss and accuracy on the validation split during training, mean and range over seeds. The training loss is that of "
        "the steps before each validation, with augmentation and smoothed labels; the validation loss is the cross-entropy "
        "without them. An overfit shows as a validation loss that rises while the training loss falls."
    )
    figure = curves.validation_curves(log.dropna(subset=LOSS), results.plan.arms, legend)
    return Plot(figure, "validation", caption)


def confusion_plot(results: Results, counts: np.ndarray, predictions: str) -> Plot:
    """Draw a confusion matrix in percent. `counts`: class x prediction; `predictions`: what made them, for the caption."""
    caption = (
        f"Predictions of {predictions} on the {results.recipe.evaluate.split} split, summed over "
        f"{counted(len(results.recipe.seeds), 'seed')}: percent of a class, and number in brackets."
    )
    if (counts.sum(1) > 0).sum() > charts.SHOWN:
        caption += f" Only the {charts.SHOWN} classes with the most clips are shown."
    return Plot(charts.confusion_matrix(counts, results.recipe.data.class_names), "confusion", caption)


ROLLOUT, RELEVANCE = "attention rollout", "for the class"  # names of the rows of maps
MAPS_CAPTION = (
    f"'{ROLLOUT}': the share of each token in the mean of the last tokens (Abnar and Zuidema 2020). '{RELEVANCE}': the tokens "
    "that speak for the predicted class (gradient-weighted rollout, Chefer et al. 2021). Each kind has its own color scale."
)


def token_maps(model: VideoClassifier, video: Tensor, labels: Tensor) -> list[dict[str, np.ndarray]]:
    """Maps of each clip by name, float `(T', H', W')`: attention rollout, and relevance for a class of each clip.

    video: `(B, C, T, H, W)`; labels: int64 `(B,)`.
    """
    maps = {ROLLOUT: attention_rollout(model.encoder, video), RELEVANCE: class_relevance(model, video, labels)}
    grids = {name: rows.reshape(-1, *model.clip.grid).cpu().numpy() for name, rows in maps.items()}
    return [{name: rows[index] for name, rows in grids.items()} for index in range(len(video))]


def mask_pictures(plan: Plan) -> pd.DataFrame:
    """Return each arm's masks as hashes of pictures: columns "encoder sees" and "decoder reconstructs". Index: arm.

    The masks are those of the figures, painted on a white clip. A hash is 12 hexadecimal digits of the SHA-256 of the pixels,
    uint8 `(T', H, W, 3)`. A change of the drawn masks changes it.
    """
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        clip, masks = recipe.model.clip, masks_of_pictures(recipe)
        white = np.full((clip.grid[0], clip.height, clip.width, 3), 255, np.uint8)
        pictures = (clip_pictures.painted(white, mask[0].reshape(clip.grid).numpy(), clip.patch) for mask in masks)
        table[arm] = [sha256(picture.tobytes()).hexdigest()[:12] for picture in pictures]
    return pd.DataFrame.from_dict(table, orient="index", columns=["encoder sees", "decoder reconstructs"])
