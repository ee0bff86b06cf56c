"""What every notebook shows: captions, controls, loss histories, cells of tables."""

from collections.abc import Iterable, Sequence
from hashlib import sha256

import numpy as np
import pandas as pd
from scipy.stats import binom

from vmae_lab.evaluation.metrics import wilson_interval
from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.figures import painted
from vmae_lab.lab.plots.labels import markdown
from vmae_lab.lab.plots.pictures import masks_of_pictures
from vmae_lab.lab.report.tables import interval, plus_minus
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import NOT_MEASURED, compare, points, summarise
from vmae_lab.training.metrics import read_metrics

# Where the error of a comparison comes from, if it is pooled and if not.
ERRORS = {
    True: "pooled over arms and seeds (two-way analysis of variance, Dunnett's critical value)",
    False: "that of each comparison's own paired differences (Bonferroni)",
}


def main_probe(plan: Plan) -> str:
    """The readout that conclusions are drawn from: the first of the recipe."""
    return plan.recipe.evaluate.probe.probes[0]


def how_made(plan: Plan, sources: Sequence[str] = ()) -> str:
    """How a table of frozen readouts was made, in a sentence. `sources`: those evaluated on, where not the recipe's."""
    probe = plan.recipe.evaluate.probe
    labels = (
        f"frozen readouts averaged over {probe.draws} draws of {probe.labels} labels (the intervals over seeds hold these "
        "draws and the clips fixed)"
        if probe.labels
        else "frozen readouts with all labels"
    )
    return how_run(plan, labels, sources)


def how_run(plan: Plan, labels: str, sources: Sequence[str] = ()) -> str:
    """What was run for a table of accuracies, in a sentence. `labels`: how labels were used; `sources`: as in `how_made`."""
    recipe, world = plan.recipe, plan.recipe.data.motionworld
    every = world.sources if world else ("the list files",)
    learned, evaluated = recipe.data.pretrain_sources or every, sources or recipe.evaluate.sources or every
    where = f"evaluated on {', '.join(map(markdown, evaluated))}"
    if tuple(learned) != tuple(evaluated):
        where = f"pre-trained on {', '.join(map(markdown, learned))}, {where}"
    return (
        f"Scale `{recipe.scale}`: {recipe.model.size} model, {recipe.model.frames} x {recipe.model.side} x {recipe.model.side} "
        f"pixels, {recipe.pretrain.steps} pre-training steps of {recipe.pretrain.batch_size} clips where the arm says no "
        f"other, {len(recipe.seeds)} seeds; mean ± standard deviation over seeds, {recipe.evaluate.split} split, {labels}; "
        f"{where}."
    )


def mask_pictures(plan: Plan) -> pd.DataFrame:
    """Each arm's masks as a picture, named by its hash: columns "encoder sees" and "decoder rebuilds". Index: arm.

    The masks are those that pictures are drawn with, painted on a white clip, so that no decoder of videos has a part in it.
    Twelve hexadecimal digits of the SHA-256 of the pixels, uint8 `(T', H, W, 3)`: a mask that is drawn otherwise has another.
    """
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        clip, masks = recipe.model.clip, masks_of_pictures(recipe)
        white = np.full((clip.grid[0], clip.side, clip.side, 3), 255, np.uint8)
        pictures = (painted(white, mask[0].reshape(clip.grid).numpy(), clip.patch) for mask in masks)
        table[arm] = [sha256(picture.tobytes()).hexdigest()[:12] for picture in pictures]
    return pd.DataFrame.from_dict(table, orient="index", columns=["encoder sees", "decoder rebuilds"])


def controls_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """The controls: those without an encoder next to the limit of chance, and trained ones with their interval over seeds.

    Empty for list files without `evaluate.controls`.
    """
    return pd.DataFrame([*_pixel_controls(plan, rows, store), *_trained_controls(plan, rows)]).fillna("")


def _pixel_controls(plan: Plan, rows: pd.DataFrame, store: RunStore) -> list[dict[str, str]]:
    """What needs no encoder, one line each."""
    if plan.controls is None:
        return []
    values = rows[rows.arm == "controls"].set_index("metric").value
    controls = store.result(plan.controls)
    clips, frames = controls["test_clips"], len(controls["single_frames"])
    names = {
        "raw_pixels": ("ridge on the raw pixels of the clip, few labels", 1),
        "single_frame_mean": (f"ridge on one frame, all labels, mean of {frames} frames", 1),
        "single_frame_best": (f"ridge on one frame, all labels, best of {frames} frames", frames),
    }
    return [
        {
            **_control_line(plan, name, f"{values[metric]:.1f}"),
            "chance stays below, 95 %": f"{_chance_limit(plan, clips, tries):.1f}",
        }
        for metric, (name, tries) in names.items()
    ]


