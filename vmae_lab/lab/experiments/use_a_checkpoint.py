"""From a checkpoint to features, reconstructions and a classifier: frozen, fine-tuned, and continued on the own videos."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vmae_lab.data.eval_clips import middle_clips
from vmae_lab.evaluation import retrieval
from vmae_lab.evaluation.predict import names_of
from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import TOP1, Experiment, Method, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Cell, Plan, own_encoder
from vmae_lab.lab.plots import charts, clip_pictures
from vmae_lab.lab.plots.examples import clip_frames, example_clips, masks_of_pictures, random_clips, rebuilt, window
from vmae_lab.lab.plots.style import BLUE, GREEN, GREY, ORANGE, RED, SKY
from vmae_lab.lab.plots.text import short
from vmae_lab.lab.stages import WEIGHTS, Stage, finetune_stage, opened_stage, pretrain_stage
from vmae_lab.lab.stages.probe import load_encoder
from vmae_lab.lab.statistics import compare_pairs, summarise
from vmae_lab.models.checkpoints import Checkpoint, open_checkpoint
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import size_name
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.counts import counted
from vmae_lab.utils.processes import fixed_threads

ARMS: dict[str, Arm] = {
    "scratch": common.SCRATCH,
    "frozen": Arm("checkpoint, frozen", SKY, "o"),
    "finetuned": Arm("checkpoint, fine-tuned", BLUE, "D"),
    "continued": Arm("checkpoint, continued", RED, "^"),
}

# ---- The checkpoint and the stages that use it ----


@lru_cache(maxsize=1)  # a plan asks for it once per arm and seed
def _open(where: str) -> Checkpoint:
    return open_checkpoint(where)


def prepare(recipe: Recipe) -> Recipe:
    """Set the model and its clips to those of the checkpoint. Raises RecipeError, CheckpointError."""
    recipe = recipe.with_overrides(common.running_cells(0.5))
    if recipe.checkpoint is None:
        return recipe
    _open.cache_clear()  # the file may have changed since an earlier plan
    config = _open(recipe.checkpoint).config
    clip = config.clip
    size = config.size
    name = size_name(size.width, size.depth, size.mlp_hidden, size.heads)
    if name is None:
        raise RecipeError(
            f"checkpoint: {recipe.checkpoint} has an encoder of width {size.width}, depth {size.depth}, {size.heads} heads and "
            f"MLP width {size.mlp_hidden}, which is no size of vmae_lab/models/sizes.py; add it there"
        )
    return recipe.with_overrides({
        "model": {
            "size": name, "frames": clip.frames, "side": clip.as_json["side"],
            "tubelet": clip.tubelet, "patch": clip.patch, "layer_scale": size.layer_scale,
            "positions": recipe.model.positions,
        },
        "detect": None, "localise": None,  # they may not fit this model, and are not used
    })  # fmt: skip


def checkpoint_stage(recipe: Recipe) -> Stage:
    """Return the stage of the checkpoint: the opened file or, without `checkpoint`, a pre-training with the first seed."""
    if recipe.checkpoint is None:
        return pretrain_stage(recipe, recipe.seeds[0])
    return opened_stage(recipe, _open(recipe.checkpoint))


def encoder_of(recipe: Recipe, arm: Arm, seed: int) -> Stage:
    """Return what an arm starts from: new weights, the checkpoint, or its continued pre-training."""
    if not arm.pretrained:
        return own_encoder(recipe, arm, seed)
    checkpoint = checkpoint_stage(recipe)
    return pretrain_stage(recipe, seed, checkpoint) if arm.name == "continued" else checkpoint


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Build frozen readouts, fine-tuning, or both."""
    if arm.name == "frozen":
        return common.frozen_readouts(recipe, arm, encoder, seed)
    if arm.name == "finetuned":
        return {"finetune": finetune_stage(recipe, encoder, seed)}
    return common.readouts_and_finetuning(recipe, arm, encoder, seed)


EXPERIMENT = Experiment(
    "Use a checkpoint",
    "How accurate is a published checkpoint on your videos: with a frozen encoder, after fine-tuning, or after continued "
    "pre-training?",
    ARMS, stages, encoder_of, baseline="scratch", metric="finetune", floor="frozen", min_clips=retrieval.FEWEST,
    prepare=prepare,
)  # fmt: skip


