"""What a plan costs before it runs: stages to run and to reuse, multiply-accumulates, disk space, and time."""

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
from vmae_lab.lab.config import Recipe, RecipeError
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage
from vmae_lab.lab.stages.cost import Work, step_macs
from vmae_lab.lab.stages.measure import measure_step
from vmae_lab.models.flops import TokenCounts, pretrain_cost
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainTask
from vmae_lab.utils.counts import counted
from vmae_lab.utils.processes import fixed_threads

SPENT_CAPTION = "Time of the stages: predicted from their work at the rate measured now, and the time that they took."
# The first steps of a process are slower and are not counted. Nor are steps with batches that workers prefetched meanwhile.
WARM_UP_STEPS, CALIBRATION_STEPS = 4, 12


# ---------------------------------------------------------------- machines


@dataclass(frozen=True)
class Machine:
    """Multiply-accumulates per second of each kind of work, and the shortest time of an optimizer step per transformer layer.

    `one_device`: stages that run at the same time share it, so only their other work overlaps, unless the executor gives each
    its own device.
    """

    name: str
    training: float
    prediction: float
    readout: float
    layer_step_s: float = 0.0
    one_device: bool = False

    def device_seconds(self, work: Work) -> float:
        """Return how long the work keeps the device busy."""
        return work.training / self.training + work.prediction / self.prediction + work.readout / self.readout

    def seconds(self, work: Work, workers: int) -> float:
        """Return how long the work takes if nothing else runs. Training takes as long as its slowest part."""
        training_s = max(work.training / self.training, work.layer_steps * self.layer_step_s, work.loading_s / max(1, workers))
        evaluation_s = work.prediction / self.prediction + work.reading_s / max(1, workers)
        return training_s + evaluation_s + work.readout / self.readout + work.own_s

    def bound_by_loading(self, works: Sequence[Work], compute: Compute) -> bool:
        """Return whether the loader processes of stages that run at the same time need longer than the device."""
        loading_s = sum(work.loading_s for work in works) / (compute.jobs * max(1, compute.workers))
        return loading_s > sum(map(self.device_seconds, works))

    def wall_seconds(self, works: Sequence[Work], compute: Compute) -> float:
        """Return how long several stages take, `compute.jobs` at a time."""
        seconds = sum(self.seconds(work, compute.workers) for work in works) / compute.jobs
        if self.one_device and not compute.own_devices:
            return max(seconds, sum(map(self.device_seconds, works)))
        return seconds


# Assumed, not measured. Training and prediction: about 20% of the peak in bf16. A step of ViT-S with a decoder of 4 layers
# takes at least 16 ms, because of kernel launches.
H200 = Machine("one H200 GPU with 16 CPU cores", 1e14, 1e14, 1e13, layer_step_s=1e-3, one_device=True)


def this_machine(rate: float) -> Machine:
    """Return this machine. `rate`: multiply-accumulates per second of training, measured here, data loading included."""
    return Machine("this device", rate, rate, rate, one_device=torch.cuda.is_available())


# ---------------------------------------------------------------- embedded data that is not written yet


@dataclass(frozen=True)
class DataWork:
    """The embedded videos that a plan has to write first."""

    clips: int = 0
    cpu_s: float = 0.0
    disk_bytes: float = 0.0


def data_work(recipe: Recipe, stages: Sequence[Stage]) -> DataWork:
    """Return the work of writing the embedded videos of the stages. Renders a clip of each source, to time it."""
    world = recipe.data.motionworld
    needed = dict.fromkeys(stage.embedded_videos for stage in stages)
    missing = [videos for videos in needed if videos and not videos.written]
    if world is None or not missing:
        return DataWork()
    return DataWork(
        sum(videos.count for videos in missing),
        sum(videos.pixels for videos in missing) * pixel_seconds(world),
        sum(videos.disk_bytes for videos in missing),
    )


@lru_cache
def pixel_seconds(world: MotionworldSettings) -> float:
    """Return the CPU seconds to render, encode and decode a pixel of the embedded data here, averaged over sources."""
    spent = 0.0
    with TemporaryDirectory() as folder:
        for source in world.sources:
            for index in range(2):  # the second clip counts: the first one loads what all clips share
                started = process_time()
                file = Path(folder) / f"{source}-{index}.mp4"
                write_mp4(render_clip(source, ACTIONS[0], world, "train", index)[0], file)
                read_frames(file)
            spent += process_time() - started
    return spent / len(world.sources) / (world.frames * world.side**2)


