"""The training loop, which trains any `Task`. A run that was stopped or killed resumes and gives the same result."""

import math
import time
import warnings
from collections.abc import Collection, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from vmae_lab.training import distributed
from vmae_lab.training.checkpoint import Checkpoints, UnreadableCheckpoint, alone_in, drop_kept_weights, keep_weights
from vmae_lab.training.dataloader import (
    TOTAL_WEIGHT,
    Batch,
    BatchParts,
    data_loader,
    plan_loading,
    require_shared_memory,
    split_batch,
)  # fmt: skip
from vmae_lab.training.divergence import Bad, TrainingDiverged, first_bad
from vmae_lab.training.metrics import MetricsLog, note, read_metrics
from vmae_lab.training.preemption import Stopped, StopRequests, stop_requests
from vmae_lab.training.settings import Compute
from vmae_lab.training.task import Model, Task
from vmae_lab.training.validation import Validation
from vmae_lab.utils.atomic_io import make_folder
from vmae_lab.utils.counts import counted
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.seeding import derive, reseed, seeded

# Seconds between two looks at the stop requests of several processes. Each makes the CPU wait for the GPU.
STOP_CHECK_S = 5.0


@dataclass
class Trained(Generic[Model]):
    """The trained model without wrappers, and facts about the run."""

    model: Model
    seconds_per_step: float  # without the first step of this start
    steps_run: int  # since the run was last started or resumed
    device: str
    precision: str
    peak_memory_mib: float | None
    processes: int = 1
    first_step_seconds: float | None = None  # with the start of the loader and compilation; None if no step was run
    rolled_back: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] | None = None  # if the best weights were kept: their step and validation score


@dataclass
class TrainState:
    """Plain values in a checkpoint, in addition to weights and moments."""

    step: int = 0  # number of finished optimizer steps
    skipped: int = 0  # number of steps whose samples were skipped after roll-backs
    window: list[float] = field(default_factory=list)  # losses since the last log line
    recent: list[float] = field(default_factory=list)  # last losses, to detect spikes
    rolled_back: list[dict[str, Any]] = field(default_factory=list)


def train(
    task: Task[Model], folder: Path, compute: Compute, progress: bool = True, keep: Collection[int] = (),
    validation: Validation | None = None,
) -> Trained[Model]:  # fmt: skip
    """Train a task in a folder, and resume from the last checkpoint there if there is one.

    If `settings.ema` is set, the result is the moving average of the weights. The weights after each step in `keep` are written
    to `kept_file(step)` in the folder. With `validation`, loss and accuracy on other clips are measured and logged, and the
    result can be the best weights instead of the last ones. Validation draws no random numbers, so it does not change training.

    The result depends only on the task, not on loader workers or interruptions: bit for bit in one CPU process with a fixed
    number of threads. The number of processes changes rounding, and also drop path and the pairs of mixup and cutmix, which
    each process draws for its own rows.

    Raises TrainingDiverged, StorageError, UnreadableCheckpoint, FolderInUse, ImpossibleHere, MissingVideos, and (after saving)
    Stopped if SIGTERM arrives.
    """
    with seeded(task.seed, "initial weights"), stop_requests() as stop_requested:
        accelerator = distributed.accelerator_for(task.settings)
        main = accelerator.is_main_process
        on_gpu = accelerator.device.type == "cuda"
        if main:
            make_folder(folder)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        bar = Progress(total=task.settings.steps, desc=folder.name, unit="steps", disable=not (progress and main))
        with alone_in(folder) if main else nullcontext(), bar:
            trainer = Trainer(task, folder, compute, accelerator, keep, validation)
            trainer.resume()
            trainer.note_start(to_console=progress)
            trainer.fit(bar, stop_requested)
            peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
            model = trainer.full_model()
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    return Trained(
        model, trainer.seconds_per_step, trainer.steps_run, distributed.device_name(accelerator.device), precision, peak,
        processes=accelerator.num_processes, first_step_seconds=trainer.first_step_seconds,
        rolled_back=trainer.state.rolled_back, best=trainer.best_score,
    )  # fmt: skip


