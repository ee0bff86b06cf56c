"""What one pre-training step takes on the device at hand: seconds and peak memory, beside what was counted for it."""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.flops import TokenCounts, saved_bytes, state_bytes
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.distributed import bf16_is_native
from vmae_lab.training.optim import parameter_groups
from vmae_lab.utils.processes import worker_pool
from vmae_lab.utils.seeding import seeded, torch_generator

ROOM = 0.9  # of the device's memory; more is not tried, so that a machine is not brought to its knees
GIB = 2**30


@cache
def parameter_count(model: ModelSettings) -> int:
    """Parameters of the whole autoencoder. Its fused qkv bias has a part for k that the official layout leaves out."""
    with torch.device("meta"):
        return sum(p.numel() for p in VideoMAE(model.dimensions, model.clip).parameters())


def predicted_bytes(model: ModelSettings, masks: MaskSettings, batch_size: int, half: bool) -> int:
    """Peak memory of training: weights and AdamW's moments, and the greater of gradients and what backward still needs.

    Gradients are made while what was kept for them is freed, so the two do not add up.
    """
    counts, parameters = TokenCounts.of(masks, model.clip), parameter_count(model)
    kept = batch_size * saved_bytes(model.dimensions, model.clip, counts.visible, counts.decoded, half)
    return state_bytes(parameters, half) - 4 * parameters + max(4 * parameters, kept)


def largest_batch(model: ModelSettings, masks: MaskSettings, memory_bytes: float, half: bool) -> int:
    """Clips a step that fit in a memory, by the prediction; 0 where not even the model does."""
    counts, parameters = TokenCounts.of(masks, model.clip), parameter_count(model)
    if memory_bytes < state_bytes(parameters, half):
        return 0
    room = memory_bytes - state_bytes(parameters, half) + 4 * parameters
    return int(room // saved_bytes(model.dimensions, model.clip, counts.visible, counts.decoded, half))


def device_memory() -> int:
    """Bytes of the device that trains: the GPU's memory, else the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_step(model: ModelSettings, masks: MaskSettings, batch_size: int, steps: int) -> dict[str, Any]:
    """Seconds a step (median) and peak memory in GiB, in a process of its own; only `fits: False` where memory is short.

    A step is forward, target, loss, backward and AdamW on random pixels; no data loading. bf16 on a GPU that has it.
    """
    half = bf16_is_native()
    if predicted_bytes(model, masks, batch_size, half) > ROOM * device_memory():
        return {"fits": False}
    with worker_pool(1) as pool:
        try:
            return pool.submit(_measure, model, masks, batch_size, steps).result()
        except BrokenProcessPool:  # the system ended it for lack of memory
            return {"fits": False}


def _measure(model: ModelSettings, masks: MaskSettings, batch_size: int, steps: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = 0.0 if device.type == "cuda" else resident_gib()
    try:
        step = _stepper(model, masks, batch_size, device)
        seconds = [_timed(step, index) for index in range(steps + 1)]
    except torch.OutOfMemoryError:
        return {"fits": False}
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else resident_gib() - before
    return {"fits": True, "seconds_per_step": statistics.median(seconds[1:]), "peak_gib": peak}


def _stepper(model: ModelSettings, masks: MaskSettings, batch_size: int, device: torch.device) -> Callable[[int], None]:
    """A fresh model's whole optimiser step, by its index: each draws its own masks."""
    with seeded(0, "initial weights"):
        network = VideoMAE(model.dimensions, model.clip).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.05), lr=1e-4, fused=True)
    clip = model.clip
    video = torch.randint(
        0, 256, (batch_size, clip.channels, clip.frames, clip.side, clip.side), dtype=torch.uint8,
        generator=torch_generator(0, "random pixels"),
    ).to(device)  # fmt: skip

    def step(index: int) -> None:
        generators = (torch_generator(index, f"{side} mask") for side in ("encoder", "decoder"))
        encoder_mask, decoder_mask = draw_masks(masks, clip.grid, batch_size, *generators)
        counted = loss_positions(encoder_mask, visible_index(decoder_mask), masks.loss_on).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_native()):
            prediction, decoded = network(video, encoder_mask, decoder_mask)
        network.forward_loss(video, prediction, decoded, counted).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timed(step: Callable[[int], None], index: int) -> float:
    """Seconds until a step's work is done, on the GPU too."""
    started = time.perf_counter()
    step(index)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def resident_gib() -> float:
    """The largest memory this process has held so far.

    Linux's `ru_maxrss` starts from what the parent held when it started this process, so the kernel's own line is read there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB
