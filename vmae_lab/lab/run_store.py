"""The run store: one folder per stage, named by its key. It reuses finished stages and resumes interrupted ones."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list

from vmae_lab.lab.executors import Executor, Processes, run_stages
from vmae_lab.lab.launcher import launch
from vmae_lab.lab.report.provenance import provenance
from vmae_lab.lab.stages import Job, Stage
from vmae_lab.training.checkpoint import alone_in
from vmae_lab.training.metrics import latest_step
from vmae_lab.training.settings import Compute, ImpossibleHere
from vmae_lab.utils.atomic_io import make_folder, read_json, write_json, write_text
from vmae_lab.utils.precision import float32_products, uses_bf16
from vmae_lab.utils.processes import fixed_threads, launched, process_state, sendable
from vmae_lab.utils.progress import Progress

RESULT, SETTINGS = "result.json", "settings.yaml"


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
        """Return how much of a stage is done, from 0 to 1, according to its log."""
        if self.finished(stage):
            return 1.0
        return latest_step(self.folder(stage)) / stage.steps if stage.steps else 0.0

    def complete(self, stage: Stage, compute: Compute, progress: bool = True) -> dict[str, Any]:
        """Return the result of a stage. Runs the stage unless it is finished; its inputs must be finished.

        If another process is working on the stage, this waits for its result. All processes of a launcher call this together.
        Only the first of them writes, and it raises FolderInUse if another process is working on the stage.
        """
        with self._job(stage, compute, progress) as job:
            if job:
                job.result = stage.run(job)
        [result] = broadcast_object_list([self.result(stage) if process_state().is_main_process else None])
        return result

    def complete_all(self, stages: Iterable[Stage], compute: Compute) -> None:
        """Complete stages and their inputs with the executor of `compute`, with one progress bar.

        If a stage fails, stages in other processes that do not need it continue; see `run_stages` for what is raised. Finished
        stages are kept, and interrupted ones resume the next time.
        """
        order = in_order(stages)
        todo = [stage for stage in order if not self.finished(stage)]
        make_folder(self.root)
        with _StageBar(self, todo) as bar:
            if todo and not compute.in_this_process and not launched():
                run_stages(todo, self._executor(compute), self.finished, bar)
                return
            # Launched processes go through all stages together: each could find a different set of finished stages.
            for stage in order if launched() else todo:
                with Progress(desc=stage.key, disable=bool(bar.disable)), self._job(stage, compute) as job:
                    if job:
                        job.result = stage.run(job)

    @contextmanager
    def _job(self, stage: Stage, compute: Compute, progress: bool = True) -> Iterator[Job | None]:
        """Hold a stage's lock and yield its job, then write the job's result. Yields None if there is nothing to run here.

        This is so if the stage is finished when this process gets its lock, or if launched processes have run it.
        """
        folder = self.folder(stage)
        first = process_state().is_main_process
        lock = self.root / f".{stage.key}.lock"
        waiting = f"another process is working on {stage.key}; waiting for its result"
        if first:
            make_folder(folder)
        if compute.launch and stage.steps and not launched():
            with alone_in(folder, self.root / f".{stage.key}.launch.lock", waiting):
                with alone_in(folder, lock, waiting):  # wait for processes that a killed notebook has left
                    pass
                if not self.finished(stage):
                    launch(stage, folder, compute, progress)
            yield None
            return
        with alone_in(folder, lock, None if launched() else waiting) if first else nullcontext():
            [finished] = broadcast_object_list([self.finished(stage)])
            if finished:
                yield None
            else:
                if first:
                    settings = {"stage": stage.kind, **stage.settings}
                    write_text(folder / SETTINGS, yaml.safe_dump(settings, sort_keys=True))
                job = Job(folder, tuple(map(self.folder, stage.inputs)), compute, progress)
                started = time.perf_counter()
                with fixed_threads(compute.threads), float32_products(compute.tf32):
                    yield job
                if first:  # the result is written last
                    times = {"seconds": time.perf_counter() - started, "provenance": provenance()}
                    device = process_state().device
                    if uses_bf16(compute.evaluation_precision, device):
                        times["evaluation_precision"] = "bf16"
                    if device.type == "cuda":
                        times["tf32"] = compute.tf32
                    write_json(folder / RESULT, {"stage": stage.key, **job.result, **times})
                    stage.remove_checkpoints(folder)
            process_state().wait_for_everyone()  # the other processes read what the first one has written

    def _executor(self, compute: Compute) -> Executor:
        """Return the executor for stages that are not computed in this process. Raises ImpossibleHere."""
        complete = partial(_complete, self.root.absolute())
        if compute.executor != "slurm":
            return Processes(complete, compute)
        if not find_spec("submitit"):
            raise ImpossibleHere("compute.executor slurm needs submitit, which is not installed: pip install 'vmae-lab[slurm]'")
        from vmae_lab.lab.slurm import SlurmQueue

        return SlurmQueue(complete, compute, self.folder, self.finished)


def in_order(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages and all their inputs, inputs first, without duplicates."""
    return list(dict.fromkeys(each for stage in stages for each in (*in_order(stage.inputs), stage)))


def _complete(root: Path, stage: Stage, compute: Compute) -> None:
    """Complete a stage in a worker process."""
    try:
        RunStore(root).complete(stage, compute, progress=False)
    except Exception as error:
        raise sendable(error) from error.__cause__


class _StageBar(Progress):
    """Progress over many stages, weighted by their multiply-accumulates, or equally if none has any."""

    def __init__(self, store: RunStore, todo: list[Stage]):
        self.store = store
        self.todo = todo
        weights = [stage.macs for stage in todo]
        self.weights = weights if any(weights) else [1.0] * len(todo)
        super().__init__(
            total=sum(self.weights),
            smoothing=0,  # use the average rate so far: stages end in bursts, so a recent rate would jump
            disable=not process_state().is_main_process,
            bar_format="{desc} {percentage:3.0f}% |{bar:12}| {elapsed} so far, {remaining} to go{postfix}",
        )

    def measure(self) -> None:
        parts = [self.store.progress(stage) for stage in self.todo]
        self.desc = f"{sum(part == 1.0 for part in parts)}/{len(parts)} stages"
        self.n = sum(part * weight for part, weight in zip(parts, self.weights, strict=True))
