"""Executors compute the stages of a plan: in processes of this machine, or as Slurm jobs (slurm.py)."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import torch

from vmae_lab.lab.stages import Stage
from vmae_lab.training.preemption import Stopped, stop_requests
from vmae_lab.training.settings import Compute
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.processes import ProcessLost, worker_pool
from vmae_lab.utils.progress import Progress

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_DEVICE = ("", "-1", "NoDevFiles")  # values in CUDA_VISIBLE_DEVICES that hide all GPUs; the last one is Slurm's
Complete = Callable[[Stage, Compute], None]  # completes a stage in another process; can be pickled


class StageFailed(UserError, RuntimeError):
    """One or more stages failed in other processes. The message names all of them."""


class Executor(Protocol):
    """Computes stages in other processes, at most `slots` at the same time. Open it with a `with` statement."""

    slots: int

    def submit(self, stage: Stage) -> None:
        """Start a stage whose inputs are finished."""

    def ended(self) -> dict[Stage, Exception | None]:
        """Wait for at most about a second. Return the stages that have ended, with their errors."""

    def status(self) -> str:
        """Return what is running, for the progress line."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def run_stages(todo: Sequence[Stage], executor: Executor, finished: Callable[[Stage], bool], bar: Progress) -> None:
    """Complete stages. Each is submitted when its inputs are finished.

    If a stage fails, its error is printed, and only the stages that need it are skipped. When the others have ended, raises the
    error of the stage, or StageFailed if several failed. Raises Stopped on a stop request.
    """
    waiting = list(todo)
    running: list[Stage] = []
    failed: dict[Stage, Exception] = {}
    skipped: list[Stage] = []
    with stop_requests() as stop_requested, executor:
        while waiting or running:
            if stop_requested():
                raise Stopped
            for stage in list(waiting):
                if any(needed in failed or needed in skipped for needed in stage.inputs):
                    skipped.append(stage)
                    waiting.remove(stage)
                elif len(running) < executor.slots and all(map(finished, stage.inputs)):
                    executor.submit(stage)
                    running.append(stage)
                    waiting.remove(stage)
            for stage, error in executor.ended().items():
                running.remove(stage)
                if error:
                    failed[stage] = error
                    if waiting or running:
                        print(f"{stage.key} failed; stages that do not need it continue. {_text(error)}", flush=True)
            bar.set_postfix_str(executor.status())
    if failed:
        raise _failure(failed, skipped)


def _failure(failed: dict[Stage, Exception], skipped: Sequence[Stage]) -> Exception:
    """Return the error to raise after all other stages."""
    notes = [f"not run, because they need failed stages: {', '.join(stage.key for stage in skipped)}"] if skipped else []
    if len(failed) == 1:
        [(stage, error)] = failed.items()
        for note in (f"in {stage.key}", *notes):
            error.add_note(note)
        return error
    errors = [f"{stage.key}: {_text(error)}" for stage, error in failed.items()]
    return StageFailed("\n".join([f"{len(failed)} stages failed", *errors, *notes]))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


# ---------------------------------------------------------------- processes of this machine


def visible_devices() -> list[str]:
    """Return the GPUs of this process as values for CUDA_VISIBLE_DEVICES, without starting CUDA."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip() not in NO_DEVICE]
    return [str(index) for index in range(torch.cuda.device_count())]


@dataclass(eq=False)
class _Worker:
    """A process for one stage at a time, and the number of its stages so far."""

    variables: dict[str, str]
    pool: ProcessPoolExecutor
    stages: int = 0


class Processes:
    """Computes stages in `compute.jobs` processes of this machine, each of which sees one GPU if there are GPUs.

    The processes are spread evenly over the GPUs. With the executor `processes`, no two share one.
    """

    def __init__(self, complete: Complete, compute: Compute):
        devices = visible_devices()
        self.complete = complete
        self.compute = compute
        self.slots = min(compute.jobs, len(devices)) if devices and compute.executor == "processes" else compute.jobs
        self.variables = [{VISIBLE: devices[slot % len(devices)]} if devices else {} for slot in range(self.slots)]
        self.running: dict[Future, tuple[Stage, _Worker]] = {}

    def __enter__(self) -> Self:
        self.pools = ExitStack()
        self.workers = [_Worker(variables, self._pool(variables)) for variables in self.variables]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self.workers if error else ():  # all at once, so that trainings save at the same time
            for process in (worker.pool._processes or {}).values():
                process.terminate()
        self.pools.__exit__(kind, error, trace)

    def _pool(self, variables: dict[str, str]) -> ProcessPoolExecutor:
        return self.pools.enter_context(worker_pool(1, variables))

    def submit(self, stage: Stage) -> None:
        busy = [worker for _, worker in self.running.values()]
        worker = min((worker for worker in self.workers if worker not in busy), key=lambda worker: worker.stages)
        worker.stages += 1
        self.running[worker.pool.submit(self.complete, stage, self.compute)] = stage, worker

    def ended(self) -> dict[Stage, Exception | None]:
        ended: dict[Stage, Exception | None] = {}
        for future in wait(self.running, timeout=1.0, return_when=FIRST_COMPLETED).done:
            stage, worker = self.running.pop(future)
            error = future.exception()
            if not isinstance(error, Exception | None):  # Stopped: the process got a stop request
                raise error
            if isinstance(error, BrokenProcessPool):
                worker.pool = self._pool(worker.variables)
                error = ProcessLost(
                    f"the process working on {stage.key} was killed, perhaps because memory ran out. Start again to resume it; "
                    "lower compute.jobs if memory is short"
                )
            ended[stage] = error
        return ended

    def status(self) -> str:
        return ", ".join(stage.key for stage, _ in self.running.values())
