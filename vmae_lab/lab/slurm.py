"""Stages as Slurm jobs, through submitit: one job per stage. Its files and its log are in `slurm/` in the stage's folder."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import submitit

from vmae_lab.lab.executors import Complete, StageFailed
from vmae_lab.lab.launcher import process_count
from vmae_lab.lab.stages import Stage
from vmae_lab.training.preemption import Stopped
from vmae_lab.training.settings import Compute, ImpossibleHere

CLUSTER = "slurm"  # submitit's name; tests use its `local`
FILES = "slurm"  # folder in a stage's folder
POLL_S = 5.0  # seconds between two calls of squeue
GRACE_S = 15.0  # seconds from the end of a job until its result must be visible on a shared file system
RESUMES = 100  # how often a training may reach its time limit
TAIL = 20  # lines of a failed job's log that are shown


class StageJob(submitit.helpers.Checkpointable):
    """What a Slurm job calls: completes a stage. Checkpointable: submitit may queue the job again.

    Slurm sends SIGUSR2 some time before the time limit: a training saves a checkpoint, and the job is queued again. SIGTERM
    comes from `scancel`, or when Slurm preempts or requeues the job: a training saves, and Slurm decides what follows.
    """

    def __init__(self, complete: Complete, stage: Stage, compute: Compute):
        self.complete = complete
        self.stage = stage
        self.compute = compute

    def __call__(self) -> None:
        # submitit's handlers. The first queues the job again and ends this process, the second only writes to the log.
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        ignore: Any = signal.getsignal(signal.SIGTERM)
        time_is_up = False

        def handle_time_limit(_number: int, _frame: FrameType | None) -> None:
            nonlocal time_is_up
            time_is_up = True
            signal.raise_signal(signal.SIGTERM)  # in a training, a stop request: it saves and raises Stopped

        def handle_term(number: int, frame: FrameType | None) -> None:
            """Handle SIGTERM outside a training, or passed on by a training that was in its last step."""
            if time_is_up:
                requeue(signal.SIGUSR2, frame)
            else:
                ignore(number, frame)

        signal.signal(signal.SIGUSR2, handle_time_limit)
        signal.signal(signal.SIGTERM, handle_term)
        try:
            self.complete(self.stage, self.compute)
        except Stopped:
            if time_is_up:
                requeue(signal.SIGUSR2, None)
            raise


class SlurmQueue:
    """Submits stages as Slurm jobs, at most `compute.jobs` at a time, and waits for their results.

    Jobs do not need this process. A later process finds the jobs of its stages that are still in Slurm's queue. `folder` and
    `finished` are those of the run store.
    """

    def __init__(
        self, complete: Complete, compute: Compute, folder: Callable[[Stage], Path], finished: Callable[[Stage], bool]
    ):
        self.complete = complete
        self.compute = compute
        self.folder = folder
        self.finished = finished
        self.slots = compute.jobs
        self.jobs: dict[Stage, str] = {}  # submitted stages and the ids of their jobs
        self.missing_since: dict[str, float] = {}  # id -> when the job was first seen to have left the queue

    def __enter__(self) -> Self:
        queue = queued_jobs()
        if queue is None:
            raise ImpossibleHere(
                "compute.executor slurm: squeue fails or is missing. Run on a machine from which Slurm jobs can be submitted"
            )
        self.queue = queue
        self.polled = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.jobs:
            ids = " ".join(self.jobs.values())
            print(f"Slurm jobs continue: {ids}. Run this again to wait for them, or end them with scancel", flush=True)

    def submit(self, stage: Stage) -> None:
        """Submit the job of a stage, unless its job from an earlier process is still in the queue. Raises ImpossibleHere."""
        earlier = [path.name.split("_")[0] for path in (self.folder(stage) / FILES).glob("*_submitted.pkl")]
        self.jobs[stage] = next((job for job in earlier if job in self.queue), None) or self._submit(stage)

    def _submit(self, stage: Stage) -> str:
        compute = self.compute
        settings = compute.slurm
        processes = process_count(compute.launch) if stage.steps else 1
        executor = submitit.AutoExecutor(
            self.folder(stage) / FILES, CLUSTER, slurm_max_num_timeout=RESUMES if stage.steps else 0,
            slurm_python=f"exec {shlex.quote(sys.executable)}",  # replaces the shell, which alone gets the signal "B:"
        )  # fmt: skip
        # Time to save before the limit: at most 5 minutes.
        notice_s = min(300, 15 * settings.minutes)
        executor.update_parameters(
            name=stage.key, timeout_min=settings.minutes, mem_gb=settings.memory_gb, stderr_to_stdout=True,
            gpus_per_node=processes * settings.gpus or None,
            cpus_per_task=processes * (settings.cpus or (compute.threads or 1) + compute.workers),
            slurm_partition=settings.partition, slurm_use_srun=False,
            # Without "B:", all processes of the job would get the signal, and it would end those of the loader.
            slurm_additional_parameters={"requeue": True, **settings.options, "signal": f"B:USR2@{notice_s}"},
        )  # fmt: skip
        try:
            with submitit.helpers.clean_env():  # this process may be in a Slurm job itself
                job = executor.submit(StageJob(self.complete, stage, compute))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            hint = ". For a cluster without GPUs: -p compute.slurm.gpus 0" if "Invalid generic resource" in str(error) else ""
            raise ImpossibleHere(
                f"Slurm refuses the job of {stage.key}: {error}. Change compute.slurm or compute.jobs{hint}"
            ) from error
        self.queue[job.job_id] = "PENDING"
        return job.job_id

    def ended(self) -> dict[Stage, Exception | None]:
        time.sleep(1)
        now = time.monotonic()
        if now - self.polled >= POLL_S:
            self.polled = now
            queue = queued_jobs()
            if queue is not None:
                self.queue = queue
        ended: dict[Stage, Exception | None] = {}
        for stage, job in self.jobs.items():
            if self.finished(stage):
                ended[stage] = None
            elif job in self.queue:
                self.missing_since.pop(job, None)
            elif now - self.missing_since.setdefault(job, now) >= GRACE_S:
                os.listdir(self.folder(stage))  # makes NFS forget what it has cached about this folder
                ended[stage] = None if self.finished(stage) else self._failure(stage, job)
        for stage in ended:
            del self.jobs[stage]
        return ended

    def _failure(self, stage: Stage, job: str) -> StageFailed:
        log = self.folder(stage) / FILES / f"{job}_0_log.out"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ["(there is no log)"]
        return StageFailed("\n".join([f"Slurm job {job} ended without a result. The end of its log {log}:", *lines[-TAIL:]]))

    def status(self) -> str:
        running = sum(self.queue.get(job) == "RUNNING" for job in self.jobs.values())
        return f"Slurm jobs: {running} running, {len(self.jobs) - running} waiting"


def queued_jobs() -> dict[str, str] | None:
    """Return the states of this user's jobs in Slurm's queue by id; None if Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--format=%i %T"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in output.splitlines() if line.strip())
