"""Seconds and memory of one pre-training step on this device, next to what was counted for it."""

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
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.distributed import bf16_is_native
from vmae_lab.training.optim import parameter_groups
from vmae_lab.utils.processes import worker_pool
from vmae_lab.utils.seeding import seeded, torch_generator

MARGIN = 0.9  # part of the device's memory that is tried; more could make the machine swap
GIB = 2**30


class MeasureStage(Stage):
    """Seconds and memory of a pre-training step on this device."""

    kind = "measure"

    model: ModelSettings
    mask: MaskSettings
    batch_size: int
    timed_steps: int = Field(alias="steps")
    device: str

    def run(self, job: Job) -> dict[str, Any]:
        # On all cores, whatever the other stages use: it runs alone, and this process's number of threads is not its own.
        measured = measure_step(self.model, self.mask, self.batch_size, self.timed_steps)
        return {"fits": measured.pop("fits"), "metrics": measured}

    @property
    def work(self) -> Work:
        return Work(training=(self.timed_steps + 1) * step_macs(self.model, self.mask, self.batch_size))


def measure_stage(recipe: Recipe, batch_size: int) -> Stage:
    """Seconds and memory of a pre-training step on this device, at `recipe.measure.size`."""
    model, steps = recipe.measure.model_of(recipe.measure.size), recipe.measure.steps
    return build(MeasureStage, recipe, model=model, batch_size=batch_size, steps=steps, device=provenance()["device"])


def predicted_bytes(model: ModelSettings, masks: MaskSettings, batch_size: int, half: bool) -> int:
    """Peak memory of training: weights, AdamW's moments, and the larger of gradients and saved activations.

    Backward frees activations while it makes gradients, so the two do not add up.
    """
    counts, parameters = token_counts(masks, model.clip), parameter_count(model)
    kept = batch_size * saved_bytes(model.dimensions, model.clip, counts.visible, counts.decoded, half)
    return state_bytes(parameters, half) - 4 * parameters + max(4 * parameters, kept)


def largest_batch(model: ModelSettings, masks: MaskSettings, memory_bytes: float, half: bool) -> int:
    """Clips per step that fit into a memory, by the same prediction; 0 if the model itself does not fit."""
    counts, parameters = token_counts(masks, model.clip), parameter_count(model)
    if memory_bytes < state_bytes(parameters, half):
        return 0
    free = memory_bytes - state_bytes(parameters, half) + 4 * parameters
    return int(free // saved_bytes(model.dimensions, model.clip, counts.visible, counts.decoded, half))


def device_memory() -> int:
    """Bytes of the device that trains: the GPU's memory, else the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_step(model: ModelSettings, masks: MaskSettings, batch_size: int, steps: int) -> dict[str, Any]:
    """Seconds per step (median) and peak memory in GiB, in a process of its own; only `fits: False` if memory is short.

    A step is forward, target, loss, backward and AdamW on random pixels; no data loading. bf16 on a GPU that has it.
    """
    half = bf16_is_native()
    if predicted_bytes(model, masks, batch_size, half) > MARGIN * device_memory():
        return {"fits": False}
    with worker_pool(1) as pool:
        try:
            return pool.submit(_measure, model, masks, batch_size, steps).result()
        except BrokenProcessPool:  # the system ended it for lack of memory
            return {"fits": False}


def _measure(model: ModelSettings, masks: MaskSettings, batch_size: int, steps: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before, seconds, clip = 0.0 if device.type == "cuda" else resident_gib(), [], model.clip
    try:
        with seeded(0, "initial weights"):
            network = VideoMAE(model.dimensions, clip).to(device)
        optimizer = torch.optim.AdamW(parameter_groups(network, 0.05), lr=1e-4, fused=True)
        shape = (batch_size, clip.channels, clip.frames, clip.side, clip.side)
        pixels = torch_generator(0, "random pixels")
        video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=pixels).to(device)
        for index in range(steps + 1):
            started = time.perf_counter()
            generators = (torch_generator(index, f"{side} mask") for side in ("encoder", "decoder"))
            encoder_mask, decoder_mask = draw_masks(masks, clip.grid, batch_size, *generators)
            counted = loss_positions(encoder_mask, visible_index(decoder_mask), masks.loss_on).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_native()):
                prediction, decoded = network(video, encoder_mask, decoder_mask)
            network.forward_loss(video, prediction, decoded, counted).backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return {"fits": False}
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else resident_gib() - before
    return {"fits": True, "seconds_per_step": statistics.median(seconds[1:]), "peak_gib": peak}


def resident_gib() -> float:
    """The largest memory this process has held so far.

    Linux's `ru_maxrss` starts from the parent's memory at the start of this process, so `/proc` is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB
