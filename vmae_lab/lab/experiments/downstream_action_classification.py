"""Downstream: a frozen readout, fine-tuning and training from scratch side by side; views; what a classifier gets wrong."""

import numpy as np
import pandas as pd
from einops import rearrange

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import middle_clips
from vmae_lab.evaluation.attention import attention_rollout
from vmae_lab.evaluation.classification import class_accuracies
from vmae_lab.lab.arms import LONGER
from vmae_lab.lab.experiments.common import (
    clips_words,
    comparison_cells,
    comparison_words,
    how_compared,
    how_run,
    mean_and_spread,
)
from vmae_lab.lab.loading import held_out_clips
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.labels import short
from vmae_lab.lab.plots.maps import Strip
from vmae_lab.lab.plots.pictures import clip_frames, window
from vmae_lab.lab.readouts import load_classifier
from vmae_lab.lab.report.tables import plus_minus
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import PREDICTIONS, WEIGHTS
from vmae_lab.lab.statistics import compare, compare_pairs, summarise
from vmae_lab.utils.distributed import process_state
from vmae_lab.utils.seeding import numpy_generator

FEW = "few labels"
# What few labels are used for: what it is called, and the arm and the metric that tell it.
METHODS = {
    "scratch": ("trained from scratch", "scratch", "finetune"),
    "untrained": ("frozen untrained encoder, attentive readout", "scratch", "attentive"),
    "frozen": ("frozen pre-trained encoder, attentive readout", "pretrained", "attentive"),
    "finetuned": ("pre-trained, then fine-tuned", "pretrained", "finetune"),
    "scratch_long": (f"trained from scratch, {LONGER} x the steps", "scratch_long", "finetune"),
    "finetuned_long": (f"pre-trained, then fine-tuned, {LONGER} x the steps", "pretrained_long", "finetune"),
}
PAIRS = (
    ("frozen", "untrained"), ("finetuned", "scratch"), ("finetuned", "frozen"), ("scratch_long", "scratch"),
    ("finetuned_long", "scratch_long"), ("frozen", "scratch_long"),
)  # fmt: skip


