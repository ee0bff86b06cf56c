"""Stage `measure`: seconds and memory of a pre-training step on this device, and the memory predicted for it."""

import os
import resource
import statistics
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.report.provenance import provenance
from vmae_lab.lab.stages.cost import Work, parameter_count, step_macs, token_counts
from vmae_lab.lab.stages.stage import Job, Stage, build
from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.flops import saved_bytes, state_bytes
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.distributed import accelerator_for
from vmae_lab.training.loop import Trainer
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.precision import bf16_is_native
from vmae_lab.utils.processes import worker_pool
from vmae_lab.utils.seeding import seeded, torch_generator

MARGIN = 0.9  # largest part of the device's memory to use; with more, the machine could start to swap
GIB = 2**30
CONTEXTS_GIB = 2.0  # of this process and of its parent on a GPU, at most


class MemoryTaken(UserError, RuntimeError):
    """Memory ran out, perhaps because of other processes. So this says nothing about the step, and no result is stored."""

    exit_status = 1


class MeasureStage(Stage):
    """Seconds and memory of a pre-training step on this device."""

    kind = "measure"

    model: ModelSettings
    mask: MaskSettings
    batch_size: int
    timed_steps: int = Field(alias="steps")
    device: str

    def run(self, job: Job) -> dict[str, Any]:
        # It runs alone, in its own process on all cores: `compute.threads` does not apply to it.
        measured = measure_step(self.model, self.mask, self.batch_size, self.timed_steps)
        return {"fits": measured.pop("fits"), "metrics": measured}

    @property
    def work(self) -> Work:
        return Work(training=(self.timed_steps + 1) * step_macs(self.model, self.mask, self.batch_size))


def measure_stage(recipe: Recipe, batch_size: int) -> Stage:
    """Build a stage that measures a pre-training step of a model of `recipe.measure.size` on this device."""
    model, steps = recipe.measure.model_of(recipe.measure.size), recipe.measure.steps
    return build(MeasureStage, recipe, model=model, batch_size=batch_size, steps=steps, device=provenance()["device"])


def predicted_bytes(model: ModelSettings, masks: MaskSettings, batch_size: int, half: bool) -> int:
    """Return the peak memory of training: weights, AdamW's moments, and the larger of gradients and saved activations.

    The two do not add up, because the backward pass frees activations while it computes gradients.
    """
    counts, parameters = token_counts(masks, model.clip), parameter_count(model)
    kept = batch_size * saved_bytes(model.dimensions, model.clip, counts.visible, counts.decoded, half)
    return state_bytes(parameters, half) - 4 * parameters + max(4 * parameters, kept)


def largest_batch(model: ModelSettings, masks: MaskSettings, memory_bytes: float, half: bool) -> int:
    """Return how many clips per step fit into a memory according to `predicted_bytes`; 0 if the model alone does not fit."""
    counts, parameters = token_counts(masks, model.clip), parameter_count(model)
    if memory_bytes < state_bytes(parameters, half):
        return 0
    free = memory_bytes - state_bytes(parameters, half) + 4 * parameters
    return int(free // saved_bytes(model.dimensions, model.clip, counts.visible, counts.decoded, half))


def device_memory() -> int:
    """Return the memory in bytes of the GPU, or of the machine if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_step(model: ModelSettings, masks: MaskSettings, batch_size: int, steps: int) -> dict[str, Any]:
    """Measure seconds per step (median) and peak memory in GiB, in a separate process; only `fits: False` if it is short.

    A step draws masks and does what a training step does (forward, target, loss, backward, AdamW), on random pixels that are
    already on the device. It uses bf16 on a GPU that supports it.

    `fits: False` is a fact of the step and the device: the predicted memory is larger than the device's, or the step ran out
    of memory on a GPU that no other process used. Raises MemoryTaken if memory ran out otherwise.
    """
    half = bf16_is_native()
    if predicted_bytes(model, masks, batch_size, half) > MARGIN * device_memory():
        return {"fits": False}
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # of this process, for the one that measures
    with worker_pool(1) as pool:
        try:
            measured = pool.submit(_measure, model, masks, batch_size, steps).result()
        except BrokenProcessPool:  # the operating system killed it, because memory ran out
            raise MemoryTaken(
                f"the process that measured {counted(batch_size, 'clip')} per step of {model.size} was killed, perhaps "
                "because other processes use much memory. End them and start again, or lower measure.batch_sizes"
            ) from None
    taken = measured.pop("taken_gib", 0.0)
    if taken > max(CONTEXTS_GIB, (1 - MARGIN) * device_memory() / GIB):
        raise MemoryTaken(
            f"{counted(batch_size, 'clip')} per step of {model.size} did not fit into the memory of the GPU, of which other "
            f"processes use {taken:.1f} GiB. End them (nvidia-smi lists them) and start again, or lower measure.batch_sizes"
        )
    return measured


class RandomPixels(PretrainTask):
    """Pre-training on one batch of random pixels, which stays on the device."""

    def __init__(self, model: ModelSettings, masks: MaskSettings, settings: PretrainSettings, device: torch.device):
        self.model, self.masks, self.settings, self.seed = model, masks, settings, 0
        shape = (settings.batch_size, model.clip.channels, model.clip.frames, model.clip.height, model.clip.width)
        generator = torch_generator(self.seed, "random pixels")
        self.video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)

    def training_batch(self, step: int, rows: range) -> Batch:
        generators = (torch_generator(step, f"{side} mask") for side in ("encoder", "decoder"))
        encoder_mask, decoder_mask = draw_masks(self.masks, self.model.clip.grid, len(rows), *generators)
        visible, decoded = visible_index(encoder_mask), visible_index(decoder_mask)
        counted = loss_positions(encoder_mask, decoded, self.masks.loss_on)
        return {"video": self.video, "visible": visible, "decoded": decoded, "counted": counted}


def _measure(model: ModelSettings, masks: MaskSettings, batch_size: int, steps: int) -> dict[str, Any]:
    settings = PretrainSettings(steps=steps + 1, batch_size=batch_size, lr=1e-4)
    accelerator = accelerator_for(settings)
    on_gpu, seconds = accelerator.device.type == "cuda", list[float]()
    before = 0.0 if on_gpu else resident_gib()
    try:
        task = RandomPixels(model, masks, settings, accelerator.device)
        with seeded(task.seed, "initial weights"):
            trainer = Trainer(task, Path(), Compute(), accelerator, keep=())
        for step in range(steps + 1):
            started = time.perf_counter()
            trainer.train_step(task.training_batch(step, trainer.rows))
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            trainer.state.step += 1
    except torch.OutOfMemoryError:
        return {"fits": False, "taken_gib": taken_gib()}
    peak = torch.cuda.max_memory_allocated() / GIB if on_gpu else resident_gib() - before
    return {"fits": True, "seconds_per_step": statistics.median(seconds[1:]), "peak_gib": peak}


def taken_gib() -> float:
    """Return the memory of the GPU that other processes use, and CUDA's own memory for this process."""
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / GIB


def resident_gib() -> float:
    """Return the peak memory of this process so far.

    On Linux this reads `/proc`, because `ru_maxrss` includes the memory of the parent at the start of the process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB
