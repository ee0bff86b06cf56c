"""What a plan will cost, before it runs: stages, which are reused, multiply-accumulates, and time on this device."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vmae_lab.data.clips import DataSettings, load_clips
from vmae_lab.data.motionworld.dataset import FRAMES_A_SECOND
from vmae_lab.data.untrimmed import UntrimmedSettings
from vmae_lab.detection.spatial import DetectSettings
from vmae_lab.detection.temporal import LocaliseSettings
from vmae_lab.evaluation.features import FeatureSettings
from vmae_lab.lab.ablation import Plan
from vmae_lab.lab.measure import measure_step, parameter_count
from vmae_lab.lab.recipe import Recipe, RecipeError
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.masking import MaskSettings
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.detector import ActionDetector
from vmae_lab.models.flops import TokenCounts, classify_cost, pretrain_cost, training_macs
from vmae_lab.models.localiser import CHUNK, ActionLocaliser, LocaliserShape
from vmae_lab.models.sizes import ClipShape, ModelSettings
from vmae_lab.processes import fixed_threads
from vmae_lab.training.log import read_metrics
from vmae_lab.training.loop import train
from vmae_lab.training.pretrain import PretrainSettings, PretrainTask
from vmae_lab.training.settings import Compute

FEATURES, CLASSES = 2048, 20  # width of I3D's features and classes of THUMOS14, where others are not known before
BACKWARD = 3  # forward and backward together, in forwards
SPENT_CAPTION = "Time of the stages: predicted from their count at the rate measured now, and taken when they ran."
WARM_UP_STEPS, CALIBRATION_STEPS = 4, 16  # the first steps of a process are slower and are not counted


def stage_macs(stage: Stage) -> float:
    """Multiply-accumulates of a whole stage: forward and backward of every step, or the forward passes of an evaluation."""
    settings = stage.settings
    if stage.kind in ("initial", "opened"):
        return 0.0
    if stage.kind == "localise":
        return _localise_macs(stage)
    model = ModelSettings(**settings["model"])
    if stage.kind == "pretrain":
        recipe = settings["pretrain"]
        return recipe["steps"] * step_macs(model, MaskSettings(**settings["mask"]), recipe["batch_size"])
    if stage.kind == "measure":
        return (settings["steps"] + 1) * step_macs(model, MaskSettings(**settings["mask"]), settings["batch_size"])
    if stage.kind == "detect":
        return _detect_macs(model, DetectSettings(**settings["detect"]), settings["split"])
    if stage.kind == "features":
        one = classify_cost(model.dimensions, model.clip, 1).macs
        return one * _windows(
            UntrimmedSettings.model_validate_json(stage.where), FeatureSettings(**settings["features"]), settings["split"]
        )
    data = DataSettings(**settings["data"])
    one = classify_cost(model.dimensions, model.clip, data.classes).macs
    clips = _held_out_clips(data, settings["split"], settings.get("sources", data.pretrain_sources))
    if stage.kind in ("finetune", "post_pretrain"):
        recipe = settings[stage.kind]
        return one * (BACKWARD * recipe["steps"] * recipe["batch_size"] + clips)
    if stage.kind == "views":
        return one * clips * settings["views"]["clips"] * settings["views"]["crops"]
    if stage.kind == "distill":
        teacher = ModelSettings(**stage.inputs[0].settings["model"])
        other = classify_cost(teacher.dimensions, teacher.clip, data.classes).macs
        shown = settings["distill"]["steps"] * settings["distill"]["batch_size"]
        return one * (BACKWARD * shown + clips) + other * (shown + clips)
    if stage.kind == "probe":
        return one * ((settings["probe"]["labels"] or 0) * settings["probe"]["draws"] + clips)
    return one * clips


def _detect_macs(model: ModelSettings, recipe: DetectSettings, split: str) -> float:
    """Training on square crops; one pass over what is judged, of the embedded scenes alone: lists are not counted before."""
    sides = (recipe.side, recipe.test_short_side - recipe.test_short_side % model.clip.patch)
    crop, whole = (
        classify_cost(model.dimensions, ClipShape(model.frames, side, model.tubelet, model.clip.patch), 1).macs
        for side in sides
    )
    world = recipe.scenes.motionworld
    return BACKWARD * crop * recipe.steps * recipe.batch_size + whole * (getattr(world, split) if world else 0)


def _windows(videos: UntrimmedSettings, features: FeatureSettings, split: str) -> float:
    """Windows of a split of the embedded untrimmed videos, about; how long listed videos are is not known before."""
    world = videos.motionworld
    if world is None:
        return 0.0
    return getattr(world, split) * sum(world.seconds) / 2 * FRAMES_A_SECOND / features.stride


def _localise_macs(stage: Stage) -> float:
    """Training and one pass over what is judged: every weight is used once a time step of its level."""
    settings = LocaliseSettings(**stage.settings["localise"])
    encoder = stage.inputs[0].settings["model"] if stage.inputs else None
    width = ModelSettings(**encoder).dimensions.width if encoder else FEATURES
    one = localiser_macs(settings.shape, width, CLASSES)
    if settings.videos.motionworld is None:
        return BACKWARD * one * settings.steps * settings.batch_size * settings.longest
    trained, judged = (_windows(settings.videos, settings.features, split) for split in ("train", stage.settings["split"]))
    a_video = min(settings.longest, trained / settings.videos.motionworld.train)
    return one * (BACKWARD * settings.steps * settings.batch_size * a_video + judged)


def localiser_macs(shape: LocaliserShape, features: int, classes: int) -> float:
    """Multiply-accumulates of a temporal detector for one time step of the features."""
    with torch.device("meta"):
        model = ActionLocaliser(shape, features, [""] * classes)
    weights = {name: sum(p.numel() for p in part.parameters() if p.ndim > 1) for name, part in model.named_children()}
    rates = sum(0.5**level for level in range(shape.levels))
    blocks = weights["stem"] + weights["branch"] * (rates - 1) / max(1, shape.levels - 1)
    keys = CHUNK + shape.window - 1  # that a block of queries is compared with, most of them to be masked
    attention = 2 * keys * shape.width * (shape.stem_layers + rates - 1)
    return weights["embed"] + blocks + attention + (weights["classify"] + weights["regress"]) * rates


def _held_out_clips(data: DataSettings, split: str, sources: list[str]) -> int:
    """Videos that are evaluated on; those of list files are not counted before they are there."""
    if data.motionworld is None:
        return 0
    return len(sources or data.sources) * data.classes * getattr(data.motionworld, split)


def stage_bytes(stage: Stage) -> int:
    """What a finished stage leaves on disk: its weights, of an opened checkpoint about as much as of pre-training; features."""
    if stage.kind == "localise":
        return 4 * localiser_parameters(LocaliserShape(**stage.settings["localise"]["shape"]))
    if stage.kind not in ("pretrain", "initial", "opened", "post_pretrain", "finetune", "distill", "detect", "features"):
        return 0
    model = ModelSettings(**stage.settings["model"])
    if stage.kind == "features":
        features = FeatureSettings(**stage.settings["features"])
        windows = _windows(UntrimmedSettings.model_validate_json(stage.where), features, stage.settings["split"])
        return int(4 * windows * model.dimensions.width)
    if stage.kind == "detect":
        return 4 * detector_parameters(model)
    if stage.kind == "pretrain":
        return 4 * parameter_count(model) * (1 + len(PretrainSettings(**stage.settings["pretrain"]).kept_steps))
    return 4 * (parameter_count(model) if stage.kind in ("initial", "opened") else classifier_parameters(stage))


def classifier_parameters(stage: Stage) -> int:
    """Parameters of a supervised stage's model."""
    model, readout = ModelSettings(**stage.settings["model"]), stage.settings[stage.kind]["readout"]
    with torch.device("meta"):
        classes = DataSettings(**stage.settings["data"]).classes
        return sum(p.numel() for p in VideoClassifier(model.dimensions, model.clip, classes, readout).parameters())