def _trained_controls(plan: Plan, rows: pd.DataFrame) -> list[dict[str, str]]:
    """The recipe's controls that read an encoder, one line each: mean, deviation and interval over seeds.

    The binomial limit of chance does not hold for them: a readout errs in the same way on all clips of an action, so a fit to
    shuffled labels spreads more than guesses.
    """
    probe, floor, lines = main_probe(plan), "scratch", []
    names = {
        "other_clip": f"pre-training with the target of another clip, {PROBE_NAMES[probe]}",
        "shuffled_labels": f"pre-training, {PROBE_NAMES[probe]} fitted to shuffled labels",
    }
    for control, name in names.items():
        if not any(f"probe@{control}" in cell.measures for cell in plan.control_cells):
            continue
        own = rows[(rows.arm == "controls") & (rows.metric == f"{probe}@{control}")].assign(metric=probe)
        summary = summarise(own, probe)
        line = _control_line(plan, name, mean_and_spread(summary, "controls"))
        low, high = summary.low["controls"], summary.high["controls"]
        if not np.isnan(low):
            line["95% interval over seeds"] = f"{low:.1f} to {high:.1f}"
        if control == "other_clip" and floor in plan.possible:
            both = pd.concat([own, rows[(rows.arm == floor) & (rows.metric == probe)]])
            line |= comparison_cells(compared(plan, both, probe, floor, ["controls"]), "controls", "the untrained encoder")
        lines.append(line)
    return lines


def _control_line(plan: Plan, name: str, accuracy: str) -> dict[str, str]:
    return {"control": name, "top-1 %": accuracy, "chance %": f"{100 / plan.recipe.data.classes:.1f}"}


def loss_history(plan: Plan, store: RunStore, measure: str | None = None) -> pd.DataFrame:
    """Training losses of the pre-trained arms, or of a measure's stages where it is trained: columns arm, seed, step, loss."""
    parts = []
    for cell in plan.cells:
        if measure or plan.arms[cell.arm].pretrained:
            rows = pd.DataFrame(read_metrics(store.folder(cell.measures[measure] if measure else cell.encoder)))
            parts.append(rows[["step", "loss"]].assign(arm=cell.arm, seed=cell.seed))
    return pd.concat(parts, ignore_index=True)


def over_seeds(plan: Plan, store: RunStore, arm: str, measure: str, part: str, names: Iterable[str]) -> pd.DataFrame:
    """Mean and standard deviation over seeds of one part of a measure's results; index: the names, where there are values."""
    results = [store.result(plan.cell(arm, seed).measures[measure])[part] for seed in plan.recipe.seeds]
    table = pd.DataFrame(results).reindex(columns=list(names)).dropna(axis=1, how="all")
    return pd.DataFrame({"mean": table.mean(), "std": table.std(ddof=1)})


def single_frame_verdict(plan: Plan, rows: pd.DataFrame, store: RunStore) -> list[str]:
    """Whether one frame tells the class, against the binomial limit for the best of all frames; a sentence, or none."""
    if plan.controls is None:
        return []
    best = rows[(rows.arm == "controls") & (rows.metric == "single_frame_best")].value.item()
    controls = store.result(plan.controls)
    limit = _chance_limit(plan, controls["test_clips"], len(controls["single_frames"]))
    verdict = (
        "One frame alone beats chance: part of what is read is not motion" if best > limit else "No single frame beats chance"
    )
    return [f"{verdict} (best {best:.1f} %; the best of as many tries at chance stays below {limit:.1f} %)."]


def _chance_limit(plan: Plan, clips: int, tries: int) -> float:
    """What the best of some tries at chance on as many clips stays below in 95 % of cases (Bonferroni), in percent."""
    return 100 * float(binom.ppf(1 - 0.05 / tries, clips, 1 / plan.recipe.data.classes)) / clips


def test_set_interval(plan: Plan, rows: pd.DataFrame, store: RunStore, arm: str) -> str:
    """Wilson interval of an arm's mean accuracy: what the finite number of held-out clips leaves open, seeds apart."""
    clips = store.result(plan.first(arm).measures["probe"])["test_clips"]
    low, high = wilson_interval(round(summarise(rows, main_probe(plan))["mean"][arm] / 100 * clips), clips)
    return f"{low:.1f} to {high:.1f}"


def clips_words(accuracy: float, clips: int) -> str:
    """What the number of held-out clips leaves open about one accuracy, in a sentence: with few, that is nearly all."""
    low, high = wilson_interval(round(accuracy / 100 * clips), clips)
    few = (high - low) / 2
    caution = f"; with so few, differences of less than some {few:.0f} points are not to be built on" if few > 5 else ""
    return (
        f"Accuracies are read on {clips} clips: their number alone leaves one model's between {low:.1f} and {high:.1f} % "
        f"(Wilson, 95 %){caution}."
    )


def difference_range(differences: pd.DataFrame) -> str:
    """Least and greatest mean difference over arms: `+1.0 to +2.0`."""
    return f"{differences.difference.min():+.1f} to {differences.difference.max():+.1f}"


def mean_and_spread(summary: pd.DataFrame, arm: str, digits: int = 1) -> str:
    return plus_minus(summary["mean"][arm], summary["std"][arm], digits) if arm in summary.index else ""


