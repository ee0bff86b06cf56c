"""The one training loop, on accelerate: whatever trains here is a `Task`, and resumes exactly where it was killed."""

import math
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset

from vmae_lab.training.checkpoint import Checkpoints, Stopped, StopRequests, UnreadableCheckpoint, alone_in, stop_requests
from vmae_lab.training.dataloader import Batch, data_loader, split_batch
from vmae_lab.training.distributed import (
    accelerator_for,
    device_name,
    finite,
    full_state_dict,
    gathered_weights,
    load_full_state_dict,
    load_full_weights,
    prepared,
    unwrapped,
)  # fmt: skip
from vmae_lab.training.divergence import Bad, TrainingDiverged, first_bad
from vmae_lab.training.kept_weights import KeptWeights
from vmae_lab.training.metrics import MetricsLog, note, read_metrics
from vmae_lab.training.optim import parameter_groups
from vmae_lab.training.settings import Compute, ImpossibleHere, TrainSettings
from vmae_lab.utils.atomic_io import make_folder
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.seeding import derive, reseed, seeded

Model = TypeVar("Model", bound=nn.Module, covariant=True)  # what a task builds


class Task(Protocol[Model]):
    """What a stage learns. `batches(rows)` maps a step to this process's rows of that step's global batch, on the CPU."""

    @property
    def settings(self) -> TrainSettings: ...

    @property
    def seed(self) -> int: ...

    def build(self) -> Model: ...

    def batches(self, rows: range) -> Dataset: ...

    def weight(self, batch: Batch) -> float:
        """How many terms the batch's loss is a mean over, so that means over parts add up to the mean over the whole."""
        ...

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor: ...


@dataclass
class Trained(Generic[Model]):
    """A trained model, unwrapped, and what it took."""

    model: Model
    seconds_per_step: float
    steps_run: int
    device: str
    precision: str
    peak_memory_mib: float | None
    processes: int = 1
    rolled_back: list[dict[str, Any]] = field(default_factory=list)


def train(task: Task[Model], folder: Path, compute: Compute, progress: bool = True, keep: Sequence[int] = ()) -> Trained[Model]:
    """Train a task in its folder, from its checkpoint where there is one; with `settings.ema` the average is the result.

    The weights after each of the steps `keep` are written to `kept_file(step)` in the folder.

    The result depends on the task alone, not on loader workers or interruptions: bit for bit on one CPU process with a fixed
    number of threads. The number of processes, which may change where a run goes on, moves it by rounding; and by drop path
    and by which clips mixup and cutmix pair, since each process draws these for its own rows.
    Raises TrainingDiverged, StorageError, UnreadableCheckpoint, FolderInUse, ImpossibleHere, and, after saving, Stopped where
    SIGTERM came.
    """
    settings = task.settings
    with seeded(task.seed, "initial weights"), stop_requests() as stop_requested:
        accelerator = accelerator_for(settings)
        if accelerator.is_main_process:
            make_folder(folder)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        built = task.build()
        groups = parameter_groups(built, settings.weight_decay, settings.layer_decay)
        model, optimizer = prepared(accelerator, built, groups, settings, compute)
        shown = progress and accelerator.is_main_process
        bar = Progress(total=settings.steps, desc=folder.name, unit="steps", disable=not shown)
        with alone_in(folder) if accelerator.is_main_process else nullcontext(), bar:
            run = TrainRun(task, accelerator, model, optimizer, folder, compute, KeptWeights(folder, keep))
            run.restore()
            with closing(run.batches):  # also if a step fails: the traceback would keep its loader processes alive
                run.fit(bar, progress, stop_requested)
            peak = torch.cuda.max_memory_allocated() / 2**20 if accelerator.device.type == "cuda" else None
            trained = run.full_model()
    return Trained(
        trained, run.seconds_per_step, run.steps_run, device_name(accelerator.device),
        "bf16" if accelerator.mixed_precision == "bf16" else "fp32", peak, accelerator.num_processes, run.place.rolled_back,
    )  # fmt: skip