def detector_parameters(model: ModelSettings) -> int:
    """Parameters of a detector of actions, with a linear layer for AVA's 80 classes, which is small beside the encoder."""
    with torch.device("meta"):
        return sum(p.numel() for p in ActionDetector(model.dimensions, model.clip, 80).parameters())


def localiser_parameters(shape: LocaliserShape) -> int:
    """Parameters of a temporal detector of FEATURES and CLASSES: a little more or less of others."""
    with torch.device("meta"):
        return sum(p.numel() for p in ActionLocaliser(shape, FEATURES, [""] * CLASSES).parameters())


@dataclass(frozen=True)
class PlanCost:
    """What is left to do in a plan. `rate` is multiply-accumulates a second, measured on this device in this run.

    `stages` and `reused`: how many of each kind there are, and of those how many are finished.
    """

    stages: Counter[str]
    reused: Counter[str]
    macs: float
    disk_bytes: int
    rate: float
    jobs: int

    @property
    def minutes(self) -> float:
        return self.macs / self.rate / self.jobs / 60

    def sentence(self) -> str:
        """One line for people."""
        left = self.stages - self.reused
        if not left:
            return f"{self.stages.total()} stages, all of them finished before: nothing to compute"
        return (
            f"{self.stages.total()} stages; finished before and reused: {_listed(self.reused)}; to run: {_listed(left)}. "
            f"{self.macs / 1e12:.3g} T "
            f"multiply-accumulates, about {duration(self.minutes)} on this device ({self.jobs} at a time, "
            f"{self.rate / 1e9:.3g} G a second each, measured over a few steps), {self.disk_bytes / 1e6:.3g} MB of disk"
        )