def compared(plan: Plan, rows: pd.DataFrame, metric: str, baseline: str, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """`compare` with the recipe's margin. `arms`: by default all others that the plan has."""
    return compare(rows, metric, baseline, plan.recipe.evaluate.margin, plan.possible if arms is None else arms)


def difference_cell(comparisons: pd.DataFrame, arm: str) -> str:
    """`+1.2 [-0.3, +2.7]`; empty if the arm is not compared."""
    if arm not in comparisons.index or comparisons.verdict[arm] == NOT_MEASURED:
        return ""
    row = comparisons.loc[arm]
    return interval(row.difference, row.low, row.high)


def comparison_cells(comparisons: pd.DataFrame, arm: str, to: str, before: str = "") -> dict[str, str]:
    """The two columns of a comparison in a table: the difference with its interval, and the verdict."""
    verdict = comparisons.verdict[arm] if arm in comparisons.index else ""
    return {f"{before}difference to {to} [95%]": difference_cell(comparisons, arm), f"{before}verdict": verdict}


def comparison_words(row: pd.Series) -> str:
    """`+1.2 [+0.3, +2.1] points, higher`."""
    return f"{interval(row.difference, row.low, row.high)} points, {row.verdict}"


def how_compared(plan: Plan, *columns: pd.DataFrame) -> str:
    """How the comparisons of a table were made and what they can detect, in sentences. One `compare` frame per column."""
    tables = [table for table in columns if len(table) and table["std"].notna().any()]
    if not tables:
        return "No comparison has an interval: that takes two seeds of both arms."
    counts = sorted({int(table.comparisons.max()) for table in tables})
    family = f"{' or '.join(map(str, counts))} comparison{'s' if counts[-1] > 1 else ''} of the "
    family += "column" if len(columns) > 1 else "table"
    error = " or ".join(sorted({ERRORS[bool(table.pooled.any())] for table in tables}))
    detectable = pd.concat([table.detectable for table in tables]).dropna().sort_values().map("{:.1f}".format)
    seeds = pd.concat([table.seeds[table["std"].notna()] for table in tables]).sort_values().astype(str)
    return (
        f"Differences are paired by seed. The 95% intervals are simultaneous over the {family}; the error is {error}. The "
        f"smallest difference that {_least_to_most(seeds)} seeds detect with 80% power is {_least_to_most(detectable)} points. "
        "Arms are equivalent if two one-sided tests at 5% (as from a 90% interval; Holm) find the difference to be less than "
        f"{points(plan.recipe.evaluate.margin)}."
    )


def _least_to_most(numbers: pd.Series) -> str:
    """The first and the last number, or the one if they are the same."""
    return " to ".join(dict.fromkeys(numbers.iloc[[0, -1]]))


def floor_words(plan: Plan, rows: pd.DataFrame, metric: str, floor: str) -> list[str]:
    """What pre-training gains over the untrained encoder, least and most over the arms; nothing if that was not run."""
    if floor not in plan.possible:
        return []
    gains = compared(plan, rows, metric, floor, plan.pretrained)
    worst = gains.difference.idxmin()
    return [
        f"Compared with the untrained encoder, pre-training changes the frozen readout ({PROBE_NAMES[main_probe(plan)]}) by "
        f"{difference_range(gains)} points. The smallest change is that of '{plan.arms[worst].label}': "
        f"{comparison_words(gains.loc[worst])}."
    ]


def gain_words(plan: Plan, rows: pd.DataFrame, metric: str, what: str, floor: str) -> list[str]:
    """What pre-training changes, with its interval and verdict: one sentence per arm."""
    shares, gains, words = summarise(rows, metric), compared(plan, rows, metric, floor), []
    for arm in plan.pretrained:
        sentence = f"{what} is correct for {mean_and_spread(shares, arm)}% with '{plan.arms[arm].label}'"
        if arm in gains.index:
            sentence += f" and {mean_and_spread(shares, floor)}% untrained: a change of {comparison_words(gains.loc[arm])}"
        words.append(sentence + ".")
    return words


def verdict_words(plan: Plan, comparisons: pd.DataFrame, baseline: str) -> str:
    """The verdicts of all compared arms in one sentence, those of one kind together."""
    name = plan.arms[baseline].label
    if comparisons["std"].isna().all():
        return f"With one seed or arm, nothing can be concluded about differences from '{name}'."
    kinds: dict[str, list[str]] = {}
    for arm, row in comparisons.iterrows():
        kind, _, detail = str(row.verdict).partition(" (")
        cell = difference_cell(comparisons, str(arm)) + (f", {detail[:-1]}" if detail else "")
        kinds.setdefault(kind, []).append(f"'{plan.arms[str(arm)].label}' ({cell})")
    listed = "; ".join(f"{kind}: {', '.join(arms)}" for kind, arms in sorted(kinds.items()))
    return f"Compared with '{name}' over {int(comparisons.seeds.max())} seeds, {listed}."


def impossible_words(plan: Plan) -> list[str]:
    """The arms that were left out, a sentence each."""
    return [f"'{plan.arms[arm].label}' is not possible here: {reason}." for arm, reason in plan.impossible.items()]
