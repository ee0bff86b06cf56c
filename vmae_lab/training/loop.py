"""The one training loop, on accelerate: whatever trains here is a `Task`, and resumes exactly where it was killed."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pydantic import BaseModel, ConfigDict, Field
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vmae_lab.files import make_folder, storing_in, whole_file
from vmae_lab.randomness import derive, seeded
from vmae_lab.training.optim import cosine_schedule, parameter_groups
from vmae_lab.training.survival import Checkpoints, Stopped, ignore_stop_requests, stop_requests

Batch = dict[str, Tensor]


class TrainSettings(BaseModel):
    """How long, how fast and with which optimiser. All of it changes the result, so all of it names the stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(..., ge=1)
    batch_size: int = Field(..., ge=1, description="clips a step, over all processes and accumulated micro-batches")
    lr: float = Field(..., gt=0)
    lr_reference_batch: int | None = Field(None, ge=1, description="lr is per so many clips; absolute where left out")
    min_lr: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulation: int = Field(1, ge=1, description="micro-batches a step")
    ema: float | None = Field(None, gt=0, lt=1, description="decay a step of the weights' moving average, which is the result")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it, else fp32")

    def model_post_init(self, _context: object) -> None:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves nothing of the {self.steps} steps")

    @property
    def peak_lr(self) -> float:
        """The linear scaling rule: `lr * batch / reference`."""
        return self.lr * self.batch_size / self.lr_reference_batch if self.lr_reference_batch else self.lr

    def lr_at(self, step: int) -> float:
        return cosine_schedule(step, self.steps, self.warmup_steps, 0.0, self.peak_lr, min(self.min_lr, self.peak_lr))


class Compute(BaseModel):
    """How the work is carried out: none of it names a stage. Threads move results in the last bits; the rest moves nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: int = Field(1, ge=1, description="stages run side by side, each in a process of its own where above 1")
    threads: int | None = Field(None, ge=1, description="CPU threads a process; PyTorch's choice where left out")
    workers: int = Field(0, ge=0, description="loader processes a stage")
    checkpoint_every: int = Field(200, ge=1, description="steps")
    log_every: int = Field(20, ge=1, description="steps; oftener in a training of fewer than twenty times as many")
    tensorboard: bool = True


class Task(Protocol):
    """What a stage learns. `batches(rows)` maps a step to this process's rows of that step's global batch, on the CPU."""

    settings: TrainSettings
    seed: int

    def build(self) -> nn.Module: ...

    def batches(self, rows: range) -> Dataset: ...

    def weight(self, batch: Batch) -> float:
        """How many terms the batch's loss is a mean over, so that means over parts add up to the mean over the whole."""
        ...

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor: ...


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass
class Trained:
    """A trained model, unwrapped, and what it took."""

    model: nn.Module
    seconds_per_step: float
    steps_run: int
    device: str
    precision: str
    peak_memory_mib: float | None


def train(task: Task, folder: Path, compute: Compute, progress: bool = True) -> Trained:
    """Train a task in its folder, from its checkpoint where there is one; with `settings.ema` the average is the result.

    The result depends on the task alone: not on loader workers or interruptions, bit for bit on one CPU process with a
    fixed number of threads.
    Raises TrainingDiverged, StorageError, UnreadableCheckpoint, and Stopped where SIGTERM came, after it has saved.
    """
    make_folder(folder)
    settings = task.settings
    with seeded(task.seed, "initial weights"), stop_requests() as asked_to_stop:
        accelerator = _accelerator(settings)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = task.build()
        fused = accelerator.device.type in ("cuda", "cpu")
        groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, fused=fused)
        model, optimizer = accelerator.prepare(model, optimizer)
        run = _Run(task, accelerator, model, optimizer, folder, compute)
        run.restore()
        run.to_the_end(progress, asked_to_stop)
        run.take_average()
    peak = torch.cuda.max_memory_allocated() / 2**20 if accelerator.device.type == "cuda" else None
    return Trained(
        accelerator.unwrap_model(model), run.seconds_per_step, run.steps_run, _device_name(accelerator.device),
        "bf16" if accelerator.mixed_precision == "bf16" else "fp32", peak,
    )  # fmt: skip


