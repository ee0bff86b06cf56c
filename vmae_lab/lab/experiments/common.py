"""What experiments share: their parts and results, arms, stages, and the cells, captions and sentences of comparisons."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vmae_lab.evaluation.classification import wilson_interval
from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.estimate import calibrate
from vmae_lab.lab.plan import Arm, Measures, Overrides, Plan
from vmae_lab.lab.plots import charts, clip_pictures
from vmae_lab.lab.plots.examples import masks_of_pictures
from vmae_lab.lab.plots.style import BLUE, GREY
from vmae_lab.lab.plots.text import markdown
from vmae_lab.lab.report.tables import interval, plus_minus
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage, finetune_stage, probe_stage
from vmae_lab.lab.statistics import NOT_MEASURED, compare, points, summarise
from vmae_lab.training.metrics import read_metrics

# ---- An experiment and its results ----


@dataclass(frozen=True)
class Experiment:
    """What a notebook compares, and by which stages each arm is evaluated.

    `baseline`: the arm that the main table compares the others with, by `metric` ("probe" is the recipe's main readout);
    `floor`: an arm outside of that comparison. `sources`: sources that the embedded data set needs. `min_clips`: clips that the
    pictures need. `one_seed`: nothing is compared, so the first seed is enough. `prepare` adapts the recipe; `calibrate`
    measures multiply-accumulates per second before the run.
    """

    title: str
    question: str
    arms: Mapping[str, Arm]
    stages: Measures
    baseline: str | None = None
    metric: str = "probe"
    floor: str | None = None
    controls: bool = False
    skip_impossible: bool = False
    needs_labels: bool = True
    one_seed: bool = False
    sources: tuple[str, ...] = ()
    min_clips: int = 1
    prepare: Callable[[Recipe], Recipe] = lambda recipe: recipe
    calibrate: Callable[[Recipe], float] = calibrate

    def metric_of(self, recipe: Recipe) -> str:
        """The name in the rows of the metric that arms are compared by."""
        return self.metric.replace("probe", recipe.evaluate.probe.probes[0])


@dataclass(frozen=True)
class Results:
    """The rows of a plan that has run, with the plan and the store of its stages: what tables and figures show."""

    plan: Plan
    rows: pd.DataFrame
    store: RunStore

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def probe(self) -> str:
        """The main readout, which conclusions are drawn from: the first of the recipe."""
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
        """`70.1 ± 0.4` over seeds; empty if the arm has no value."""
        return mean_and_spread(self.summary(metric), arm, digits)

    def compare(self, metric: str, baseline: str, arms: Sequence[str] | None = None) -> pd.DataFrame:
        """`statistics.compare` with the recipe's margin. `arms`: by default all others of the plan."""
        return compare(self.rows, metric, baseline, self.margin, self.plan.possible if arms is None else arms)

    def stage_result(self, arm: str, measure: str) -> dict[str, Any]:
        """The result of an arm's stage at the first seed."""
        return self.store.result(self.plan.first(arm).measures[measure])


@dataclass(frozen=True, repr=False)
class Table:
    """A table of a report, which a notebook shows as its frame."""

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
    """Running cells of a ratio; of ratio 0, no decoder mask."""
    return decoder_mask("running_cell", ratio) if ratio else decoder_mask("none", 0.0)


SCRATCH = Arm("no pre-training", GREY, "X", pretrained=False)
UNTRAINED = Arm("untrained encoder", GREY, "X", pretrained=False)
PRETRAINED = Arm("pre-trained", BLUE, "D", running_cells(0.5))


def clips_per_action(recipe: Recipe, parts: Mapping[str, float]) -> dict[str, int]:
    """Clips per source and action, from parts of what each source has: at least one."""
    available = require(recipe.data.motionworld, "data.motionworld").train
    return {source: max(1, round(part * available)) for source, part in parts.items()}


def frozen_readouts(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> dict[str, Stage]:
    return {"probe": probe_stage(recipe, encoder, seed)}


def readouts_and_finetuning(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> dict[str, Stage]:
    return {
        "probe": probe_stage(recipe, encoder, seed),
        "finetune": finetune_stage(recipe, encoder if arm.pretrained else None, seed),
    }


# ---- How a table was made, in sentences ----


def how_made(plan: Plan, evaluation: str = "", sources: Sequence[str] = ()) -> str:
    """What was run for a table of accuracies. `evaluation`: how labels were used, by default frozen readouts; `sources`: those
    evaluated on, if not the recipe's.
    """
    recipe, world, probe = plan.recipe, plan.recipe.data.motionworld, plan.recipe.evaluate.probe
    readouts = (
        f"frozen readouts averaged over {probe.draws} draws of {probe.labels} labels (the intervals over seeds hold these "
        "draws and the clips fixed)"
        if probe.labels
        else "frozen readouts with all labels"
    )
    every = world.sources if world else ("the list files",)
    learned, evaluated = recipe.data.pretrain_sources or every, sources or recipe.evaluate.sources or every
    data = f"evaluated on {', '.join(map(markdown, evaluated))}"
    if tuple(learned) != tuple(evaluated):
        data = f"pre-trained on {', '.join(map(markdown, learned))}, {data}"
    return (
        f"Scale `{recipe.scale}`: {recipe.model.size} model, {recipe.model.frames} x {recipe.model.side} x {recipe.model.side} "
        f"pixels, {recipe.pretrain.steps} pre-training steps of {recipe.pretrain.batch_size} clips unless the arm sets another "
        f"number, {len(recipe.seeds)} seeds; mean ± standard deviation over seeds, {recipe.evaluate.split} split, "
        f"{evaluation or readouts}; {data}."
    )


def caption(results: Results, *comparisons: pd.DataFrame, evaluation: str = "", sources: Sequence[str] = ()) -> str:
    """How a table with comparisons was made: `how_made` and `how_compared`."""
    return f"{how_made(results.plan, evaluation, sources)} {how_compared(results.margin, *comparisons)}"


# Where the error of a comparison comes from: pooled, or not.
ERRORS = {
    True: "pooled over arms and seeds (two-way analysis of variance, Dunnett's critical value)",
    False: "that of each comparison's own paired differences (Bonferroni)",
}


def how_compared(margin: float, *columns: pd.DataFrame) -> str:
    """How the comparisons of a table were made and what they can detect. One `compare` frame per column."""
    tables = [table for table in columns if len(table) and table["std"].notna().any()]
    if not tables:
        return "No comparison has an interval: that takes two seeds of both arms."

    def least_to_most(numbers: pd.Series) -> str:
        return " to ".join(dict.fromkeys(numbers.iloc[[0, -1]]))

    counts = sorted({int(table.comparisons.max()) for table in tables})
    family = f"{' or '.join(map(str, counts))} comparison{'s' if counts[-1] > 1 else ''} of the "
    family += "column" if len(columns) > 1 else "table"
    error = " or ".join(sorted({ERRORS[bool(table.pooled.any())] for table in tables}))
    detectable = pd.concat([table.detectable for table in tables]).dropna().sort_values().map("{:.1f}".format)
    seeds = pd.concat([table.seeds[table["std"].notna()] for table in tables]).sort_values().astype(str)
    return (
        f"Differences are paired by seed. The 95% intervals are simultaneous over the {family}; the error is {error}. The "
        f"smallest difference that {least_to_most(seeds)} seeds detect with 80% power is {least_to_most(detectable)} points. "
        "Arms are equivalent if two one-sided tests at 5% (as from a 90% interval; Holm) find the difference to be less than "
        f"{points(margin)}."
    )


# ---- Cells and sentences ----


def mean_and_spread(summary: pd.DataFrame, arm: str, digits: int = 1) -> str:
    return plus_minus(summary["mean"][arm], summary["std"][arm], digits) if arm in summary.index else ""


def difference_cell(comparisons: pd.DataFrame, arm: str) -> str:
    """`+1.2 [-0.3, +2.7]`; empty if the arm is not compared."""
    if arm not in comparisons.index or comparisons.verdict[arm] == NOT_MEASURED:
        return ""
    row = comparisons.loc[arm]
    return interval(row.difference, row.low, row.high)


def comparison_cells(comparisons: pd.DataFrame, arm: str, to: str, before: str = "") -> dict[str, str]:
    """The two columns of a comparison: the difference with its interval, and the verdict."""
    verdict = comparisons.verdict[arm] if arm in comparisons.index else ""
    return {f"{before}difference to {to} [95%]": difference_cell(comparisons, arm), f"{before}verdict": verdict}


def comparison_words(row: pd.Series) -> str:
    """`+1.2 [+0.3, +2.1] points, higher`."""
    return f"{interval(row.difference, row.low, row.high)} points, {row.verdict}"


def difference_range(differences: pd.DataFrame) -> str:
    """Smallest and largest mean difference over arms: `+1.0 to +2.0`."""
    return f"{differences.difference.min():+.1f} to {differences.difference.max():+.1f}"


def verdict_words(results: Results, comparisons: pd.DataFrame, baseline: str) -> str:
    """The verdicts of all compared arms in one sentence, grouped by verdict."""
    name = results.label(baseline)
    if comparisons["std"].isna().all():
        return f"With one seed or arm, nothing can be concluded about differences from '{name}'."
    kinds: dict[str, list[str]] = {}
    for arm, row in comparisons.iterrows():
        kind, _, detail = str(row.verdict).partition(" (")
        cell = difference_cell(comparisons, str(arm)) + (f", {detail[:-1]}" if detail else "")
        kinds.setdefault(kind, []).append(f"'{results.label(str(arm))}' ({cell})")
    listed = "; ".join(f"{kind}: {', '.join(arms)}" for kind, arms in sorted(kinds.items()))
    return f"Compared with '{name}' over {int(comparisons.seeds.max())} seeds, {listed}."


def floor_words(results: Results, metric: str, floor: str) -> list[str]:
    """What pre-training gains over the untrained encoder, as a range over the arms; no sentence if that was not run."""
    if floor not in results.plan.possible:
        return []
    gains = results.compare(metric, floor, results.plan.pretrained)
    worst = gains.difference.idxmin()
    return [
        f"Compared with the untrained encoder, pre-training changes the frozen readout ({PROBE_NAMES[results.probe]}) by "
        f"{difference_range(gains)} points. The smallest change is that of '{results.label(worst)}': "
        f"{comparison_words(gains.loc[worst])}."
    ]


def impossible_words(plan: Plan) -> list[str]:
    """The arms that were left out, one sentence each."""
    return [f"'{plan.arms[arm].label}' is not possible here: {reason}." for arm, reason in plan.impossible.items()]


def test_set_interval(results: Results, arm: str) -> str:
    """Wilson interval of an arm's mean accuracy: the uncertainty from the number of held-out clips alone."""
    clips = results.stage_result(arm, "probe")["test_clips"]
    low, high = wilson_interval(round(results.summary(results.probe)["mean"][arm] / 100 * clips), clips)
    return f"{low:.1f} to {high:.1f}"


def clips_words(accuracy: float, clips: int) -> str:
    """The uncertainty of one accuracy from the number of held-out clips, in a sentence."""
    low, high = wilson_interval(round(accuracy / 100 * clips), clips)
    half = (high - low) / 2
    caution = f"; with so few clips, do not rely on differences below about {half:.0f} points" if half > 5 else ""
    return (
        f"Accuracies are measured on {clips} clips: their number alone leaves one model's between {low:.1f} and {high:.1f}% "
        f"(Wilson, 95%){caution}."
    )


def over_seeds(results: Results, arm: str, measure: str, part: str, names: Iterable[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds of one part of a stage's results; index: the names that have values."""
    cells = [results.plan.cell(arm, seed) for seed in results.recipe.seeds]
    table = pd.DataFrame([results.store.result(cell.measures[measure])[part] for cell in cells])
    table = table.reindex(columns=list(names)).dropna(axis=1, how="all")
    return pd.DataFrame({"mean": table.mean(), "std": table.std(ddof=1)})


# ---- Losses and masks ----


def loss_history(results: Results, measure: str | None = None) -> pd.DataFrame:
    """Training losses of the pre-trained arms, or of a measure's stages: columns arm, seed, step, loss."""
    parts = []
    for cell in results.plan.cells:
        if measure or results.plan.arms[cell.arm].pretrained:
            stage = cell.measures[measure] if measure else cell.encoder
            rows = pd.DataFrame(read_metrics(results.store.folder(stage)))
            parts.append(rows[["step", "loss"]].assign(arm=cell.arm, seed=cell.seed))
    return pd.concat(parts, ignore_index=True)


def loss_plot(
    results: Results, measure: str | None = None, legend: str = "", loss: str = "reconstruction loss", note: str = ""
) -> Plot:
    """Training losses of the pre-training, or of a measure's stages."""
    figure = charts.loss_curves(loss_history(results, measure), results.plan.arms, legend, loss)
    words = f"{'training loss' if measure is None else loss} after the first tenth of the steps, mean and range over seeds"
    return Plot(figure, "loss", f"{words[0].upper()}{words[1:]}{note}.")


def mask_pictures(plan: Plan) -> pd.DataFrame:
    """Each arm's masks as hashes of pictures: columns "encoder sees" and "decoder rebuilds". Index: arm.

    The masks are those of the pictures, painted on a white clip. A hash is 12 hexadecimal digits of the SHA-256 of the pixels,
    uint8 `(T', H, W, 3)`: a change of the drawn masks changes it.
    """
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        clip, masks = recipe.model.clip, masks_of_pictures(recipe)
        white = np.full((clip.grid[0], clip.side, clip.side, 3), 255, np.uint8)
        pictures = (clip_pictures.painted(white, mask[0].reshape(clip.grid).numpy(), clip.patch) for mask in masks)
        table[arm] = [sha256(picture.tobytes()).hexdigest()[:12] for picture in pictures]
    return pd.DataFrame.from_dict(table, orient="index", columns=["encoder sees", "decoder rebuilds"])