@dataclass
class TrainState:
    """Where a run stands, besides weights and moments; all of it plain values."""

    step: int = 0  # optimiser steps done
    skipped: int = 0  # steps whose samples were left out, by going back
    window: list[Any] = field(default_factory=list)  # losses since the last line of the log; on the device till looked at
    recent: list[float] = field(default_factory=list)  # losses that a spike is measured against
    rolled_back: list[dict[str, Any]] = field(default_factory=list)


TRAIN_STATE = [one.name for one in fields(TrainState)]


class TrainRun(Generic[Model]):
    """The state of one training run between its steps."""

    def __init__(
        self, task: Task[Model], accelerator: Accelerator, model: nn.Module, optimizer: Any, folder: Path, compute: Compute,
        kept: KeptWeights,
    ):  # fmt: skip
        self.task, self.settings, self.compute, self.folder, self.kept = task, task.settings, compute, folder, kept
        self.checkpoints, self.turning_points = Checkpoints(folder), Checkpoints(folder, "turning_point")
        self.accelerator, self.model, self.weights, self.optimizer = accelerator, model, list(model.parameters()), optimizer
        if self.settings.ema and isinstance(model, FSDPModule):
            raise ImpossibleHere("ema keeps a whole copy of the weights, which FSDP shares out: leave ema out, or use DDP")
        self.average = ModelEmaV3(accelerator.unwrap_model(model), self.settings.ema) if self.settings.ema else None
        self.place, self.checked = TrainState(), 0  # checked: losses of the window that are known to be sound
        self.steps_run, self.seconds_per_step = 0, math.nan
        self.log: MetricsLog | None = None
        self.batches = self._batches()
        per_process, rest = divmod(self.settings.batch_size, accelerator.num_processes)
        if rest or per_process % self.settings.accumulation:
            raise ImpossibleHere(
                f"batch_size {self.settings.batch_size} does not divide over {accelerator.num_processes} processes x "
                f"{self.settings.accumulation} micro-batches: change batch_size, accumulation or the number of processes"
            )
        first = accelerator.process_index * per_process
        self.rows = range(first, first + per_process)

    def restore(self) -> None:
        """Go on from the newest checkpoint, where there is one; open the log there."""
        if self._load(self.checkpoints):
            logged = read_metrics(self.folder)
            self.seconds_per_step = logged[-1]["seconds_per_step"] if logged else math.nan
        elif self.settings.divergence.roll_back:
            self._save(self.turning_points)
        self._open_log()

    def _load(self, kept: Checkpoints) -> bool:
        """Take up the newest state kept, which the first process alone reads; whether there was one."""
        state = (kept.load() or {}) if self.accelerator.is_main_process else {}
        if state and not set(TRAIN_STATE) <= state.keys():
            raise UnreadableCheckpoint(f"{kept.newest} is of another version of vmae_lab; delete it to start this run anew")
        [place] = broadcast_object_list([{name: state[name] for name in TRAIN_STATE} if state else None])
        if place is None:
            return False
        load_full_state_dict(self.accelerator, self.model, self.optimizer, state)
        if self.average:
            load_full_weights(self.accelerator, self.average.module, state.get("average", {}))
        self.place = TrainState(**place)
        self.checked = len(self.place.window)
        return True

    def _save(self, kept: Checkpoints) -> None:
        state = full_state_dict(self.model, self.optimizer)
        if self.accelerator.is_main_process:
            average = {"average": self.average.module.state_dict()} if self.average else {}
            kept.save({**state, **average, **vars(self.place)})

    def _open_log(self) -> None:
        if self.accelerator.is_main_process:
            if self.log:
                self.log.close()
            self.kept.drop_after(self.place.step)
            self.log = MetricsLog(self.folder, self.place.step, self.compute.tensorboard, self.compute.trackers)

    def _note_start(self, progress: bool) -> None:
        """What the log says of every start: on what, from which step, how the batch is made up and at which rate."""
        accelerator, settings = self.accelerator, self.settings
        clips = len(self.rows) // settings.accumulation
        shared = "sharded (FSDP2)" if isinstance(self.model, FSDPModule) else accelerator.distributed_type.value
        words = (
            f"from step {self.place.step} of {settings.steps} on {accelerator.num_processes} x "
            f"{device_name(accelerator.device)}, {shared}, {accelerator.mixed_precision} "
            f"mixed precision: {settings.batch_size} clips a step = {accelerator.num_processes} processes x "
            f"{settings.accumulation} micro-batches x {clips} clips; {settings.lr_words}"
        )
        if accelerator.is_main_process:
            note(self.folder, words)
            if progress and accelerator.num_processes > 1:
                print(f"{self.folder.name}: {words}", flush=True)

    def fit(self, bar: Progress, progress: bool, stop_requested: StopRequests) -> None:
        settings, compute = self.settings, self.compute
        self._note_start(progress)
        log_every = min(compute.log_every, settings.steps // 20 or compute.log_every)  # a short training is a curve as well
        back_to = settings.divergence.roll_back or settings.steps
        bar.initial = bar.n = self.place.step
        self.model.train()
        started = time.perf_counter()
        # Several processes agree on the step after which they stop, so none of them may stop while it waits for a batch.
        for batch in stop_requested.until_requested(self.batches) if self.accelerator.num_processes == 1 else self.batches:
            loss, stop = self.train_step(batch, stop_requested())
            self.place.window.append(loss)
            self.place.step += 1
            self.steps_run += 1
            step, last = self.place.step, self.place.step == settings.steps
            stop = stop and not last
            log, turn = last or step % log_every == 0, step % back_to == 0 and not last
            save, keep = last or stop or step % compute.checkpoint_every == 0, step in self.kept.steps
            if (log or save or turn or keep) and (bad := self._first_bad()):
                self.roll_back(bad)
            else:
                if log:
                    self.seconds_per_step = (time.perf_counter() - started) / self.steps_run
                    self._write_log(bar)
                if keep:  # before the checkpoint: a run that resumes from there has it
                    self.kept.save(step, self.average.module if self.average else self.model)
                if turn:
                    self._save(self.turning_points)
                if save:
                    self._save(self.checkpoints)
            bar.update(self.place.step - bar.n)
            if stop:
                self._stop()
        if self.place.step < settings.steps:  # asked to stop while it waited for a batch
            bad = self._first_bad()
            self.roll_back(bad) if bad else self._save(self.checkpoints)
            self._stop()
        if self.log:
            self.log.close()

    def _batches(self) -> Generator[Batch, None, None]:
        """This process's rows, from where the run stands to the end; again from there if it goes back."""
        dataset, on_gpu = self.task.batches(self.rows), self.accelerator.device.type == "cuda"
        while self.place.step < self.settings.steps:
            first, place = self.place.step, self.place
            positions = range(first + place.skipped, self.settings.steps + place.skipped)
            for batch in data_loader(dataset, positions, self.compute.workers, pin_memory=on_gpu):
                yield batch
                if self.place is not place:
                    break

    def train_step(self, batch: Batch, asked: bool) -> tuple[Tensor, bool]:
        """One optimiser step. Returns the loss over this process's rows, still on the device, and whether to stop after it.

        Processes stop together, after the step in which the first of them was `asked` to.
        """
        accelerator, settings, step = self.accelerator, self.settings, self.place.step
        reseed(accelerator.device, derive(self.task.seed, "drop path", step + self.place.skipped, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(step) * group.get("lr_scale", 1.0)
        parts = split_batch(batch, settings.accumulation)
        weights = [self.task.weight(part) for part in parts]
        everywhere = sum(weights)
        if accelerator.num_processes > 1:
            told = torch.tensor([everywhere, float(asked)], device=accelerator.device)
            everywhere, asked = accelerator.reduce(told).tolist()
        total = torch.zeros((), device=accelerator.device)
        for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            with accelerator.autocast():
                loss = self.task.loss(self.model, part, accelerator.device)
            # The processes' gradients are averaged. No terms at all (no person in any crop) is a step of no gradient.
            share = weight / (everywhere or 1) * accelerator.num_processes
            with accelerator.no_sync(self.model) if index < len(parts) - 1 else nullcontext():
                accelerator.backward(loss * share)
            total += loss.detach() * share
        if settings.clip_grad:
            accelerator.clip_grad_norm_(self.weights, settings.clip_grad)
        self.optimizer.step()
        if self.average:
            self.average.update(unwrapped(self.model))
        self.optimizer.zero_grad()
        return total, bool(asked)

    def _first_bad(self) -> Bad | None:
        """Fetch the losses not looked at yet, of all processes, and find the first step that went wrong, before anything is
        saved: a bad loss, or weights that are not finite."""
        place, known = self.place, self.checked
        told = torch.stack([*place.window[known:], (~finite(self.model)).float()])
        *losses, broken = self.accelerator.reduce(told, reduction="mean").tolist()
        place.window[known:], self.checked = losses, len(place.window)
        bad = first_bad(losses, place.recent, self.settings.divergence.spike, place.step - len(losses))
        return bad or (Bad(place.step - 1, "weights are no longer finite") if broken else None)

    def roll_back(self, bad: Bad) -> None:
        """To the last turning point, and past the samples of the steps between it and the next. Raises TrainingDiverged."""
        settings, place, back_to = self.settings, self.place, self.settings.divergence.roll_back
        often = len(place.rolled_back) == settings.divergence.at_most
        if back_to is None or often or not self._load(self.turning_points):
            tried = f", {len(place.rolled_back)} times gone back" if place.rolled_back else ""
            raise TrainingDiverged(
                f"{bad.what} at step {bad.step} of {settings.steps} in {self.folder} (learning rate "
                f"{settings.lr_at(bad.step):.3g}, gradient clip {settings.clip_grad}, precision {settings.precision}{tried}). "
                f"Lower lr, lengthen warmup_steps, set clip_grad, use precision fp32, or let it go back by itself with "
                f"divergence.roll_back; the last good checkpoint is kept"
            )
        story = {"step": bad.step, "what": bad.what, "to": self.place.step}
        self.place.skipped, self.place.rolled_back = place.skipped + back_to, [*place.rolled_back, story]
        self._save(self.checkpoints)
        self._open_log()
        words = f"{bad.what} at step {bad.step}: back to step {self.place.step}, past the samples of {back_to} steps"
        if self.accelerator.is_main_process:
            note(self.folder, words)
            warnings.warn(f"{self.folder}: {words}", stacklevel=2)

    def _write_log(self, bar: Progress) -> None:
        place = self.place
        mean = sum(place.window) / len(place.window)
        bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
        if self.log:
            self.log.write(place.step, {"loss": mean, "lr": self.settings.lr_at(place.step - 1)}, self.seconds_per_step)
        place.window, self.checked = [], 0

    def _stop(self) -> None:
        self.accelerator.wait_for_everyone()  # a launcher kills the others when the first has gone
        words = f"asked to stop: {self.folder} is saved after step {self.place.step} of {self.settings.steps}"
        if self.accelerator.is_main_process:
            note(self.folder, words)
        print(words, flush=True)
        raise Stopped

    def full_model(self) -> Model:
        """The result, unwrapped and whole in every process: the weights' average where one is kept."""
        # Evaluated in float32, as the saved model is, whatever it was trained in.
        model: Model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.average:
            model.load_state_dict(self.average.module.state_dict())
        if not isinstance(model, FSDPModule):
            return model
        weights = gathered_weights(model)
        model = self.task.build().to(self.accelerator.device)
        model.load_state_dict(weights)
        return model