class Trainer(Generic[Model]):
    """One run: model and optimizer on their devices, the state, and the files in the run's folder."""

    def __init__(
        self, task: Task[Model], folder: Path, compute: Compute, accelerator: Accelerator, keep: Collection[int],
        validation: Validation | None = None,
    ):  # fmt: skip
        self.task = task
        self.settings = task.settings
        self.folder = folder
        self.compute = compute
        self.accelerator = accelerator
        self.keep = keep
        self.validation = validation
        self.rows = distributed.rows_of_process(accelerator, task.settings)
        self.loading = plan_loading(task.row_size, self.rows, compute.workers, compute.prefetch_mib * 2**20)
        require_shared_memory(self.loading)
        self.model, self.optimizer = distributed.prepare(accelerator, task.build(), task.settings, compute)
        self.parameters = list(self.model.parameters())
        self.average = ModelEmaV3(distributed.unwrapped(self.model), task.settings.ema) if task.settings.ema else None
        self.state = TrainState()
        # Only in the first process: step, score and weights (on the CPU) of the best validation so far.
        self.best: dict[str, Any] = {}
        self.checkpoints = Checkpoints(folder)
        self.roll_back_checkpoints = Checkpoints(folder, "turning_point")
        self.losses: list[Tensor] = []  # of the steps since the last check; they stay on the device until then
        self.checked_at, self.next_check = time.perf_counter(), 0  # the last check, and the steps_run of the next
        self.steps_run = 0
        self.seconds_per_step = math.nan
        self.first_step_seconds: float | None = None
        self.validation_s = 0.0
        self.log: MetricsLog | None = None  # only in the first process

    def fit(self, bar: Progress, stop_requested: StopRequests) -> None:
        """Train from the current step to the last. Raises TrainingDiverged and Stopped."""
        steps = self.settings.steps
        log_every = min(self.compute.log_every, steps // 20 or self.compute.log_every)  # at least 20 lines, also of a short run
        roll_back_every = self.settings.divergence.roll_back or steps
        bar.initial = bar.n = self.state.step
        self.model.train()
        started = time.perf_counter()
        with closing(self._batches()) as batches:  # ends the loader workers, also if a step fails
            # Several processes must stop after the same step, so none of them may stop while it waits for a batch.
            alone = self.accelerator.num_processes == 1
            for batch in stop_requested.until_requested(batches) if alone else batches:
                # One optimizer step.
                self.losses.append(self.train_step(batch))
                self.steps_run += 1
                self.state.step += 1
                if self.steps_run == 1:
                    self._time_first_step(started)

                # What has to be done after this step.
                step = self.state.step
                last = step == steps
                validate = self.validation is not None and self.validation.due(step, steps)
                log = last or validate or step % log_every == 0
                keep_step = step in self.keep
                roll_back_point = step % roll_back_every == 0 and not last
                save = last or step % self.compute.checkpoint_every == 0

                # Check the losses and weights before writing anything. One process stops when it gets its next batch. Several
                # processes learn here whether one of them got a stop request, so that all stop after the same step.
                bad, stop = None, False
                if log or keep_step or roll_back_point or save or (not alone and self.steps_run >= self.next_check):
                    bad, stop = self._check(stop_requested())
                    stop = stop and not last
                if bad:
                    self._roll_back(bad)
                else:
                    # Loss and accuracy on the validation split. Their time is not part of the seconds per step.
                    scores = self.validate() if validate else {}
                    if log:
                        self.seconds_per_step = self._mean_seconds(time.perf_counter() - started - self.validation_s)
                        self._write_log(bar, scores)
                    if keep_step:  # before the checkpoint, since a run that resumes from it needs them
                        keep_weights(self.folder, step, self.average.module if self.average else self.model)
                    if roll_back_point:
                        self._save(self.roll_back_checkpoints)
                    if save or stop:
                        self._save(self.checkpoints)
                bar.update(self.state.step - bar.n)
                if stop:
                    self._stop()
        if self.state.step < steps:  # a stop request ended the wait for a batch
            bad, _ = self._check(True)
            if bad:
                self._roll_back(bad)
            else:
                self._save(self.checkpoints)
            self._stop()
        if self.log:
            self.log.close()

    def train_step(self, batch: Batch) -> Tensor:
        """Run one optimizer step. Returns its loss, a scalar on the device. Its mean over processes is the step's loss.

        Nothing here makes the CPU wait for a GPU.
        """
        accelerator, settings, state = self.accelerator, self.settings, self.state

        # Set the random seed (for drop path) and the learning rate, both functions of the step.
        seed = derive(self.task.seed, "drop path", state.step + state.skipped, accelerator.process_index)
        reseed(accelerator.device, seed)
        lr = settings.lr_at(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

        # Forward and backward. Gradients are summed over micro-batches and, in the last backward, averaged over processes.
        parts = split_batch(batch, settings.accumulation)
        total = torch.zeros((), device=accelerator.device)
        for index, (part, share) in enumerate(zip(parts, self._shares(parts), strict=True)):
            # DDP decides in forward whether the backward after it averages the gradients, so no_sync is around both.
            with accelerator.no_sync(self.model) if index < len(parts) - 1 else nullcontext():
                with accelerator.autocast():
                    loss = self.task.loss(self.model, part, accelerator.device)
                accelerator.backward(loss * share)
            total += loss.detach() * share

        # Update the weights and their moving average.
        if settings.clip_grad:
            accelerator.clip_grad_norm_(self.parameters, settings.clip_grad)
        self.optimizer.step()
        if self.average:
            self.average.update(distributed.unwrapped(self.model))
        self.optimizer.zero_grad()
        return total

    def _shares(self, parts: list[Batch]) -> list[Any]:
        """Return the weights of micro-batches in the step's loss: numbers, or scalars on the device.

        Micro-batches and processes are weighted by the number of terms in their losses. Without any term (no person), there is
        no gradient. The factor of the number of processes is there because gradients are averaged over processes.
        """
        accelerator, weights = self.accelerator, [self.task.weight(part) for part in parts]
        total = float(parts[0][TOTAL_WEIGHT][0]) if TOTAL_WEIGHT in parts[0] else sum(weights)
        if accelerator.num_processes == 1 or TOTAL_WEIGHT in parts[0]:
            return [weight / (total or 1) * accelerator.num_processes for weight in weights]
        summed = accelerator.reduce(torch.full((), total, device=accelerator.device))
        summed = torch.where(summed > 0, summed, 1.0).double()
        return [(weight / summed * accelerator.num_processes).float() for weight in weights]

    def validate(self) -> dict[str, float]:
        """Measure the current weights, or their moving average, on the validation clips, and keep them if they are the best."""
        assert self.validation
        started = time.perf_counter()
        weights = self.average.module.state_dict() if self.average else distributed.gathered_weights(self.model)
        self.validated_model.load_state_dict(weights)
        scores = self.validation.measure(self.validated_model)
        score = self.validation.score
        is_best = not self.best or scores[score] > self.best[score]  # of equal ones, the earliest
        if self.validation.keep_best and is_best and self.accelerator.is_main_process:
            copy = {name: value.to("cpu", copy=True) for name, value in self.validated_model.state_dict().items()}
            self.best = {"step": self.state.step, score: scores[score], "weights": copy}
        self.validation_s += time.perf_counter() - started
        return scores

    @cached_property
    def validated_model(self) -> Model:
        """A second model, to which the weights are copied for validation. Like those of the final model, they are float32.

        The trained model stays as it is: its mode, its compiled and sharded blocks. Building the copy draws initial weights, so
        the global random state is restored after it.
        """
        with seeded(self.task.seed, "initial weights"):
            return self.task.build().to(self.accelerator.device)

    def _batches(self) -> Generator[Batch, None, None]:
        """Yield this process's batches from the current step to the last. After a roll-back, skip samples."""
        dataset = BatchParts(self.task.training_batch, self.rows, self.loading.parts)
        on_gpu = self.accelerator.device.type == "cuda"
        while self.state.step < self.settings.steps:
            skipped = self.state.skipped
            positions = range(self.state.step + skipped, self.settings.steps + skipped)
            for batch in data_loader(dataset, positions, self.loading, pin_memory=on_gpu):
                yield batch
                if self.state.skipped != skipped:  # after a roll-back, start a new loader
                    break

    def full_model(self) -> Model:
        """Return the full model without wrappers, in every process, with the weights that are the result.

        These are the best weights if they are kept; else their moving average if there is one; else the last weights.
        """
        # Without the training's autocast, as a model that is loaded from its file: evaluation has its own precision.
        model: Model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.average:
            model.load_state_dict(self.average.module.state_dict())
        if isinstance(model, FSDPModule):
            weights = distributed.gathered_weights(model)
            model = self.task.build().to(self.accelerator.device)
            model.load_state_dict(weights)
        if self.validation and self.validation.keep_best:
            distributed.load_full_weights(self.accelerator, model, self.best.get("weights", {}))
        return model

    @property
    def best_score(self) -> dict[str, float] | None:
        """Step and validation score of the best weights, in the first process. None if they are not kept."""
        return {name: value for name, value in self.best.items() if name != "weights"} or None

    # -----------------------------------------------------------------------------------------------------------------------
    # Checkpoints and roll-backs

    def resume(self) -> None:
        """Load the last checkpoint if there is one, and open the log at the current step."""
        if self._load(self.checkpoints):
            logged = read_metrics(self.folder)
            self.seconds_per_step = logged[-1]["seconds_per_step"] if logged else math.nan
        elif self.settings.divergence.roll_back:
            self._save(self.roll_back_checkpoints)
        self._open_log()

    def _save(self, checkpoints: Checkpoints) -> None:
        state = distributed.full_state_dict(self.model, self.optimizer)
        if self.accelerator.is_main_process:
            average = {"average": self.average.module.state_dict()} if self.average else {}
            best = {"best": self.best} if self.best else {}
            checkpoints.save({**state, **average, **best, **vars(self.state)})

    def _load(self, checkpoints: Checkpoints) -> bool:
        """Load the latest checkpoint (the first process reads and broadcasts it). Returns False if there is none."""
        found = (checkpoints.load() or {}) if self.accelerator.is_main_process else {}
        names = [entry.name for entry in fields(TrainState)]
        if found and not found.keys() >= set(names):
            raise UnreadableCheckpoint(
                f"{checkpoints.newest} was written by another version of vmae_lab; delete it to start this run from scratch"
            )
        [state] = broadcast_object_list([{name: found[name] for name in names} if found else None])
        if state is None:
            return False
        distributed.load_full_state_dict(self.accelerator, self.model, self.optimizer, found)
        if self.average:
            distributed.load_full_weights(self.accelerator, self.average.module, found.get("average", {}))
        self.state = TrainState(**state)
        self.best = found.get("best", {})
        return True

    def _check(self, stop: bool) -> tuple[Bad | None, bool]:
        """Return the first diverged step since the last check, or None, and whether a process got a stop request.

        The last steps' losses are averaged over processes. `stop` is whether this process got a stop request.
        """
        now = time.perf_counter()
        seconds = (now - self.checked_at) / max(1, len(self.losses))
        broken = (~distributed.weights_are_finite(self.model)).float()
        own = torch.tensor([float(stop), seconds], device=broken.device)
        values = self.accelerator.reduce(torch.stack([*self.losses, broken, *own]), reduction="mean")
        *losses, broken_part, stops, seconds = values.tolist()
        self.losses.clear()
        self.state.window += losses
        # All processes have the same mean of the seconds, so all check again after the same step.
        self.checked_at, self.next_check = now, self.steps_run + max(1, int(STOP_CHECK_S / max(seconds, 1e-6)))
        step = self.state.step
        bad = first_bad(losses, self.state.recent, self.settings.divergence.spike, step - len(losses))
        return bad or (Bad(step - 1, "weights are no longer finite") if broken_part else None), bool(stops)

    def _roll_back(self, bad: Bad) -> None:
        """Load the last roll-back checkpoint and skip samples up to the next one. Raises TrainingDiverged."""
        settings, before = self.settings, self.state
        every = settings.divergence.roll_back
        times = len(before.rolled_back)
        if every is None or times == settings.divergence.at_most or not self._load(self.roll_back_checkpoints):
            tried = f", rolled back {counted(times, 'time')}" if times else ""
            raise TrainingDiverged(
                f"{bad.what} at step {bad.step} of {settings.steps} in {self.folder} (learning rate "
                f"{settings.lr_at(bad.step):.3g}, clip_grad {settings.clip_grad}, precision {settings.precision}{tried}). "
                "Lower lr, increase warmup_steps, set clip_grad, use precision fp32, or set divergence.roll_back. "
                "The last good checkpoint is kept"
            )
        self.state.skipped = before.skipped + every
        self.state.rolled_back = [*before.rolled_back, {"step": bad.step, "what": bad.what, "to": self.state.step}]
        self._save(self.checkpoints)
        self._open_log()
        text = (
            f"{bad.what} at step {bad.step}: rolled back to step {self.state.step}, skipping the samples of "
            f"{counted(every, 'step')}"
        )
        if self.accelerator.is_main_process:
            note(self.folder, text)
            warnings.warn(f"{self.folder}: {text}", stacklevel=3)

    def _stop(self) -> None:
        self.accelerator.wait_for_everyone()  # a launcher kills the other processes when the first one ends
        text = f"stop requested: {self.folder} is saved after step {self.state.step} of {self.settings.steps}"
        if self.accelerator.is_main_process:
            note(self.folder, text)
        print(text, flush=True)
        raise Stopped

    # -----------------------------------------------------------------------------------------------------------------------
    # The log

    def _open_log(self) -> None:
        """Open the log at the current step. Lines and kept weights of later steps are deleted, since the run repeats them."""
        if self.accelerator.is_main_process:
            if self.log:
                self.log.close()
            drop_kept_weights(self.folder, self.keep, after=self.state.step)
            self.log = MetricsLog(self.folder, self.state.step, self.compute.tensorboard, self.compute.trackers)

    def _write_log(self, bar: Progress, scores: dict[str, float]) -> None:
        """Write a line with the mean loss since the last line, and the validation scores if there are any."""
        state = self.state
        mean = sum(state.window) / len(state.window)
        validated = f", {self.validation.text(scores)}" if self.validation and scores else ""
        bar.set_postfix_str(f"loss {mean:.4f}{validated}", refresh=False)
        if self.log:
            values = {"loss": mean, "lr": self.settings.lr_at(state.step - 1), **scores}
            self.log.write(state.step, values, self.seconds_per_step)
        state.window = []

    def _time_first_step(self, started: float) -> None:
        """Store and log the time of the first step. It includes the start of the loader and compilation."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        self.first_step_seconds = time.perf_counter() - started
        if self.accelerator.is_main_process:
            text = f"first step: {self.first_step_seconds:.2f} s, with the start of the loader and compilation"
            note(self.folder, text)

    def _mean_seconds(self, spent: float) -> float:
        """Return the mean time of a step without the first one, unless it is the only one."""
        first = self.first_step_seconds or 0.0
        return (spent - first) / (self.steps_run - 1) if self.steps_run > 1 else first

    def note_start(self, to_console: bool) -> None:
        """Write a line to run.log: first step, devices, precision, batch and learning rate."""
        accelerator, settings = self.accelerator, self.settings
        kind = "sharded (FSDP2)" if isinstance(self.model, FSDPModule) else accelerator.distributed_type.value
        text = (
            f"from step {self.state.step} of {settings.steps} on {accelerator.num_processes} x "
            f"{distributed.device_name(accelerator.device)}, {kind}, {accelerator.mixed_precision} mixed precision: "
            f"{counted(settings.batch_size, 'clip')} per step = {counted(accelerator.num_processes, 'process')} x "
            f"{counted(settings.accumulation, 'micro-batch')} x {counted(len(self.rows) // settings.accumulation, 'clip')}; "
            f"{settings.lr_words}; {self.loading.words}"
        )
        if accelerator.is_main_process:
            note(self.folder, text)
            if to_console and accelerator.num_processes > 1:
                print(f"{self.folder.name}: {text}", flush=True)
