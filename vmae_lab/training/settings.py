"""Settings of every training: what decides its result (TrainSettings), and how it is computed (Compute)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.training.divergence import Divergence
from vmae_lab.training.optim import cosine_schedule
from vmae_lab.utils.errors import UserError


class ImpossibleHere(UserError, ValueError):
    """Valid settings that these processes or this installation cannot carry out. The message says what to change."""


class TrainSettings(BaseModel):
    """Length, rate and optimiser. All of it changes the result, so it is part of a stage's key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(..., ge=1)
    batch_size: int = Field(..., ge=1, description="clips per step, over all processes and accumulated micro-batches")
    lr: float = Field(..., gt=0)
    lr_reference_batch: int | None = Field(None, ge=1, description="lr is per this many clips; absolute if left out")
    min_lr: float = Field(1e-5, ge=0, description="the rate at the end of the cosine; absolute unless scale_min_lr")
    scale_min_lr: bool = Field(False, description="scale min_lr like lr, by lr_reference_batch, as the official scripts do")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulation: int = Field(1, ge=1, description="micro-batches per step")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per step of the weights' moving average, which is the result"
    )
    divergence: Divergence = Divergence()
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it, else fp32")

    def model_post_init(self, _context: object) -> None:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than steps {self.steps}")
        if self.scale_min_lr and not self.lr_reference_batch:
            raise ValueError("scale_min_lr scales min_lr by batch_size / lr_reference_batch: set lr_reference_batch")

    @property
    def peak_lr(self) -> float:
        """The linear scaling rule: `lr * batch_size / lr_reference_batch`."""
        return self._scaled(self.lr)

    @property
    def lowest_lr(self) -> float:
        """The rate at the end of the cosine; at most the peak."""
        return min(self._scaled(self.min_lr) if self.scale_min_lr else self.min_lr, self.peak_lr)

    def _scaled(self, rate: float) -> float:
        return rate * self.batch_size / self.lr_reference_batch if self.lr_reference_batch else rate

    @property
    def lr_words(self) -> str:
        """The peak rate and its rule, for a log. The paper sets 1.5e-4 (pre-training), 5e-4 to 1e-3 (fine-tuning) per 256."""
        if not self.lr_reference_batch:
            return f"peak learning rate {self.peak_lr:.3g}, set for this batch"
        scaled = f"{self.lr:.3g} x {self.batch_size} / {self.lr_reference_batch}"
        return f"peak learning rate {self.peak_lr:.3g} = {scaled} (linear scaling rule)"

    def lr_at(self, step: int) -> float:
        return cosine_schedule(step, self.steps, self.warmup_steps, 0.0, self.peak_lr, self.lowest_lr)


class Compute(BaseModel):
    """How the work is done; not part of any stage's key.

    Threads, `compile` and the number of processes change the last bits of results. Each process draws drop path and the pairs
    of mixup and cutmix for its own rows, so these depend on the number of processes. The rest changes nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    launch: str | None = Field(
        None, description="start trainings in several processes: an accelerate configuration of params/accelerate/, or a path"
    )
    jobs: int = Field(1, ge=1, description="stages at the same time; if above 1, each in its own process")
    threads: int | None = Field(None, ge=1, description="CPU threads per process; PyTorch's default if left out")
    workers: int = Field(0, ge=0, description="loader processes per stage")
    checkpoint_every: int = Field(200, ge=1, description="steps")
    log_every: int = Field(20, ge=1, description="steps; more often in a training of fewer than twenty times as many")
    tensorboard: bool = True
    trackers: tuple[Literal["trackio", "wandb"], ...] = Field((), description="other trackers of the log; install them first")
    checkpoint_activations: bool = Field(
        False, description="keep no activations inside a block, compute them again for backward: less memory, more time"
    )
    compile: bool = Field(False, description="compile the blocks (torch.compile): a slow first step, then faster ones")

    @property
    def processes(self) -> int:
        """Number of stage and loader processes; as many write and decode the embedded data."""
        return self.jobs * (1 + self.workers)

    def model_post_init(self, _context: object) -> None:
        if self.launch and self.jobs > 1:
            raise ValueError(f"jobs {self.jobs} side by side with launch {self.launch}, which uses all devices: set jobs 1")