def _accelerator(settings: TrainSettings) -> Accelerator:
    AcceleratorState._reset_state()  # a kernel trains many stages, each with its own precision
    capable = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and capable)
    return Accelerator(mixed_precision="bf16" if bf16 else "no")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class _Run:
    """The state of one training run between its steps."""

    def __init__(self, task: Task, accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path, compute: Compute):
        self.task, self.settings, self.compute, self.folder = task, task.settings, compute, folder
        self.checkpoints = Checkpoints(folder)
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.average = ModelEmaV3(accelerator.unwrap_model(model), self.settings.ema) if self.settings.ema else None
        self.step = 0  # optimiser steps done
        self.window: list[float] = []  # losses since the last line of the log
        self.steps_run, self.seconds_per_step = 0, math.nan
        per_process, rest = divmod(self.settings.batch_size, accelerator.num_processes)
        if rest or per_process % self.settings.accumulation:
            raise ValueError(
                f"batch_size {self.settings.batch_size} does not divide over {accelerator.num_processes} processes x "
                f"{self.settings.accumulation} micro-batches"
            )
        first = accelerator.process_index * per_process
        self.rows = range(first, first + per_process)

    def restore(self) -> None:
        state = self.checkpoints.load()
        if state:
            self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
            if self.average:
                self.average.module.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.window = state["step"], state["window"]
            logged = read_metrics(self.folder)
            self.seconds_per_step = logged[-1]["seconds_per_step"] if logged else math.nan
        self.log = _MetricsLog(self.folder, self.step, self.compute.tensorboard) if self.accelerator.is_main_process else None

    def save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "window": self.window,
            **({"average": self.average.module.state_dict()} if self.average else {}),
        }
        self.checkpoints.save(state)

    def to_the_end(self, progress: bool, asked_to_stop: Callable[[], bool]) -> None:
        settings, compute = self.settings, self.compute
        log_every = min(compute.log_every, settings.steps // 20 or compute.log_every)  # a short training is a curve as well
        bar = tqdm(
            total=settings.steps, initial=self.step, desc=self.folder.name, unit="step",
            disable=not (progress and self.accelerator.is_main_process),
        )  # fmt: skip
        self.model.train()
        started = time.perf_counter()
        for batch in self._loader():
            loss, stop = self._optimise(batch, asked_to_stop())
            self.window.append(loss)
            self.step += 1
            self.steps_run += 1
            bar.update()
            last = self.step == settings.steps
            stop = stop and not last
            if last or stop or self.step % log_every == 0 or self.step % compute.checkpoint_every == 0:
                self._check_finite()
            if last or self.step % log_every == 0:
                self.seconds_per_step = (time.perf_counter() - started) / self.steps_run
                self._write_log(bar)
            if last or stop or self.step % compute.checkpoint_every == 0:
                self.save()
            if stop:
                self.accelerator.wait_for_everyone()  # a launcher kills the others when the first has gone
                print(f"asked to stop: {self.folder} is saved after step {self.step} of {settings.steps}", flush=True)
                raise Stopped
        bar.close()
        if self.log:
            self.log.close()

    def take_average(self) -> None:
        """Put the weights' average, where one is kept, in their place: the last ones are what a resumed run goes on from."""
        if self.average:
            self.accelerator.unwrap_model(self.model).load_state_dict(self.average.module.state_dict())

    def _loader(self) -> Iterator[Batch]:
        steps = range(self.step, self.settings.steps)
        loader = DataLoader(
            self.task.batches(self.rows),
            batch_size=None,
            sampler=steps,
            num_workers=self.compute.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),
            worker_init_fn=ignore_stop_requests,
        )
        return iter(loader)

    def _optimise(self, batch: Batch, asked: bool) -> tuple[Tensor, bool]:
        """One optimiser step. Returns the loss over this process's rows, still on the device, and whether to stop after it.

        Processes stop together, after the step in which the first of them was `asked` to.
        """
        accelerator, settings = self.accelerator, self.settings
        torch.manual_seed(derive(self.task.seed, "drop path", self.step, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(self.step) * group.get("lr_scale", 1.0)
        parts = _split(batch, settings.accumulation)
        weights = [self.task.weight(part) for part in parts]
        everywhere = sum(weights)
        if accelerator.num_processes > 1:
            told = torch.tensor([everywhere, float(asked)], device=accelerator.device)
            everywhere, asked = accelerator.reduce(told).tolist()
        total = torch.zeros((), device=accelerator.device)
        for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            with accelerator.autocast():
                loss = self.task.loss(self.model, part, accelerator.device)
            share = weight / everywhere * accelerator.num_processes  # the processes' gradients are averaged
            if index < len(parts) - 1:
                with accelerator.no_sync(self.model):
                    accelerator.backward(loss * share)
            else:
                accelerator.backward(loss * share)
            total += loss.detach() * share
        if settings.clip_grad:
            accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
        self.optimizer.step()
        if self.average:
            self.average.update(accelerator.unwrap_model(self.model))
        self.optimizer.zero_grad()
        return total, bool(asked)

    def _check_finite(self) -> None:
        """Fetch the losses since the last log line, and stop on one that is not finite before anything is saved."""
        losses = torch.stack([torch.as_tensor(value, device=self.accelerator.device) for value in self.window])
        self.window = self.accelerator.reduce(losses, reduction="mean").tolist()
        for offset, value in enumerate(self.window):
            if not math.isfinite(value):
                step = self.step - len(self.window) + offset
                raise TrainingDiverged(
                    f"the loss is {value} at step {step} of {self.settings.steps} in {self.folder} (learning rate "
                    f"{self.settings.lr_at(step):.3g}, gradient clip {self.settings.clip_grad}, precision "
                    f"{self.settings.precision}). Lower lr, lengthen warmup_steps, set clip_grad, or use precision fp32; "
                    f"the last good checkpoint is kept"
                )

    def _write_log(self, bar: tqdm) -> None:
        mean = sum(self.window) / len(self.window)
        bar.set_postfix(loss=f"{mean:.4f}")
        if self.log:
            self.log.write(self.step, {"loss": mean, "lr": self.settings.lr_at(self.step - 1)}, self.seconds_per_step)
        self.window = []


class _MetricsLog:
    """metrics.jsonl, and the same in TensorBoard. Lines behind the step that a run resumes from are dropped."""

    def __init__(self, folder: Path, step: int, tensorboard: bool):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        with whole_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float], seconds_per_step: float) -> None:
        with storing_in(self.path.parent), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values, "seconds_per_step": round(seconds_per_step, 4)}) + "\n")
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log; a last line that a kill cut short is left out."""
    rows = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _split(batch: Batch, parts: int) -> list[Batch]:
    if parts == 1:
        return [batch]
    pieces = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]