# ---------------------------------------------------------------- plans


@dataclass(frozen=True)
class PlanCost:
    """What is left to compute of a plan.

    `stages` and `reused`: number of stages of each kind, and how many of these are finished. `rate`: multiply-accumulates per
    second of training. `part_minutes`: time per kind of stage, `jobs` stages at a time, and of writing embedded `data`.
    `queued`: stages are jobs, and how long they wait in the queue is unknown.
    """

    stages: Counter[str]
    reused: Counter[str]
    macs: float
    disk_bytes: float
    rate: float
    jobs: int
    part_minutes: Mapping[str, float]
    data: DataWork
    queued: bool = False

    @property
    def minutes(self) -> float:
        return sum(self.part_minutes.values())

    def sentence(self) -> str:
        """Return a summary on one line."""
        left = self.stages - self.reused
        if not left:
            return f"{counted(self.stages.total(), 'stage')}, all finished before: nothing to compute"
        parts = ", ".join(f"{name} {duration(spent)}" for name, spent in self.part_minutes.items() if spent)
        return (
            f"{counted(self.stages.total(), 'stage')}; finished before and reused: {_listed(self.reused)}; to run: "
            f"{_listed(left)}. {self.macs / 1e12:.3g} T multiply-accumulates, about {duration(self.minutes)} on this device "
            f"({parts}; {counted(self.jobs, 'stage')} at a time, {self.rate / 1e9:.3g} G multiply-accumulates per second "
            f"each, measured over a few steps{', without waiting in the queue of Slurm' if self.queued else ''}), "
            f"{self.disk_bytes / 1e6:.3g} MB of disk"
        )


def plan_cost(plan: Plan, store: RunStore, machine: Machine) -> PlanCost:
    """Return what is left to compute of a plan, and how long it takes on a machine."""
    stages = plan.stages
    compute = plan.recipe.compute
    todo = [stage for stage in stages if not store.finished(stage)]
    data = data_work(plan.recipe, todo)
    sizes = [stage.disk_bytes for stage in todo]
    # The checkpoint of a running stage holds its weights and the two moments of its optimizer.
    disk = sum(sizes) + 3 * compute.jobs * max(sizes, default=0) + data.disk_bytes
    kinds, left = (Counter(stage.kind for stage in group) for group in (stages, todo))
    minutes = {"data": data.cpu_s / compute.processes / 60}
    for kind, group in _by_kind(todo).items():
        minutes[kind] = machine.wall_seconds([stage.work for stage in group], compute) / 60
    macs = sum(stage.macs for stage in todo)
    queued = compute.executor == "slurm"
    return PlanCost(kinds, kinds - left, macs, disk, machine.training, compute.jobs, minutes, data, queued)


def plan_summary(plan: Plan, store: RunStore) -> str:
    """Return the cost of a plan on an H200 as text, one line per kind of stage."""
    recipe = plan.recipe
    compute = recipe.compute
    machine = H200
    cost = plan_cost(plan, store, machine)
    lines = [
        f"{plan.name} at scale '{recipe.scale}': {counted(len(plan.possible), 'arm')} x {counted(len(recipe.seeds), 'seed')}"
    ]
    if recipe.data.motionworld:
        lines.append(
            f"{'data':>10}: {counted(cost.data.clips, 'file', ',d')} to write and decode, {duration(cost.data.cpu_s / 60)} on "
            f"one core, {duration(cost.part_minutes['data'])} with the recipe's "
            f"{counted(compute.processes, 'process')} on as many cores"
        )
    for kind, stages in _by_kind(plan.stages).items():
        done = sum(store.finished(stage) for stage in stages)
        steps = sum(stage.steps for stage in stages)
        macs = sum(stage.macs for stage in stages)
        loading = machine.bound_by_loading([stage.work for stage in stages], compute)
        lines.append(
            f"{kind:>10}: {counted(len(stages), 'stage', '3d'):<10} ({done} finished), {counted(steps, 'step', '>9,d')}, "
            f"{macs / 1e15:10.4g} P MAC, "
            f"{duration(cost.part_minutes.get(kind, 0.0))}{', limited by loading clips' if loading else ''}"
        )
    where = f"{machine.name} per stage" if compute.own_devices else machine.name
    lines.append(
        f"left to run: {cost.macs / 1e15:.4g} P multiply-accumulates and {cost.disk_bytes / 1e9:.3g} GB of disk; about "
        f"{duration(cost.minutes)} on {where}, {counted(compute.jobs, 'stage')} at a time with "
        f"{counted(compute.workers, 'loader process')} each (estimated, not measured: {machine.training / 1e12:.0f} T "
        f"multiply-accumulates per second in training, {machine.prediction / 1e12:.0f} T in evaluation)"
    )
    if not recipe.data.motionworld:
        lines.append("the evaluation of listed videos is not counted: the lists are not read for an estimate")
    return "\n".join(lines)


