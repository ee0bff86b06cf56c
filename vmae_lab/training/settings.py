"""Settings of every run: those that determine its result (TrainSettings), and how it is computed (Compute)."""

from typing import Literal

from pydantic import Field

from vmae_lab.training.divergence import Divergence
from vmae_lab.training.optim import cosine_schedule
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.precision import Precision
from vmae_lab.utils.settings import Settings


class ImpossibleHere(UserError, ValueError):
    """The settings are valid, but cannot be used with these processes or this installation. The message says what to change."""


class TrainSettings(Settings):
    """Length, learning rate and optimizer. They change the result, so they are part of a stage's key."""

    steps: int = Field(..., ge=1)
    batch_size: int = Field(..., ge=1, description="clips per step, over all processes and accumulated micro-batches")
    lr: float = Field(..., gt=0)
    lr_reference_batch: int | None = Field(None, ge=1, description="lr is for this many clips per step; absolute if left out")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine; absolute unless scale_min_lr")
    scale_min_lr: bool = Field(False, description="scale min_lr like lr by lr_reference_batch, as the official scripts")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = Field(None, gt=0, description="maximum norm of the gradient")
    accumulation: int = Field(1, ge=1, description="micro-batches per step")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per step of the weights' moving average, which then is the result"
    )
    divergence: Divergence = Divergence()
    precision: Precision = Field("auto", description="auto: bf16 on GPUs that support it, else fp32")

    def model_post_init(self, _context: object) -> None:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than steps {self.steps}")
        if self.scale_min_lr and not self.lr_reference_batch:
            raise ValueError("scale_min_lr needs lr_reference_batch: it scales min_lr by batch_size / lr_reference_batch")

    @property
    def peak_lr(self) -> float:
        """The peak learning rate, by the linear scaling rule: `lr * batch_size / lr_reference_batch`."""
        return self._scaled(self.lr)

    @property
    def lowest_lr(self) -> float:
        """The learning rate at the end of the cosine, at most the peak."""
        return min(self._scaled(self.min_lr) if self.scale_min_lr else self.min_lr, self.peak_lr)

    def _scaled(self, rate: float) -> float:
        return rate * self.batch_size / self.lr_reference_batch if self.lr_reference_batch else rate

    @property
    def lr_words(self) -> str:
        """The peak learning rate and its rule, for logs.

        The paper uses 1.5e-4 (pre-training) and 5e-4 to 1e-3 (fine-tuning) for a batch of 256.
        """
        if not self.lr_reference_batch:
            return f"peak learning rate {self.peak_lr:.3g} (absolute)"
        scaled = f"{self.lr:.3g} x {self.batch_size} / {self.lr_reference_batch}"
        return f"peak learning rate {self.peak_lr:.3g} = {scaled} (linear scaling rule)"

    def lr_at(self, step: int) -> float:
        return cosine_schedule(step, self.steps, self.warmup_steps, 0.0, self.peak_lr, self.lowest_lr)


class SlurmSettings(Settings):
    """What a Slurm job of one stage requests. It runs on one machine."""

    minutes: int = Field(
        60, ge=1, description="time limit. A training that reaches it saves, is queued again and resumes; other stages fail"
    )
    gpus: int = Field(1, ge=0, description="GPUs; with compute.launch, a training requests this many for each of its processes")
    cpus: int | None = Field(None, ge=1, description="CPUs; if left out, threads + workers, for each process of a training")
    memory_gb: float | None = Field(None, gt=0, description="memory; if left out, the cluster's default")
    partition: str | None = Field(None, description="if left out, the cluster's default")
    options: dict[str, str | int | bool] = Field(
        {}, description="other options of sbatch by their long names, such as {account: vision, qos: high}"
    )


class Compute(Settings):
    """How a stage is computed. Not part of any stage's key.

    Threads, `compile` and the number of processes change rounding. Drop path and the pairs of mixup and cutmix also depend on
    the number of processes, since each process draws them for its own rows. On GPUs, `evaluation_precision` and `tf32` change
    rounding. The other settings do not change results.
    """

    launch: str | None = Field(
        None, description="train in several processes: name of an accelerate configuration in params/accelerate/, or a path"
    )
    executor: Literal["auto", "local", "processes", "slurm"] = Field(
        "auto",
        description="where stages are computed. local: in this process. processes: in processes, each with its own GPU if "
        "there are GPUs. slurm: as Slurm jobs. auto: local if jobs is 1, else in processes that share the GPUs evenly",
    )
    jobs: int = Field(
        1, ge=1, description="stages computed at the same time; if above 1, each in its own process. slurm: jobs in its queue"
    )
    slurm: SlurmSettings = SlurmSettings()
    threads: int | None = Field(None, ge=1, description="CPU threads per process; if left out, PyTorch's default")
    workers: int = Field(0, ge=0, description="loader workers per stage")
    prefetch_mib: int = Field(
        1024, ge=1, description="MiB of shared memory for what the loader workers of a training process build ahead"
    )
    checkpoint_every: int = Field(200, ge=1, description="steps")
    log_every: int = Field(20, ge=1, description="steps; short runs log at least 20 times")
    tensorboard: bool = True
    trackers: tuple[Literal["trackio", "wandb"], ...] = Field((), description="other trackers; install their packages")
    checkpoint_activations: bool = Field(
        False, description="recompute activations inside blocks in backward: less memory, more time"
    )
    evaluation_precision: Precision = Field(
        "auto", description="precision of forward passes in evaluation. auto: bf16 on GPUs that support it, else fp32"
    )
    tf32: bool = Field(
        True,
        description="on GPUs, round the inputs of float32 products to TF32 (10 bits), as PyTorch does in convolutions",
    )
    compile: bool = Field(False, description="compile the blocks (torch.compile): the first step is slow, the others faster")

    @property
    def processes(self) -> int:
        """Number of stage processes and loader workers here. As many processes write and decode the embedded data."""
        return (1 if self.executor == "slurm" else self.jobs) * (1 + self.workers)

    @property
    def in_this_process(self) -> bool:
        """Whether the process that runs a plan also computes its stages."""
        return self.executor == "local" or (self.executor == "auto" and self.jobs == 1)

    @property
    def own_devices(self) -> bool:
        """Whether each stage that is computed has its own device."""
        return self.executor in ("processes", "slurm")

    def model_post_init(self, _context: object) -> None:
        if self.executor == "local" and self.jobs > 1:
            raise ValueError(f"jobs {self.jobs} with executor local, which computes one stage at a time: set jobs 1")
        if self.launch and self.executor == "processes":
            raise ValueError(
                f"executor processes with launch {self.launch}, which uses all devices for one stage: set one of them"
            )
        if self.launch and self.jobs > 1 and self.executor != "slurm":
            raise ValueError(f"jobs {self.jobs} with launch {self.launch}, which uses all devices for one stage: set jobs 1")
