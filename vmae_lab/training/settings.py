"""What a training is decided by, and how the work is carried out."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.training.divergence import Divergence
from vmae_lab.training.optim import cosine_schedule
from vmae_lab.utils.errors import UserError


class ImpossibleHere(UserError, ValueError):
    """Settings that are sound, and cannot be carried out by these processes or in this installation: says what to change."""


class TrainSettings(BaseModel):
    """How long, how fast and with which optimiser. All of it changes the result, so all of it names the stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(..., ge=1)
    batch_size: int = Field(..., ge=1, description="clips a step, over all processes and accumulated micro-batches")
    lr: float = Field(..., gt=0)
    lr_reference_batch: int | None = Field(None, ge=1, description="lr is per so many clips; absolute where left out")
    min_lr: float = Field(1e-5, ge=0, description="where the cosine ends; absolute unless scale_min_lr")
    scale_min_lr: bool = Field(False, description="scale min_lr as lr, by lr_reference_batch; the official scripts do")
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulation: int = Field(1, ge=1, description="micro-batches a step")
    ema: float | None = Field(None, gt=0, lt=1, description="decay a step of the weights' moving average, which is the result")
    divergence: Divergence = Divergence()
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it, else fp32")

    def model_post_init(self, _context: object) -> None:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves nothing of the {self.steps} steps")
        if self.scale_min_lr and not self.lr_reference_batch:
            raise ValueError("scale_min_lr scales min_lr by batch_size / lr_reference_batch: give lr_reference_batch")

    @property
    def peak_lr(self) -> float:
        """The linear scaling rule: `lr * batch / reference`."""
        return self._scaled(self.lr)

    @property
    def lowest_lr(self) -> float:
        """Where the cosine ends: `min_lr`, scaled as `lr` if `scale_min_lr`; at most the peak."""
        return min(self._scaled(self.min_lr) if self.scale_min_lr else self.min_lr, self.peak_lr)

    def _scaled(self, rate: float) -> float:
        return rate * self.batch_size / self.lr_reference_batch if self.lr_reference_batch else rate

    @property
    def lr_words(self) -> str:
        """The rule, for a log: paper, section 4 and appendix (pre-training 1.5e-4, fine-tuning 5e-4 to 1e-3, per 256 clips)."""
        if not self.lr_reference_batch:
            return f"peak learning rate {self.peak_lr:.3g}, set for this batch"
        scaled = f"{self.lr:.3g} x {self.batch_size} / {self.lr_reference_batch}"
        return f"peak learning rate {self.peak_lr:.3g} = {scaled} (linear scaling rule)"

    def lr_at(self, step: int) -> float:
        return cosine_schedule(step, self.steps, self.warmup_steps, 0.0, self.peak_lr, self.lowest_lr)


class Compute(BaseModel):
    """How the work is carried out: none of it names a stage.

    Threads, `compile` and the number of processes move results in the last bits. Each process draws drop path and the pairs of
    mixup and cutmix for its own rows, so these change with how many there are. The rest moves nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    launch: str | None = Field(
        None, description="start trainings in several processes: an accelerate configuration of params/accelerate/, or a path"
    )
    jobs: int = Field(1, ge=1, description="stages run side by side, each in a process of its own where above 1")
    threads: int | None = Field(None, ge=1, description="CPU threads a process; PyTorch's choice where left out")
    workers: int = Field(0, ge=0, description="loader processes a stage")
    checkpoint_every: int = Field(200, ge=1, description="steps")
    log_every: int = Field(20, ge=1, description="steps; oftener in a training of fewer than twenty times as many")
    tensorboard: bool = True
    trackers: tuple[Literal["trackio", "wandb"], ...] = Field((), description="where else the log goes; to be installed first")
    checkpoint_activations: bool = Field(
        False, description="keep no activations inside a block, but compute them again for backward: less memory, more time"
    )
    compile: bool = Field(False, description="compile the blocks (torch.compile): a slow first step, then faster ones")

    @property
    def processes(self) -> int:
        """Processes that stages and their loaders make up; the embedded data is written and decoded by as many."""
        return self.jobs * (1 + self.workers)

    def model_post_init(self, _context: object) -> None:
        if self.launch and self.jobs > 1:
            raise ValueError(
                f"jobs {self.jobs} side by side with launch {self.launch}, which takes all devices for one: set jobs 1"
            )