def stage_table(plan: Plan) -> pd.DataFrame:
    """Return the number of stages of each kind and their optimizer steps, finished or not. The same on every machine."""
    return pd.DataFrame([
        {"kind": kind, "stages": len(stages), "steps": sum(stage.steps for stage in stages)}
        for kind, stages in _by_kind(plan.stages).items()
    ])  # fmt: skip


def predicted_and_actual(plan: Plan, store: RunStore, rate: float) -> pd.DataFrame:
    """Return the predicted and the actual seconds of a finished plan, per kind of stage and in total.

    Times are sums over stages. The elapsed time is shorter if stages ran at the same time.
    """
    machine = this_machine(rate)
    workers = plan.recipe.compute.workers
    groups = {**_by_kind(plan.stages), "all": plan.stages}
    frame = pd.DataFrame([
        {
            "kind": kind, "stages": len(stages),
            "predicted, s": sum(machine.seconds(stage.work, workers) for stage in stages),
            "taken, s": sum(store.result(stage)["seconds"] for stage in stages),
        }
        for kind, stages in groups.items()
    ])  # fmt: skip
    frame["taken / predicted"] = (frame["taken, s"] / frame["predicted, s"]).map(lambda x: f"{x:.2f}" if np.isfinite(x) else "")
    return frame.assign(**{column: frame[column].map("{:.0f}".format) for column in ("predicted, s", "taken, s")})


def calibrate(recipe: Recipe) -> float:
    """Return the multiply-accumulates per second of real pre-training steps on this device, data loading included."""
    warm_up = max(WARM_UP_STEPS, 2 * recipe.compute.workers + 1)
    count = warm_up + CALIBRATION_STEPS
    steps = recipe.pretrain.model_copy(update={"steps": count, "warmup_steps": 0})
    clips = load_clips(recipe.data, "pretrain", recipe.data.pretrain_sources, recipe.compute.processes)
    task = PretrainTask(recipe.model, recipe.mask, steps, recipe.data, clips, seed=0)
    # Few log lines, since each waits for the device to read the loss.
    compute = Compute(workers=recipe.compute.workers, log_every=warm_up, tensorboard=False)
    with TemporaryDirectory() as folder, fixed_threads(recipe.compute.threads):
        train(task, Path(folder), compute, progress=False)
        rows = read_metrics(Path(folder))
    spent = {row["step"]: (row["step"] - 1) * row["seconds_per_step"] for row in rows}  # without the first step
    seconds_per_step = (spent[count] - spent[warm_up]) / CALIBRATION_STEPS
    return step_macs(recipe.model, recipe.mask, recipe.pretrain.batch_size) / seconds_per_step


def calibrate_step(recipe: Recipe) -> float:
    """Return the multiply-accumulates per second of a step of the first size in `measure.sizes`. Raises RecipeError."""
    model = recipe.measure.model_of(recipe.measure.sizes[0])
    batch = recipe.measure.batch_sizes[0]
    measured = measure_step(model, recipe.mask, batch, steps=1)
    if not measured["fits"]:
        raise RecipeError(
            f"measure: a step of {model.size} with {counted(batch, 'clip')} does not fit into the memory of this device. "
            "Lower measure.batch_sizes"
        )
    return step_macs(model, recipe.mask, batch) / measured["seconds_per_step"]


def token_table(plan: Plan) -> pd.DataFrame:
    """Return tokens and forward cost of one clip for each pre-trained arm (the index), counted from the settings."""
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
    """Return stages by kind, in the order of each kind's first stage."""
    return {kind: [stage for stage in stages if stage.kind == kind] for kind in dict.fromkeys(stage.kind for stage in stages)}


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def duration(minutes: float) -> str:
    """Return a time in seconds, minutes or hours, as text."""
    if minutes < 1.5:
        return counted(round(60 * minutes), "second")
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