def plan_summary(plan: Plan, store: RunStore) -> str:
    """A plan's stages by kind, with their optimiser steps and multiply-accumulates: counted, nothing is run."""
    stages = plan.stages
    lines = [f"{plan.name} at scale '{plan.recipe.scale}': {len(plan.possible)} arms x {len(plan.recipe.seeds)} seeds"]
    for kind, these in _by_kind(stages).items():
        done = sum(store.finished(stage) for stage in these)
        steps, macs = sum(stage.steps for stage in these), sum(map(stage_macs, these))
        lines.append(f"{kind:>10}: {len(these):3d} stages ({done} finished), {steps:>9,d} steps, {macs / 1e15:10.4g} P MAC")
    total = sum(stage_macs(stage) for stage in stages if not store.finished(stage))
    lines.append(
        f"left to run: {total / 1e15:.4g} P multiply-accumulates; {duration(total / 1e14 / 60)} on a device that sustains "
        "100 T of them a second (an H100-class GPU in bf16 at about 20 % of its peak)"
    )
    if plan.recipe.data.motionworld is None:
        lines.append("evaluation of list files is not counted: their lengths are not known before they are read")
    return "\n".join(lines)


def plan_cost(plan: Plan, store: RunStore, rate: float) -> PlanCost:
    """What is left of a plan. A running stage keeps its optimiser's two moments beside the weights."""
    stages, jobs = plan.stages, plan.recipe.compute.jobs
    todo = [stage for stage in stages if not store.finished(stage)]
    sizes = [stage_bytes(stage) for stage in todo]
    disk = sum(sizes) + 3 * jobs * max(sizes, default=0)
    kinds, left = (Counter(stage.kind for stage in group) for group in (stages, todo))
    return PlanCost(kinds, kinds - left, sum(map(stage_macs, todo)), disk, rate, jobs)


def stage_table(plan: Plan) -> pd.DataFrame:
    """A plan's stages by kind, finished or not: how many, and their optimiser steps. The same on every machine."""
    return pd.DataFrame([
        {"kind": kind, "stages": len(these), "steps": sum(stage.steps for stage in these)}
        for kind, these in _by_kind(plan.stages).items()
    ])  # fmt: skip