def by_method(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies with few labels: columns arm (a name in METHODS), seed, metric, value."""
    parts = []
    for name, (_, arm, metric) in METHODS.items():
        if arm in plan.possible:
            chosen = rows[(rows.arm == arm) & (rows.metric == metric)]
            parts.append(chosen[["seed", "value"]].assign(arm=name, metric=FEW))
    return pd.concat(parts, ignore_index=True)


def methods_table(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """One line a way to use the labels, with its paired difference to training from scratch."""
    few = by_method(plan, rows)
    accuracy = summarise(few, FEW)
    differences = _to_scratch(plan, rows)
    return pd.DataFrame([
        {
            "what the labels are used for": METHODS[name][0], "top-1 %": mean_and_spread(accuracy, name),
            **comparison_cells(differences, name, "training from scratch"),
        }
        for name in accuracy.index
    ])  # fmt: skip


def _to_scratch(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    return compare(by_method(plan, rows), FEW, "scratch", plan.recipe.evaluate.margin)


def methods_caption(plan: Plan, rows: pd.DataFrame) -> str:
    """How many labels each way had, and how long it was trained."""
    evaluate = plan.recipe.evaluate
    draws = (
        f"averaged over {evaluate.probe.draws} draws of {evaluate.probe.labels} labels"
        if evaluate.probe.labels
        else "with all labels"
    )
    tuned = f"one draw of {evaluate.finetune_labels} labels a seed" if evaluate.finetune_labels else "all labels"
    labels = (
        f"attentive readouts {draws}; trained from scratch or fine-tuned with {tuned}, "
        f"{evaluate.finetune.steps} steps of {evaluate.finetune.batch_size} clips where it says no more; the middle clip of a "
        "video"
    )
    return f"{how_run(plan, labels)} {how_compared(plan, _to_scratch(plan, rows))}"


def views_table(plan: Plan, rows: pd.DataFrame, store: RunStore) -> pd.DataFrame:
    """One line an arm: the fine-tuned classifier on one clip of a video and on several views, and its calibration."""
    lines = []
    for arm in plan.possible:
        low, high = store.result(plan.first(arm).measures["views"])["intervals"]["views_top1"]
        lines.append({
            "classifier": _trained(arm),
            **{name: mean_and_spread(summarise(rows, metric), arm) for name, metric in (
                ("one clip: top-1 %", "finetune"), ("views: top-1 %", "views_top1"), ("top-5 %", "views_top5"),
                ("calibration error (ECE), %", "views_ece"),
            )},
            "95 % interval of the test set (views, first seed)": f"{low:.1f} to {high:.1f}",
        })  # fmt: skip
    return pd.DataFrame(lines)


def views_caption(plan: Plan) -> str:
    """Which views, and how the interval was found."""
    views = plan.recipe.evaluate.views
    crops = f"{views.crops} crops" if views.crops > 1 else "1 crop"
    return (
        f"Fine-tuned classifiers on {views.clips} clips ({views.sampling} sampling) x {crops} of each video of the "
        f"{plan.recipe.evaluate.split} split, softmax averaged over views; mean ± standard deviation over "
        f"{len(plan.recipe.seeds)} seeds. ECE: 15 bins of equal width. The interval is a percentile bootstrap over videos."
    )


def predictions(plan: Plan, store: RunStore, arm: str) -> pd.DataFrame:
    """What an arm's classifiers said of every evaluated video, all seeds: `prediction_table`'s columns, and `seed`."""
    parts = []
    for seed in plan.recipe.seeds:
        folder = store.folder(plan.cell(arm, seed).measures["views"])
        parts.append(pd.read_parquet(folder / PREDICTIONS).assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def confusion(plan: Plan, said: pd.DataFrame) -> np.ndarray:
    """Answers by class, added over seeds: int64, class x answer."""
    counts = np.zeros((plan.recipe.data.classes,) * 2, dtype=np.int64)
    np.add.at(counts, (said.label.to_numpy(), said.predicted.to_numpy()), 1)
    return counts


def classes_table(plan: Plan, said: pd.DataFrame) -> pd.DataFrame:
    """One line a class, the best first: how many of its videos are named right, over seeds, and what it is taken for."""
    names, counts = plan.recipe.data.class_names, confusion(plan, said)
    by_seed = np.array([
        class_accuracies(part.label.to_numpy(), part.predicted.to_numpy(), len(names)) for _, part in said.groupby("seed")
    ])  # fmt: skip
    spread = by_seed.std(0, ddof=1) if len(by_seed) > 1 else np.full(len(names), np.nan)
    wrong = counts - np.diag(np.diag(counts))
    there = [label for label in np.argsort(-by_seed.mean(0), kind="stable") if counts[label].any()]
    return pd.DataFrame([
        {
            "class": names[label], "videos": counts[label].sum() // len(by_seed),
            "right, %": plus_minus(by_seed[:, label].mean(), spread[label]),
            "most often taken for": f"{names[wrong[label].argmax()]} ({100 * wrong[label].max() / counts[label].sum():.0f} %)"
            if wrong[label].any() else "",
        }
        for label in there
    ])  # fmt: skip


def confident_mistakes(plan: Plan, said: pd.DataFrame, count: int) -> pd.DataFrame:
    """The wrong answers of the first seed that were given with the highest probability, the surest first."""
    wrong = said[(said.seed == plan.recipe.seeds[0]) & ~said.correct]
    return wrong.sort_values(["probability", "row"], ascending=[False, True]).head(count)


def mistake_strips(plan: Plan, mistakes: pd.DataFrame) -> dict[str, np.ndarray]:
    """Frames of some wrongly named clips under their class and what was said: uint8 `(T', side, side, 3)` each."""
    if mistakes.empty:
        return {}
    frames = clip_frames(plan, mistakes.row.tolist(), _judged_clips(plan))
    return dict(zip(_titles(plan, mistakes), frames, strict=True))


def attention_strips(plan: Plan, store: RunStore, arm: str, said: pd.DataFrame, count: int) -> dict[str, Strip]:
    """Some clips at random, each with how much of each token reaches the class head, of an arm's first seed.

    Under their class and what was said: frames uint8 `(T', side, side, 3)`, shares `(T', H', W')`, 1 where no token is told
    apart.
    """
    first = said[said.seed == plan.recipe.seeds[0]].set_index("row", drop=False)
    chosen = numpy_generator(plan.recipe.seeds[0], "clips to look at").permutation(len(first))[:count]
    rows, clips = first.iloc[chosen].row.tolist(), _judged_clips(plan)
    stage = plan.first(arm).measures["finetune"]
    model = load_classifier(stage.settings, store.folder(stage) / WEIGHTS)
    video = middle_clips(clips, rows, *window(plan.recipe)).to(process_state().device)
    grid = dict(zip(("t", "h", "w"), plan.recipe.model.clip.grid, strict=True))
    shares = attention_rollout(model.encoder, video).cpu() * plan.recipe.model.clip.tokens
    pairs = zip(clip_frames(plan, rows, clips), rearrange(shares, "b (t h w) -> b t h w", **grid).numpy(), strict=True)
    return dict(zip(_titles(plan, first.iloc[chosen]), pairs, strict=True))


def confusion_caption(plan: Plan) -> str:
    """Whose answers the matrix holds."""
    return (
        f"Answers of the classifier '{_trained(plan.pretrained[0])}' on views of the {plan.recipe.evaluate.split} split, "
        f"in % of a class's videos, numbers of answers in brackets; added up over {len(plan.recipe.seeds)} seeds."
    )


def classes_caption(plan: Plan) -> str:
    """Whose answers are counted by class."""
    return (
        f"The same answers by class, the best class first: mean ± standard deviation over {len(plan.recipe.seeds)} seeds, and "
        "the class that most of the wrong answers name."
    )


def mistakes_caption(plan: Plan) -> str:
    """Which wrong answers are shown."""
    return (
        f"The wrong answers of '{_trained(plan.pretrained[0])}', seed {plan.recipe.seeds[0]}, that were given with the "
        "greatest probability. The middle clip of each video, one frame a time step; the answer is that of all views."
    )


def attention_caption(plan: Plan) -> str:
    """How the shares were found, and what they do not say."""
    return (
        f"Attention rolled out over the blocks of '{_trained(plan.pretrained[0])}', seed {plan.recipe.seeds[0]} (Abnar "
        "and Zuidema 2020): how much of each token can reach the mean of the last ones, against 1 for all alike. Clips at "
        "random. It says where information could have come from, not what was used."
    )


def conclusions(plan: Plan, rows: pd.DataFrame, store: RunStore) -> list[str]:
    """Which use of the labels is best, whether views help, in words computed from the numbers."""
    few = by_method(plan, rows)
    accuracy = summarise(few, FEW)
    best = accuracy["mean"].idxmax()
    clips = store.result(plan.first(plan.pretrained[0]).measures["views"])["test_clips"]
    words = [
        f"With {plan.recipe.evaluate.finetune_labels or 'all'} labels most are right for '{METHODS[best][0]}': "
        f"{mean_and_spread(accuracy, best)} %.",
        clips_words(float(accuracy["mean"][best]), clips),
    ]
    for (name, other), row in compare_pairs(few, FEW, PAIRS, plan.recipe.evaluate.margin).iterrows():
        words.append(f"'{METHODS[name][0]}' compared with '{METHODS[other][0]}': {comparison_words(row)}.")
    for arm, row in _by_views(plan, rows).iterrows():
        words.append(f"Several views instead of one, {_trained(str(arm))}: {comparison_words(row)}.")
    return words


def _judged_clips(plan: Plan) -> Clips:
    """The clips that the predictions' rows number: without those that cannot be read, where these are skipped."""
    settings = plan.first(plan.pretrained[0]).measures["views"].settings
    return held_out_clips(settings, settings["sources"], plan.recipe.compute)[0]


def _by_views(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """Each arm's classifier on several views of a video compared with one clip. Index: arm."""
    chosen = rows[rows.arm.isin(plan.possible) & rows.metric.isin(["views_top1", "finetune"])]
    pairs = [(f"{arm} views_top1", f"{arm} finetune") for arm in plan.possible]
    named = chosen.assign(arm=chosen.arm + " " + chosen.metric, metric=FEW)
    return compare_pairs(named, FEW, pairs, plan.recipe.evaluate.margin).set_axis(plan.possible)


def _trained(arm: str) -> str:
    return next(words for words, own, metric in METHODS.values() if (own, metric) == (arm, "finetune"))


def _titles(plan: Plan, mistakes: pd.DataFrame) -> list[str]:
    names = plan.recipe.data.class_names
    return [
        f"{place}. {short(names[row.label], 24)}\nsaid: {short(names[row.predicted], 24)}\n(probability {row.probability:.2f})"
        for place, row in enumerate(mistakes.itertuples(), 1)
    ]
