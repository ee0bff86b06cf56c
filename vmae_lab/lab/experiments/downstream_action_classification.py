"""Classification with few labels: frozen readouts, fine-tuning, training from scratch; several views; errors."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix

from vmae_lab.data.dataset import Clips
from vmae_lab.data.eval_clips import middle_clips
from vmae_lab.evaluation.classification import class_accuracies
from vmae_lab.evaluation.probes import PROBE_NAMES
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import TOP1, Experiment, Method, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Overrides, Plan
from vmae_lab.lab.plots import clip_pictures
from vmae_lab.lab.plots.examples import clip_frames, window
from vmae_lab.lab.plots.style import ORANGE, RED
from vmae_lab.lab.plots.text import short
from vmae_lab.lab.report.tables import plus_minus
from vmae_lab.lab.stages import PREDICTIONS, Stage, views_stage
from vmae_lab.lab.stages.finetune import FinetuneStage
from vmae_lab.lab.stages.multi_view import ViewsStage
from vmae_lab.lab.statistics import compare, compare_differences, summarise
from vmae_lab.utils.counts import counted
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.seeding import numpy_generator

LONGER = 6  # times the steps, which training from scratch needs: few steps alone would be an unfair comparison


def longer(recipe: Recipe) -> Overrides:
    tuning = recipe.evaluate.finetune
    steps = {"steps": LONGER * tuning.steps, "warmup_steps": LONGER * tuning.warmup_steps}
    return {**common.running_cells(0.5), **{f"evaluate.finetune.{name}": value for name, value in steps.items()}}


ARMS: dict[str, Arm] = {
    "scratch": common.SCRATCH,
    "pretrained": common.PRETRAINED,
    "scratch_long": Arm(f"no pre-training, {LONGER} x the steps", ORANGE, "s", longer, pretrained=False),
    "pretrained_long": Arm(f"pre-trained, {LONGER} x the steps", RED, "^", longer),
}


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Build frozen readouts, fine-tuning, and the fine-tuned classifier on several views."""
    found = common.readouts_and_finetuning(recipe, arm, encoder, seed)
    return {**found, "views": views_stage(recipe, found["finetune"], seed)}


EXPERIMENT = Experiment(
    "Action classification", "What is the best use of few labels?", ARMS, stages, baseline="scratch", metric="finetune"
)

# ---- Ways to use few labels ----

TUNED = {
    "scratch": Method("trained from scratch", "scratch", "finetune"),
    "finetuned": Method("pre-trained, then fine-tuned", "pretrained", "finetune"),
    "scratch_long": Method(f"trained from scratch, {LONGER} x the steps", "scratch_long", "finetune"),
    "finetuned_long": Method(f"pre-trained, then fine-tuned, {LONGER} x the steps", "pretrained_long", "finetune"),
}


def methods(results: Results) -> dict[str, Method]:
    """Return the ways to use labels: the main readout of frozen encoders, and all trained classifiers."""
    readout = PROBE_NAMES[results.probe]
    frozen = {
        "untrained": Method(f"frozen untrained encoder, {readout}", "scratch", results.probe),
        "frozen": Method(f"frozen pre-trained encoder, {readout}", "pretrained", results.probe),
    }
    return frozen | TUNED


PAIRS = (
    ("frozen", "untrained"), ("finetuned", "scratch"), ("finetuned", "frozen"), ("scratch_long", "scratch"),
    ("finetuned_long", "scratch_long"), ("frozen", "scratch_long"),
)  # fmt: skip


def methods_table(results: Results) -> Table:
    """Return one row per way to use the labels, with its paired difference to training from scratch."""
    differences = compare(common.by_method(results, methods(results)), TOP1, "scratch", results.margin, required=False)
    frame = common.methods_frame(
        results, methods(results), "what the labels are used for", differences, "training from scratch"
    )
    labels = common.labels_used(results.recipe, "frozen readouts")
    evaluation = f"{labels} unless the name has a factor; one clip per video"
    return Table(frame, "methods", common.caption(results, differences, evaluation=evaluation))