def predicted_and_actual(plan: Plan, store: RunStore, rate: float) -> pd.DataFrame:
    """A finished plan's stages by kind: the time that the count gives at a rate, and the time they took when they ran.

    Times are a stage's own, added up: stages that ran side by side took less by the clock.
    """
    lines = []
    for kind, these in _by_kind(plan.stages).items():
        counted = sum(map(stage_macs, these)) / rate
        taken = sum(store.result(stage)["seconds"] for stage in these)
        lines.append({"kind": kind, "stages": len(these), "predicted, s": counted, "taken, s": taken})
    frame = pd.DataFrame(lines)
    total = {"kind": "all", **frame.drop(columns="kind").sum().to_dict()}
    frame = pd.concat([frame, pd.DataFrame([total])], ignore_index=True)
    frame["taken / predicted"] = (frame["taken, s"] / frame["predicted, s"]).map(lambda x: f"{x:.2f}" if np.isfinite(x) else "")
    for column in ("predicted, s", "taken, s"):
        frame[column] = frame[column].map("{:.0f}".format)
    return frame.astype({"stages": int})


def work_of(plan: Plan) -> dict[str, float]:
    """Weights of the plan's stages for a progress bar, by key."""
    return {stage.key: stage_macs(stage) for stage in plan.stages}


def calibrate(recipe: Recipe) -> float:
    """Multiply-accumulates a second of real pre-training steps on this device, data loading included."""
    steps = recipe.pretrain.model_copy(update={"steps": CALIBRATION_STEPS, "warmup_steps": 0})
    clips = load_clips(recipe.data, "pretrain", recipe.data.pretrain_sources, recipe.compute.jobs)
    task = PretrainTask(recipe.model, recipe.mask, steps, recipe.data, clips, seed=0)
    compute = Compute(workers=recipe.compute.workers, log_every=1, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder, fixed_threads(recipe.compute.threads):
        train(task, Path(folder), compute, progress=False)
        rows = read_metrics(Path(folder))
    spent = [row["step"] * row["seconds_per_step"] for row in rows]
    seconds_per_step = (spent[-1] - spent[WARM_UP_STEPS - 1]) / (len(spent) - WARM_UP_STEPS)
    return step_macs(recipe.model, recipe.mask, recipe.pretrain.batch_size) / seconds_per_step


def calibrate_step(recipe: Recipe) -> float:
    """Multiply-accumulates a second of the first measured size's own steps, where nothing else is run. Raises RecipeError."""
    model, batch = recipe.measure.model_of(recipe.measure.sizes[0]), recipe.measure.batch_sizes[0]
    measured = measure_step(model, recipe.mask, batch, steps=1)
    if not measured["fits"]:
        raise RecipeError(f"measure: {batch} clips a step of {model.size} do not fit this device; lower measure.batch_sizes")
    return step_macs(model, recipe.mask, batch) / measured["seconds_per_step"]


def step_macs(model: ModelSettings, masks: MaskSettings, batch_size: int) -> float:
    """Multiply-accumulates of one pre-training step, forward and backward, with only the visible cubes embedded."""
    counts = TokenCounts.of(masks, model.clip)
    return batch_size * training_macs(model.dimensions, model.clip, counts.visible, counts.decoded)


def token_table(plan: Plan) -> pd.DataFrame:
    """Tokens and forward cost of one clip in each pre-trained arm, at the plan's scale. Index: arm.

    Counted, not measured: the same on every machine.
    """
    rows = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        counts = TokenCounts.of(recipe.mask, recipe.model.clip)
        cost = pretrain_cost(recipe.model.dimensions, recipe.model.clip, counts.visible, counts.decoded)
        rows[arm] = {
            "tokens": counts.tokens, "seen": counts.visible, "decoded": counts.decoded, "counted": round(counts.counted, 1),
            "MMAC": round(cost.fvcore / 1e6, 2),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def _by_kind(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """Stages by what they are, in the order in which the kinds come first."""
    kinds: dict[str, list[Stage]] = {}
    for stage in stages:
        kinds.setdefault(stage.kind, []).append(stage)
    return kinds


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def duration(minutes: float) -> str:
    """A time for people: seconds, minutes or hours."""
    if minutes < 1.5:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