def checkpoint_folder(results: Results) -> Path:
    """Return the folder of the checkpoint in runs/. `from_pretrained` and the commands read it."""
    return results.store.folder(checkpoint_stage(results.recipe))


def _opened(results: Results) -> Checkpoint:
    """Open the checkpoint itself, not its copy in runs/, which may have a new class head."""
    where = results.recipe.checkpoint
    return open_checkpoint(checkpoint_folder(results)) if where is None else _open(where)


def checkpoint_table(results: Results) -> Table:
    """Return what the checkpoint is and contains."""
    recipe, opened = results.recipe, _opened(results)
    config, clip = opened.config, opened.config.clip
    head = "none"
    if config.classes:
        head = counted(config.classes, "class") + ("" if config.class_names else ", names unknown")
    values = {
        "checkpoint": recipe.checkpoint or "the run's own pre-training", "folder in runs/": checkpoint_folder(results).name,
        "encoder": f"{recipe.model.size}: {counted(config.size.depth, 'block')}, width {config.size.width}",
        "parameters, millions": f"{sum(weights.numel() for weights in opened.state.values()) / 1e6:.2f}",
        "clips": f"{clip.pixels}, tokens {' x '.join(map(str, clip.grid))}",
        "decoder": "yes" if config.model == "VideoMAE" else "no", "class head": head,
    }  # fmt: skip
    frame = pd.DataFrame(list(values.items()), columns=["property", "value"])
    return Table(frame, "checkpoint", "The checkpoint, as it was loaded.")


# ---- Clips to look at ----


def held_out_clips(plan: Plan, count: int) -> tuple[list[int], Tensor, Tensor]:
    """Return rows, pixels and labels of random held-out clips: int, uint8 `(n, C, T, H, W)`, int64 `(n,)`.

    Raises MissingVideos.
    """
    clips = example_clips(plan)
    rows = random_clips(plan, count)
    return rows, middle_clips(clips, rows, *window(plan.recipe)), torch.from_numpy(clips.labels[rows])


def reconstruction(results: Results, rows: list[int]) -> Plot | None:
    """Show held-out clips, masked and reconstructed by the checkpoint; None if it has no decoder."""
    plan = results.plan
    if _opened(results).config.model != "VideoMAE":
        return None
    model = VideoMAE.from_pretrained(checkpoint_folder(results))
    encoder_mask, _ = masks_of_pictures(plan.recipe)
    video = middle_clips(example_clips(plan), rows, *window(plan.recipe))
    strips = {}
    for number, clip in enumerate(video.split(1), 1):
        for name, frames in rebuilt(model, clip, encoder_mask).items():
            strips[f"{number}. {name}"] = frames[:: model.clip.tubelet]
    caption = (
        f"Random held-out clips, {plan.recipe.mask.encoder_ratio:.0%} masked, and their reconstruction by the checkpoint. "
    )
    if model.normalise_target:
        caption += "The mean and contrast of each patch are the true ones."
    return Plot(clip_pictures.strips(strips), "reconstruction", caption)


# ---- Features by layer ----

MOST = 200  # clips of the figure
BATCH = 32
SAME_CLASS = "nearest clip is of the same class, %"
LAYER_ARMS = {
    "scratch": Arm("untrained", GREY, "X"), "frozen": Arm("checkpoint", SKY, "o"), "continued": Arm("continued", RED, "^"),
}  # fmt: skip


def layers(results: Results, most: int = MOST) -> pd.DataFrame:
    """Return how often the nearest clip by a layer's features has the same class: columns arm, seed, layer, value (percent).

    Features are mean tokens of the middle clips, standardized. Raises MissingVideos.
    """
    plan = results.plan
    _, video, labels = held_out_clips(plan, most)
    cells: dict[tuple[str, str], Cell] = {}
    for cell in plan.cells:
        if cell.arm in LAYER_ARMS:
            cells.setdefault((cell.arm, cell.encoder.key), cell)  # all seeds share one checkpoint; it is measured once
    rows = []
    for cell in cells.values():
        values = _same_class_by_layer(cell.recipe, results.store.folder(cell.encoder), video, labels.numpy())
        rows += [{"arm": cell.arm, "seed": cell.seed, "layer": layer, "value": value} for layer, value in enumerate(values, 1)]
    return pd.DataFrame(rows, columns=["arm", "seed", "layer", "value"])


@torch.no_grad()
def _same_class_by_layer(recipe: Recipe, folder: Path, video: Tensor, labels: np.ndarray) -> list[float]:
    with fixed_threads(recipe.compute.threads):
        encoder = load_encoder(recipe.model, folder / WEIGHTS)
        device = next(encoder.parameters()).device
        parts = [[tokens.mean(1).cpu() for tokens in encoder.layers(part.to(device))] for part in video.split(BATCH)]
        values = []
        for layer in zip(*parts, strict=True):
            features = retrieval.standardised(torch.cat(layer).numpy())
            values.append(retrieval.same_class(labels, retrieval.nearest(features, 1)))
    return values


def layers_plot(results: Results, measured: pd.DataFrame) -> Plot:
    parts = [
        summarise(part.assign(metric=SAME_CLASS), SAME_CLASS).assign(layer=layer) for layer, part in measured.groupby("layer")
    ]
    summary = pd.concat(parts)
    curves = {arm: summary.loc[[arm]].set_index("layer") for arm in LAYER_ARMS if arm in summary.index}
    _, _, labels = held_out_clips(results.plan, MOST)
    chance = retrieval.same_class_by_chance(labels.numpy())
    figure = charts.lines_by_arm(curves, LAYER_ARMS, "block of the encoder", SAME_CLASS, chance, logarithmic=False)
    caption = (
        f"Frozen features by block: how often the nearest of {counted(len(labels), 'held-out clip')} (cosine of standardized "
        "mean tokens) has the same class. Mean and 95% interval over seeds; there is one checkpoint for all seeds."
    )
    return Plot(figure, "layers", caption)


# ---- Ways to use the checkpoint ----

METHODS = {
    "untrained": Method("untrained encoder, frozen", "scratch", "probe"),
    "frozen": Method("checkpoint, frozen", "frozen", "probe"),
    "continued_frozen": Method("checkpoint, continued, frozen", "continued", "probe"),
    "scratch": Method("trained from scratch", "scratch", "finetune"),
    "finetuned": Method("checkpoint, fine-tuned", "finetuned", "finetune"),
    "continued": Method("checkpoint, continued, fine-tuned", "continued", "finetune"),
}
STYLES = {
    name: Arm(METHODS[name].label, colour, marker)
    for name, colour, marker in (
        ("untrained", GREY, "o"), ("frozen", SKY, "o"), ("continued_frozen", GREEN, "v"),
        ("scratch", ORANGE, "s"), ("finetuned", BLUE, "D"), ("continued", RED, "^"),
    )
}  # fmt: skip
PAIRS = (
    ("frozen", "untrained"), ("finetuned", "scratch"), ("finetuned", "frozen"), ("continued_frozen", "frozen"),
    ("continued", "finetuned"),
)  # fmt: skip
# Method -> the method that its row of the table is compared with. Fine-tuned and frozen are compared only in the conclusions.
REFERENCE = {name: other for name, other in PAIRS if (name, other) != ("finetuned", "frozen")}


def accuracies(results: Results) -> pd.DataFrame:
    """Return the accuracy of each way: columns arm (a name in METHODS), seed, metric, value."""
    return common.by_method(results, METHODS)


def methods_table(results: Results) -> Table:
    """Return one row per way to use the checkpoint, with its paired difference to the way that it improves on."""
    every = compare_pairs(accuracies(results), TOP1, PAIRS, results.margin)
    differences = every[[REFERENCE.get(name) == other for name, other in every.index]]
    differences = differences.set_axis([name for name, _ in differences.index])
    frame = common.methods_frame(results, METHODS, "what is trained", differences, "it", REFERENCE)
    labels = common.labels_used(results.recipe, "frozen readouts")
    evaluation = f"{labels}; one clip per video; all seeds start from one checkpoint"
    return Table(frame, "methods", common.caption(results, every, evaluation=evaluation))


def accuracy_plot(results: Results) -> Plot:
    summary = summarise(accuracies(results), TOP1)
    figure = charts.dots_by_arm({f"{results.recipe.evaluate.split} split": summary}, STYLES, results.chance, "top-1 (%)")
    return Plot(figure, "accuracy", "The accuracies of the table above, mean and 95% interval over seeds.")


def losses(results: Results) -> Plot:
    return common.loss_plot(results, "finetune", legend="start from", loss="classification loss")


# ---- The fine-tuned classifier ----


def classifier_folder(results: Results) -> Path:
    """Return the folder of the fine-tuned classifier, first seed: of the first possible arm that fine-tunes."""
    arm = next(arm for arm in ("finetuned", "continued", "scratch") if arm in results.plan.possible)
    return results.store.folder(results.plan.first(arm).measures["finetune"])


def predictions_table(model: VideoClassifier, rows: list[int], labels: Tensor, probabilities: Tensor, plan: Plan) -> Table:
    """Return the most probable classes of clips, with the true class. probabilities: `(n, classes)`."""
    clips = example_clips(plan)
    predicted_names, true_names = names_of(model), plan.recipe.data.class_names
    top = probabilities.topk(min(3, model.classes))
    lines = []
    for index, (row, label) in enumerate(zip(rows, labels.tolist(), strict=True)):
        ranked = zip(top.indices[index].tolist(), top.values[index].tolist(), strict=True)
        shown = ", ".join(f"{predicted_names[predicted]} {value:.0%}" for predicted, value in ranked)
        video = "/".join(Path(clips.name(row)).parts[-2:])
        lines.append((index + 1, short(video, 40), true_names[label], shown))
    frame = pd.DataFrame(lines, columns=["clip", "video", "class", "most probable classes"])
    return Table(frame, "predictions", "Random held-out clips and the predictions of the fine-tuned classifier, first seed.")


def own_predictions(results: Results, rows: list[int], video: Tensor, labels: Tensor) -> Table | None:
    """Return the predictions of the checkpoint's own class head; None if it has none."""
    if _opened(results).config.classes is None:
        return None
    model = VideoClassifier.from_pretrained(checkpoint_folder(results))
    with torch.no_grad():
        table = predictions_table(model, rows, labels, model(video).softmax(1), results.plan)
    return Table(table.frame, "own_predictions", "The same clips, predicted by the checkpoint's own class head.")


def class_maps(model: VideoClassifier, rows: list[int], video: Tensor, predicted: Tensor, plan: Plan) -> Plot:
    """Show clips with attention rollout, and with the relevance of tokens for the predicted class. predicted: int64 `(n,)`."""
    names = names_of(model)
    maps = common.token_maps(model, video, predicted)
    titles = [f"{number}. predicted:\n{short(names[label], 24)}" for number, label in enumerate(predicted.tolist(), 1)]
    strips = zip(clip_frames(plan, rows), maps, strict=True)
    figure = clip_pictures.attention_strips(dict(zip(titles, strips, strict=True)))
    return Plot(figure, "class_maps", f"Clips and maps of the fine-tuned classifier, first seed. {common.MAPS_CAPTION}")


# ---- Conclusions ----


def conclusions(results: Results, measured: pd.DataFrame) -> list[str]:
    """State the comparisons of the ways to use the checkpoint, the best layer, and the uncertainty of the test set."""
    accuracy = summarise(accuracies(results), TOP1)["mean"]
    words = common.method_words(results, METHODS, PAIRS)
    means = measured[measured.arm == "frozen"].groupby("layer").value.mean()
    if len(means):
        best = common.best_arms(means)
        blocks = f"block {best[0]}" if len(best) == 1 else f"blocks {', '.join(map(str, best[:-1]))} and {best[-1]}"
        words.append(
            f"The checkpoint's features retrieve the same class best after {blocks} of {len(means)} "
            f"({means.max():.1f}% of the nearest clips, {means.iloc[-1]:.1f}% after the last block)."
        )
    first = METHODS[common.best_arms(accuracy)[0]]
    clips = results.stage_result(first.arm, first.metric)["test_clips"]
    highest = common.highest_mean_words(accuracy, {name: method.label for name, method in METHODS.items()})
    return [*words, f"{highest} {common.test_set_words(accuracy.max(), clips)}"]