def losses(results: Results) -> Plot:
    return common.loss_plot(results, "finetune", legend="start from", loss="classification loss")


def validation(results: Results) -> Plot | None:
    """Losses and accuracy on the validation split during fine-tuning; None if `evaluate.finetune.validate_every` is 0."""
    return common.validation_plot(results, "finetune", legend="start from")


# ---- Several views of a video ----


def views_table(results: Results) -> Table:
    """Return one row per arm: the fine-tuned classifier on one clip of a video and on several views, and its calibration."""
    columns = {
        "one clip: top-1 %": "finetune", "views: top-1 %": "views_top1", "top-5 %": "views_top5",
        "calibration error (ECE), %": "views_ece",
    }  # fmt: skip
    lines = []
    for arm in results.plan.possible:
        low, high = results.stage_result(arm, "views")["intervals"]["views_top1"]
        lines.append({
            "classifier": _trained(arm), **{name: results.value(arm, metric) for name, metric in columns.items()},
            "95% interval of the test set (views, first seed)": f"{low:.1f} to {high:.1f}",
        })  # fmt: skip
    views = results.recipe.evaluate.views
    caption = (
        f"Fine-tuned classifiers on {counted(views.clips, 'clip')} ({views.sampling} sampling) x "
        f"{counted(views.crops, 'crop')} per video of the {results.recipe.evaluate.split} split, softmax averaged over views; "
        f"mean ± standard deviation over {counted(len(results.recipe.seeds), 'seed')}. ECE: 15 bins of equal width. Interval: "
        "percentile bootstrap over videos."
    )
    return Table(pd.DataFrame(lines), "views", caption)


# ---- Predictions of the first pre-trained arm ----


def predictions(results: Results) -> pd.DataFrame:
    """Return the classifiers' predictions for every evaluated video, all seeds: `prediction_table`'s columns, and `seed`."""
    parts = []
    for seed in results.recipe.seeds:
        stage = results.plan.cell(results.plan.pretrained[0], seed).measures["views"]
        parts.append(pd.read_parquet(results.store.folder(stage) / PREDICTIONS).assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def confusion(plan: Plan, predicted: pd.DataFrame) -> np.ndarray:
    """Return the predictions by class, added over seeds: int64, class x prediction."""
    return confusion_matrix(predicted.label, predicted.predicted, labels=range(plan.recipe.data.classes))


def confusion_plot(results: Results, predicted: pd.DataFrame) -> Plot:
    counts = confusion(results.plan, predicted)
    return common.confusion_plot(results, counts, f"the classifier '{_first(results)}', averaged over views,")


def classes_table(results: Results, predicted: pd.DataFrame) -> Table:
    """Return one row per class, the best first: accuracy over seeds, and the most frequent wrong prediction."""
    names, counts = results.recipe.data.class_names, confusion(results.plan, predicted)
    seeds = [part for _, part in predicted.groupby("seed")]
    by_seed = pd.DataFrame([class_accuracies(part.label.to_numpy(), part.predicted.to_numpy(), len(names)) for part in seeds])
    mean, spread = by_seed.mean().to_numpy(), by_seed.std().to_numpy()
    wrong = counts - np.diag(np.diag(counts))
    lines = [
        {
            "class": names[label], "videos": counts[label].sum() // len(by_seed),
            "right, %": plus_minus(mean[label], spread[label]),
            "most frequent wrong prediction":
            f"{names[wrong[label].argmax()]} ({100 * wrong[label].max() / counts[label].sum():.0f}%)"
            if wrong[label].any() else "",
        }
        for label in np.argsort(-mean, kind="stable") if counts[label].any()
    ]  # fmt: skip
    caption = (
        f"The same predictions by class, best class first: mean ± standard deviation over {counted(len(by_seed), 'seed')}."
    )
    return Table(pd.DataFrame(lines), "classes", caption)


def mistakes(results: Results, predicted: pd.DataFrame, count: int = 4) -> Plot | None:
    """Show the wrong predictions of the first seed with the highest probability; None if all are right."""
    wrong = predicted[(predicted.seed == results.recipe.seeds[0]) & ~predicted.correct]
    chosen = wrong.sort_values(["probability", "row"], ascending=[False, True]).head(count)
    if chosen.empty:
        return None
    frames = clip_frames(results.plan, chosen.row.tolist(), _evaluated_clips(results))
    figure = clip_pictures.strips(dict(zip(_titles(results, chosen), frames, strict=True)))
    caption = (
        f"Wrong predictions of '{_first(results)}', seed {results.recipe.seeds[0]}, with the highest probability (mean over "
        "views). Middle clip of each video, one frame per time step."
    )
    return Plot(figure, "mistakes", caption)


def attention(results: Results, predicted: pd.DataFrame, count: int = 3) -> Plot:
    """Show random clips, each with its attention rollout, and with what speaks for the class that the first seed predicts."""
    seed = results.recipe.seeds[0]
    first = predicted[predicted.seed == seed].set_index("row", drop=False)
    chosen = numpy_generator(seed, "clips to look at").permutation(len(first))[:count]
    rows, clips = first.iloc[chosen].row.tolist(), _evaluated_clips(results)
    stage = results.plan.first(results.plan.pretrained[0]).measures["finetune"]
    assert isinstance(stage, FinetuneStage)
    model = stage.load(results.store.folder(stage))
    video = middle_clips(clips, rows, *window(results.recipe)).to(process_state().device)
    labels = torch.tensor(first.iloc[chosen].predicted.tolist(), device=video.device)
    maps = common.token_maps(model, video, labels)
    strips = zip(clip_frames(results.plan, rows, clips), maps, strict=True)
    figure = clip_pictures.attention_strips(dict(zip(_titles(results, first.iloc[chosen]), strips, strict=True)))
    caption = f"Random clips and maps of '{_first(results)}', seed {seed}. {common.MAPS_CAPTION}"
    return Plot(figure, "attention", caption)


def _evaluated_clips(results: Results) -> Clips:
    """Return the clips that the predictions' rows refer to, without skipped unreadable ones."""
    stage = results.plan.first(results.plan.pretrained[0]).measures["views"]
    assert isinstance(stage, ViewsStage)
    return stage.held_out_clips(results.recipe.compute)[0]


def _trained(arm: str) -> str:
    """Describe how an arm's classifier was trained."""
    return next(method.label for method in TUNED.values() if (method.arm, method.metric) == (arm, "finetune"))


def _first(results: Results) -> str:
    return _trained(results.plan.pretrained[0])


def _titles(results: Results, predicted: pd.DataFrame) -> list[str]:
    names = results.recipe.data.class_names
    return [
        f"{place}. {short(names[row.label], 24)}\npredicted: {short(names[row.predicted], 24)}\n"
        f"(probability {row.probability:.2f})"
        for place, row in enumerate(predicted.itertuples(), 1)
    ]  # fmt: skip


# ---- Conclusions ----


def conclusions(results: Results) -> list[str]:
    """State the comparisons of the ways to use few labels, and of several views with one clip."""
    accuracy = summarise(common.by_method(results, methods(results)), TOP1)["mean"]
    words = common.method_words(results, methods(results), PAIRS)
    rows = results.rows[results.rows.metric.isin(["views_top1", "finetune"])]
    values = rows.pivot(index="seed", columns=["metric", "arm"], values="value")
    gains = (values["views_top1"] - values["finetune"])[results.plan.possible]
    for arm, row in compare_differences(gains, results.margin, one_baseline=False).iterrows():
        words.append(f"Several views compared with one clip, {_trained(str(arm))}: {common.comparison_words(row)}.")
    clips = results.stage_result(results.plan.pretrained[0], "views")["test_clips"]
    return [*words, common.test_set_words(accuracy.max(), clips)]
