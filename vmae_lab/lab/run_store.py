"""The run store: one folder per stage, named by its key. It reuses finished stages, resumes killed ones, waits for others."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from vmae_lab.lab.launcher import launch
from vmae_lab.lab.report.provenance import provenance
from vmae_lab.lab.stages import Job, Stage
from vmae_lab.training.checkpoint import Checkpoints, FolderInUse
from vmae_lab.training.metrics import latest_step
from vmae_lab.training.preemption import Stopped, stop_requests
from vmae_lab.training.settings import Compute
from vmae_lab.utils.atomic_io import make_folder, read_json, write_json, write_text
from vmae_lab.utils.processes import ProcessLost, fixed_threads, launched, process_state, sendable, worker_pool
from vmae_lab.utils.progress import Progress

RESULT = "result.json"


class RunStore:
    """Folders `<root>/<stage key>/`. A stage is finished when its folder has `result.json`, which is written last."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, stage: Stage) -> Path:
        return self.root / stage.key

    def finished(self, stage: Stage) -> bool:
        return (self.folder(stage) / RESULT).exists()

    def result(self, stage: Stage) -> dict[str, Any]:
        return read_json(self.folder(stage) / RESULT)

    def progress(self, stage: Stage) -> float:
        """How much of a stage is done, from 0 to 1, by its log."""
        if self.finished(stage):
            return 1.0
        return latest_step(self.folder(stage)) / stage.steps if stage.steps else 0.0

    def complete(self, stage: Stage, compute: Compute, progress: bool = True) -> dict[str, Any]:
        """The stage's result: at once if it is finished, else after running it. Its inputs must be finished.

        While another process works on the same stage, this waits and then returns that result. The processes of a launcher
        all call this together; the first of them writes, and raises FolderInUse instead of waiting for another's lock.
        """
        with self._claim(stage, compute, progress) as job:
            if job:
                self._finish(stage, job, stage.run(job))
        first = process_state().is_main_process
        [result] = broadcast_object_list([self.result(stage) if first else None])
        return result

    def complete_all(self, stages: Iterable[Stage], compute: Compute) -> None:
        """Complete stages and their inputs, `compute.jobs` at a time, under one progress bar.

        A stage that fails stops the rest: finished stages stay, and running ones resume the next time.
        """
        order = in_order(stages)
        todo = [stage for stage in order if not self.finished(stage)]
        make_folder(self.root)
        with _StageBar(self, todo) as bar:
            if todo and compute.jobs > 1 and not launched():
                self._in_processes(todo, compute, bar)
                return
            # Launched processes go through all stages together, since each might find others finished on the disk.
            for stage in order if launched() else todo:
                with Progress(desc=stage.key, disable=bool(bar.disable)), self._claim(stage, compute) as job:
                    if job:
                        self._finish(stage, job, stage.run(job))

    @contextmanager
    def _claim(self, stage: Stage, compute: Compute, progress: bool = True) -> Iterator[Job | None]:
        """Hold the stage's lock. Gives what to run it with, or None if it is finished or was run by other processes."""
        folder, first = self.folder(stage), process_state().is_main_process
        if first:
            make_folder(folder)
        if compute.launch and stage.steps and not launched():
            with self._lock(stage, ".launch"):
                with self._lock(stage):  # until processes are done that a killed notebook has left
                    pass
                if not self.finished(stage):
                    launch(stage, folder, compute, progress)
            yield None
            return
        with self._lock(stage, wait=not launched()) if first else nullcontext():
            [finished] = broadcast_object_list([self.finished(stage)])
            if not finished and first:
                write_text(folder / "settings.yaml", yaml.safe_dump({"stage": stage.kind, **stage.settings}, sort_keys=True))
            with fixed_threads(compute.threads):
                inputs = tuple(self.folder(source) for source in stage.inputs)
                yield None if finished else Job(folder, inputs, compute, progress)
            process_state().wait_for_everyone()  # the others read what the first one has written

    def _finish(self, stage: Stage, job: Job, result: Mapping[str, Any]) -> None:
        """Write the result, last of all, and drop what only an unfinished run needs: the first process does."""
        if not process_state().is_main_process:
            return
        seconds = time.perf_counter() - job.started
        write_json(job.folder / RESULT, {"stage": stage.key, **result, "seconds": seconds, "provenance": provenance()})
        for name in ("checkpoint", "turning_point"):
            Checkpoints(job.folder, name).drop()
        for probe in job.folder.glob("attentive-*"):
            shutil.rmtree(probe)

    def _in_processes(self, todo: list[Stage], compute: Compute, bar: "_StageBar") -> None:
        waiting, running = list(todo), dict[Future, Stage]()
        with stop_requests() as stop_requested, worker_pool(compute.jobs) as pool:
            while waiting or running:
                if stop_requested():
                    raise Stopped
                ready = [s for s in waiting if all(self.finished(source) for source in s.inputs)]
                for stage in ready[: compute.jobs - len(running)]:
                    running[pool.submit(_complete, self.root, stage, compute)] = stage
                    waiting.remove(stage)
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    _raise_with_name(future, running.pop(future))
                bar.set_postfix_str(", ".join(stage.key for stage in running.values()))

    @contextmanager
    def _lock(self, stage: Stage, what: str = "", wait: bool = True) -> Iterator[None]:
        """Hold the stage's lock, which is released when its holder dies. Raises FolderInUse if it is taken and not `wait`."""
        lock = FileLock(self.root / f".{stage.key}{what}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise FolderInUse(
                    f"another process is working on {self.folder(stage)}: start again when it has finished"
                ) from None
            print(f"another process is working on {stage.key}; waiting for its result", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """The stages and all their inputs, each once, inputs first."""
    ordered: dict[str, Stage] = {}
    for stage in stages:
        for one in (*in_order(stage.inputs), stage):
            ordered.setdefault(one.key, one)
    return list(ordered.values())


def _complete(root: Path, stage: Stage, compute: Compute) -> None:
    try:
        RunStore(root).complete(stage, compute, progress=False)
    except Exception as error:
        raise sendable(error) from error.__cause__


def _raise_with_name(future: Future, stage: Stage) -> None:
    """Raise a stage's own error with the stage's name; for a worker that was killed, ProcessLost."""
    try:
        future.result()
    except BrokenProcessPool as error:
        raise ProcessLost(
            f"the process working on {stage.key} was killed, perhaps for lack of memory; start again to go on where it "
            "stopped, with a smaller compute.jobs if memory is short"
        ) from error
    except Exception as error:
        error.add_note(f"in {stage.key}")
        raise


class _StageBar(Progress):
    """Progress over many stages, weighted by their multiply-accumulates, or equally if none has any."""

    def __init__(self, store: RunStore, todo: list[Stage]):
        self.store, self.todo, self.weights = store, todo, [stage.macs for stage in todo]
        if not any(self.weights):
            self.weights = [1.0] * len(todo)
        super().__init__(
            total=sum(self.weights),
            smoothing=0,  # the average so far: stages end in bursts, so a recent rate would jump
            disable=not process_state().is_main_process,
            bar_format="{desc} {percentage:3.0f}% |{bar:12}| {elapsed} so far, {remaining} to go{postfix}",
        )

    def measure(self) -> None:
        parts = [self.store.progress(stage) for stage in self.todo]
        self.desc = f"{sum(part == 1.0 for part in parts)}/{len(parts)} stages"
        self.n = sum(part * weight for part, weight in zip(parts, self.weights, strict=True))
