"""What a plan will cost, before it runs: stages, which are reused, multiply-accumulates, and time on this device."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vmae_lab.data.activitynet import UntrimmedSettings
from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.evaluation.features import FeatureSettings
from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.measure import measure_step, parameter_count
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stage_cost import (
    CLASSES,
    FEATURES,
    H200,
    DataWork,
    Machine,
    data_work,
    feature_windows,
    stage_macs,
    stage_work,
    step_macs,
    this_machine,
)  # fmt: skip
from vmae_lab.lab.stages import Stage
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.flops import TokenCounts, pretrain_cost
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.processes import fixed_threads

SPENT_CAPTION = "Time of the stages: predicted from their count at the rate measured now, and taken when they ran."
WARM_UP_STEPS, CALIBRATION_STEPS = 4, 16  # the first steps of a process are slower and are not counted


def stage_bytes(stage: Stage) -> int:
    """What a finished stage leaves on disk: its weights, of an opened checkpoint about as much as of pre-training; features."""
    if stage.kind == "localise":
        return 4 * actionformer_parameters(ActionFormerShape(**stage.settings["localise"]["shape"]))
    if stage.kind not in ("pretrain", "initial", "opened", "post_pretrain", "finetune", "distill", "detect", "features"):
        return 0
    model = ModelSettings(**stage.settings["model"])
    if stage.kind == "features":
        features = FeatureSettings(**stage.settings["features"])
        windows = feature_windows(UntrimmedSettings.model_validate_json(stage.where), features, stage.settings["split"])
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


def actionformer_parameters(shape: ActionFormerShape) -> int:
    """Parameters of a temporal detector of FEATURES and CLASSES: a little more or less of others."""
    with torch.device("meta"):
        return sum(p.numel() for p in ActionFormer(shape, FEATURES, [""] * CLASSES).parameters())


@dataclass(frozen=True)
class PlanCost:
    """What is left to do in a plan. `rate` is multiply-accumulates a second, measured on this device in this run.

    `stages` and `reused`: how many of each kind there are, and of those how many are finished. `part_minutes`: what each kind
    takes, `jobs` stages at a time, and the embedded data's writing as `data`.
    """

    stages: Counter[str]
    reused: Counter[str]
    macs: float
    disk_bytes: float
    rate: float
    jobs: int
    part_minutes: Mapping[str, float]

    @property
    def minutes(self) -> float:
        return sum(self.part_minutes.values())

    def sentence(self) -> str:
        """One line for people."""
        left = self.stages - self.reused
        if not left:
            return f"{self.stages.total()} stages, all of them finished before: nothing to compute"
        return (
            f"{self.stages.total()} stages; finished before and reused: {_listed(self.reused)}; to run: {_listed(left)}. "
            f"{self.macs / 1e12:.3g} T multiply-accumulates, about {duration(self.minutes)} on this device ({self._parts()}; "
            f"{self.jobs} at a time, {self.rate / 1e9:.3g} G a second each, measured over a few steps), "
            f"{self.disk_bytes / 1e6:.3g} MB of disk"
        )

    def _parts(self) -> str:
        return ", ".join(f"{name} {duration(spent)}" for name, spent in self.part_minutes.items() if spent)


def plan_summary(plan: Plan, store: RunStore) -> str:
    """A plan's parts line by line: stages, optimiser steps, multiply-accumulates and minutes on an H200. Nothing is run."""
    compute, machine = plan.recipe.compute, H200
    lines = [f"{plan.name} at scale '{plan.recipe.scale}': {len(plan.possible)} arms x {len(plan.recipe.seeds)} seeds"]
    cost, data = _plan_cost(plan, store, machine, machine.training)
    if plan.recipe.data.motionworld is not None:
        lines.append(
            f"{'data':>10}: {data.clips:,d} files to write and decode, {duration(data.cpu_s / 60)} of one of this machine's "
            f"cores, {duration(cost.part_minutes['data'])} on {compute.processes}"
        )
    for kind, these in _by_kind(plan.stages).items():
        done = sum(store.finished(stage) for stage in these)
        steps, macs = sum(stage.steps for stage in these), sum(map(stage_macs, these))
        bound = ", bound by loading clips" if machine.bound_by_loading(list(map(stage_work, these)), compute) else ""
        lines.append(
            f"{kind:>10}: {len(these):3d} stages ({done} finished), {steps:>9,d} steps, {macs / 1e15:10.4g} P MAC, "
            f"{duration(cost.part_minutes.get(kind, 0.0))}{bound}"
        )
    lines.append(
        f"left to run: {cost.macs / 1e15:.4g} P multiply-accumulates and {cost.disk_bytes / 1e9:.3g} GB of disk; about "
        f"{duration(cost.minutes)} on {machine.name}, {compute.jobs} stages at a time with {compute.workers} loader processes "
        f"each (estimated, not measured: {machine.training / 1e12:.0f} T multiply-accumulates a second in training, "
        f"{machine.prediction / 1e12:.0f} T in evaluation)"
    )
    if plan.recipe.data.motionworld is None:
        lines.append("evaluation of list files is not counted: their lengths are not known before they are read")
    return "\n".join(lines)


def plan_cost(plan: Plan, store: RunStore, rate: float) -> PlanCost:
    """What is left of a plan, and how long it takes on this device. A running stage keeps its optimiser's two moments."""
    return _plan_cost(plan, store, this_machine(rate), rate)[0]


def _plan_cost(plan: Plan, store: RunStore, machine: Machine, rate: float) -> tuple[PlanCost, DataWork]:
    stages, compute = plan.stages, plan.recipe.compute
    todo = [stage for stage in stages if not store.finished(stage)]
    data, sizes = data_work(plan.recipe, todo), [stage_bytes(stage) for stage in todo]
    disk = sum(sizes) + 3 * compute.jobs * max(sizes, default=0) + data.disk_bytes
    kinds, left = (Counter(stage.kind for stage in group) for group in (stages, todo))
    minutes = {"data": data.cpu_s / compute.processes / 60}
    for kind, these in _by_kind(todo).items():
        minutes[kind] = machine.wall_seconds(list(map(stage_work, these)), compute) / 60
    macs = sum(map(stage_macs, todo))
    return PlanCost(kinds, kinds - left, macs, disk, rate, compute.jobs, minutes), data


def stage_table(plan: Plan) -> pd.DataFrame:
    """A plan's stages by kind, finished or not: how many, and their optimiser steps. The same on every machine."""
    return pd.DataFrame([
        {"kind": kind, "stages": len(these), "steps": sum(stage.steps for stage in these)}
        for kind, these in _by_kind(plan.stages).items()
    ])  # fmt: skip


def predicted_and_actual(plan: Plan, store: RunStore, rate: float) -> pd.DataFrame:
    """A finished plan's stages by kind: the time that their work takes at a rate, and the time they took when they ran.

    Times are a stage's own, added up: stages that ran side by side took less by the clock.
    """
    lines, machine = [], this_machine(rate)
    for kind, these in _by_kind(plan.stages).items():
        counted = sum(machine.seconds(stage_work(stage), plan.recipe.compute.workers) for stage in these)
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
    clips = load_clips(recipe.data, "pretrain", recipe.data.pretrain_sources, recipe.compute.processes)
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
