"""What a plan costs, before it runs: stages to run and to reuse, multiply-accumulates, disk space, and time on a machine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import pandas as pd
import torch

from vmae_lab.data.dataset import load_clips
from vmae_lab.data.decoding import read_frames
from vmae_lab.data.motionworld import ACTIONS, MotionworldSettings
from vmae_lab.data.motionworld.dataset import render_clip, write_mp4
from vmae_lab.data.motionworld.writer import FRAMES_A_SECOND, cache_home
from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.lab.stages.cost import Work, step_macs
from vmae_lab.lab.stages.inputs import ClipStage
from vmae_lab.lab.stages.measure import measure_step
from vmae_lab.models.flops import TokenCounts, pretrain_cost
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainTask
from vmae_lab.utils.processes import fixed_threads

SPENT_CAPTION = "Time of the stages: predicted from their count at the rate measured now, and taken when they ran."
WARM_UP_STEPS, CALIBRATION_STEPS = 4, 16  # the first steps of a process are slower and are not counted
FILE_PIXEL_BYTES = 0.05  # per pixel of an mp4 file of the embedded data at 64 pixels; less at larger sides


# ---------------------------------------------------------------- machines


@dataclass(frozen=True)
class Machine:
    """Multiply-accumulates per second of each kind of work, and the shortest time of an optimiser step per transformer layer.

    `one_device`: stages that run at the same time share it, so that only their other work overlaps.
    """

    name: str
    training: float
    prediction: float
    readout: float
    layer_step_s: float = 0.0
    one_device: bool = False

    def device_seconds(self, work: Work) -> float:
        """How long the device is busy."""
        return work.training / self.training + work.prediction / self.prediction + work.readout / self.readout

    def seconds(self, work: Work, workers: int) -> float:
        """How long the work takes alone, with a number of loader processes next to its own."""
        training_s = max(work.training / self.training, work.layer_steps * self.layer_step_s, work.loading_s / max(1, workers))
        return training_s + work.prediction / self.prediction + work.readout / self.readout + work.own_s

    def bound_by_loading(self, works: Sequence[Work], compute: Compute) -> bool:
        """Whether the loader processes of stages that run `compute.jobs` at a time need longer than the device."""
        loading_s = sum(work.loading_s for work in works) / (compute.jobs * max(1, compute.workers))
        return loading_s > sum(map(self.device_seconds, works))

    def wall_seconds(self, works: Sequence[Work], compute: Compute) -> float:
        """How long several stages take, `compute.jobs` at a time."""
        side_by_side = sum(self.seconds(work, compute.workers) for work in works) / compute.jobs
        return max(side_by_side, sum(map(self.device_seconds, works))) if self.one_device else side_by_side


# Assumed, not measured. Training: about 20% of the peak in bf16. Prediction: about 60% of the peak in float32. A step of
# ViT-S with a decoder of 4 layers is limited by kernel launches at 16 ms.
H200 = Machine("one H200 GPU with 16 CPU cores", 1e14, 2e13, 1e13, layer_step_s=1e-3, one_device=True)


def this_machine(rate: float) -> Machine:
    """This machine, whose multiply-accumulates per second of training were measured, data loading included."""
    return Machine("this device", rate, rate, rate, one_device=torch.cuda.is_available())


# ---------------------------------------------------------------- embedded data that is still to be written


@dataclass(frozen=True)
class DataWork:
    """The embedded data that plans still have to write: `clips`, with scenes and untrimmed videos."""

    clips: int = 0
    cpu_s: float = 0.0
    disk_bytes: float = 0.0


def data_work(recipe: Recipe, stages: Sequence[Stage]) -> DataWork:
    """The embedded data that the stages read and that is not written yet. One clip per source is rendered now, to time it."""
    world, kinds = recipe.data.motionworld, {stage.kind for stage in stages}
    if world is None:
        return DataWork()
    parts = []  # videos, their frames, their side, and bytes per pixel kept decoded
    decoded = cache_home() / f"motionworld-{world.fingerprint}" / f"decoded-{recipe.data.resident_side}.npy"
    if any(isinstance(stage, ClipStage) for stage in stages) and not decoded.exists():
        parts.append((world.clips(), world.frames, world.side, 3 * (recipe.data.resident_side / world.side) ** 2))
    scenes, videos = recipe.detect and recipe.detect.scenes.motionworld, recipe.localise and recipe.localise.videos.motionworld
    if scenes and "detect" in kinds and not (cache_home() / f"scenes-{scenes.fingerprint}").is_dir():
        parts.append((scenes.train + scenes.validation + scenes.test, scenes.seconds * FRAMES_A_SECOND, scenes.side, 0.0))
    if videos and "localise" in kinds and not (cache_home() / f"untrimmed-{videos.fingerprint}").is_dir():
        frames = round(sum(videos.seconds) / 2 * FRAMES_A_SECOND)
        parts.append((videos.train + videos.validation + videos.test, frames, videos.side, 0.0))
    if not parts:
        return DataWork()
    pixels = [count * frames * side**2 for count, frames, side, _ in parts]
    kept = [decoded_bytes + FILE_PIXEL_BYTES for *_, decoded_bytes in parts]
    return DataWork(
        sum(count for count, *_ in parts), sum(pixels) * pixel_seconds(world),
        sum(size * each for size, each in zip(pixels, kept, strict=True)),
    )  # fmt: skip


@lru_cache
def pixel_seconds(world: MotionworldSettings) -> float:
    """CPU seconds to render, encode and decode a pixel of the embedded data here, averaged over sources."""
    spent = 0.0
    with TemporaryDirectory() as folder:
        for source in world.sources:
            for index in range(2):  # the second clip counts: the first one loads what all clips share
                started, file = process_time(), Path(folder) / f"{source}-{index}.mp4"
                write_mp4(render_clip(source, ACTIONS[0], world, "train", index)[0], file)
                read_frames(file)
            spent += process_time() - started
    return spent / len(world.sources) / (world.frames * world.side**2)


# ---------------------------------------------------------------- plans


@dataclass(frozen=True)
class PlanCost:
    """What is left to do in a plan. `rate` is multiply-accumulates per second, measured on this device in this run.

    `stages` and `reused`: how many of each kind there are, and how many of these are finished. `part_minutes`: what each kind
    takes, `jobs` stages at a time, and the writing of the embedded data as `data`.
    """

    stages: Counter[str]
    reused: Counter[str]
    macs: float
    disk_bytes: float
    rate: float
    jobs: int
    part_minutes: Mapping[str, float]
    data: DataWork

    @property
    def minutes(self) -> float:
        return sum(self.part_minutes.values())

    def sentence(self) -> str:
        """One line for people."""
        left = self.stages - self.reused
        if not left:
            return f"{self.stages.total()} stages, all of them finished before: nothing to compute"
        parts = ", ".join(f"{name} {duration(spent)}" for name, spent in self.part_minutes.items() if spent)
        return (
            f"{self.stages.total()} stages; finished before and reused: {_listed(self.reused)}; to run: {_listed(left)}. "
            f"{self.macs / 1e12:.3g} T multiply-accumulates, about {duration(self.minutes)} on this device ({parts}; "
            f"{self.jobs} at a time, {self.rate / 1e9:.3g} G a second each, measured over a few steps), "
            f"{self.disk_bytes / 1e6:.3g} MB of disk"
        )


def plan_summary(plan: Plan, store: RunStore) -> str:
    """A plan's parts line by line: stages, optimiser steps, multiply-accumulates and minutes on an H200. Nothing is run."""
    compute, machine = plan.recipe.compute, H200
    lines = [f"{plan.name} at scale '{plan.recipe.scale}': {len(plan.possible)} arms x {len(plan.recipe.seeds)} seeds"]
    cost = _plan_cost(plan, store, machine)
    data = cost.data
    if plan.recipe.data.motionworld is not None:
        lines.append(
            f"{'data':>10}: {data.clips:,d} files to write and decode, {duration(data.cpu_s / 60)} of one of this machine's "
            f"cores, {duration(cost.part_minutes['data'])} on {compute.processes}"
        )
    for kind, stages in _by_kind(plan.stages).items():
        done = sum(store.finished(stage) for stage in stages)
        steps, macs = sum(stage.steps for stage in stages), sum(stage.macs for stage in stages)
        loading = machine.bound_by_loading([stage.work for stage in stages], compute)
        lines.append(
            f"{kind:>10}: {len(stages):3d} stages ({done} finished), {steps:>9,d} steps, {macs / 1e15:10.4g} P MAC, "
            f"{duration(cost.part_minutes.get(kind, 0.0))}{', bound by loading clips' if loading else ''}"
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
    return _plan_cost(plan, store, this_machine(rate))


def _plan_cost(plan: Plan, store: RunStore, machine: Machine) -> PlanCost:
    stages, compute = plan.stages, plan.recipe.compute
    todo = [stage for stage in stages if not store.finished(stage)]
    data, sizes = data_work(plan.recipe, todo), [stage.disk_bytes for stage in todo]
    disk = sum(sizes) + 3 * compute.jobs * max(sizes, default=0) + data.disk_bytes
    kinds, left = (Counter(stage.kind for stage in group) for group in (stages, todo))
    minutes = {"data": data.cpu_s / compute.processes / 60}
    for kind, group in _by_kind(todo).items():
        minutes[kind] = machine.wall_seconds([stage.work for stage in group], compute) / 60
    macs = sum(stage.macs for stage in todo)
    return PlanCost(kinds, kinds - left, macs, disk, machine.training, compute.jobs, minutes, data)


def stage_table(plan: Plan) -> pd.DataFrame:
    """A plan's stages by kind, finished or not: how many, and their optimiser steps. The same on every machine."""
    return pd.DataFrame([
        {"kind": kind, "stages": len(stages), "steps": sum(stage.steps for stage in stages)}
        for kind, stages in _by_kind(plan.stages).items()
    ])  # fmt: skip


def predicted_and_actual(plan: Plan, store: RunStore, rate: float) -> pd.DataFrame:
    """A finished plan's stages by kind: the time predicted from their work at a rate, and the time that they took.

    Times are those of single stages, added up: stages that ran at the same time took less by the clock.
    """
    machine, workers = this_machine(rate), plan.recipe.compute.workers
    frame = pd.DataFrame([
        {
            "kind": kind, "stages": len(stages),
            "predicted, s": sum(machine.seconds(stage.work, workers) for stage in stages),
            "taken, s": sum(store.result(stage)["seconds"] for stage in stages),
        }
        for kind, stages in _by_kind(plan.stages).items()
    ])  # fmt: skip
    total = {"kind": "all", **frame.drop(columns="kind").sum().to_dict()}
    frame = pd.concat([frame, pd.DataFrame([total])], ignore_index=True)
    frame["taken / predicted"] = (frame["taken, s"] / frame["predicted, s"]).map(lambda x: f"{x:.2f}" if np.isfinite(x) else "")
    for column in ("predicted, s", "taken, s"):
        frame[column] = frame[column].map("{:.0f}".format)
    return frame.astype({"stages": int})


def calibrate(recipe: Recipe) -> float:
    """Multiply-accumulates per second of real pre-training steps on this device, data loading included."""
    steps = recipe.pretrain.model_copy(update={"steps": CALIBRATION_STEPS, "warmup_steps": 0})
    clips = load_clips(recipe.data, "pretrain", recipe.data.pretrain_sources, recipe.compute.processes)
    task = PretrainTask(recipe.model, recipe.mask, steps, recipe.data, clips, seed=0)
    compute = Compute(workers=recipe.compute.workers, log_every=1, tensorboard=False)
    with TemporaryDirectory() as folder, fixed_threads(recipe.compute.threads):
        train(task, Path(folder), compute, progress=False)
        rows = read_metrics(Path(folder))
    spent = [row["step"] * row["seconds_per_step"] for row in rows]
    seconds_per_step = (spent[-1] - spent[WARM_UP_STEPS - 1]) / (len(spent) - WARM_UP_STEPS)
    return step_macs(recipe.model, recipe.mask, recipe.pretrain.batch_size) / seconds_per_step


def calibrate_step(recipe: Recipe) -> float:
    """Multiply-accumulates per second of the first measured size's own steps, if nothing else is run. Raises RecipeError."""
    model, batch = recipe.measure.model_of(recipe.measure.sizes[0]), recipe.measure.batch_sizes[0]
    measured = measure_step(model, recipe.mask, batch, steps=1)
    if not measured["fits"]:
        raise RecipeError(f"measure: {batch} clips per step of {model.size} do not fit this device; lower measure.batch_sizes")
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
    """Stages by kind, in the order in which the kinds come first."""
    return {kind: [stage for stage in stages if stage.kind == kind] for kind in dict.fromkeys(stage.kind for stage in stages)}


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def duration(minutes: float) -> str:
    """A time for people: seconds, minutes or hours."""
    if minutes < 1.5:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
