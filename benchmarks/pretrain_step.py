"""Seconds per pre-training step, in the usual style of reference code and in ours, on this machine's device.

Run `python benchmarks/pretrain_step.py --out reports/benchmarks`: on a GPU in bf16, else with one thread in float32. Both have
the same weights, masks and pixels, and their predictions and targets are checked to be equal first. Steps of both alternate, so
that other load on the machine affects both.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from parts.straightforward import Straightforward
from parts.written import machine_words, write_benchmark
from torch import Tensor
from torch.autograd import DeviceType

from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.flops import TokenCounts, training_macs
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import IMAGENET_MEAN, IMAGENET_STD
from vmae_lab.training.optim import parameter_groups
from vmae_lab.utils.seeding import torch_generator

Step = Callable[[], None]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sizes", nargs="+", default=["small", "base"], choices=sorted(SIZES))
    arguments.add_argument("--batch", type=int, default=2, help="clips per step")
    arguments.add_argument("--steps", type=int, default=5, help="number of timed steps, after one warm-up step")
    arguments.add_argument("--compile", action="store_true", help="compile the blocks of ours")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    rate = matmul_rate()
    rows, profiles = [], []
    for name in options.sizes:
        for ratio in (0.0, 0.5):
            measurements, profile = measured(name, ratio, options, rate)
            rows += measurements
            profiles.append(profile)
            print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g"), flush=True)
    words = (
        f"One pre-training step (forward, target, loss, backward, AdamW) on {options.batch} clips of 16 x 224 x 224 pixels, "
        f"encoder ratio 0.9. Medians of {options.steps} alternating steps; outputs are equal. {machine_words()}, "
        f"{'bf16 autocast' if DEVICE.type == 'cuda' else 'float32, one thread'}; the product of two 4096 x 4096 matrices "
        f"runs at {rate / 1e9:,.0f} GFLOP/s. The rate of a step is twice the multiply-accumulates that ours needs "
        "(models/flops.py: forward and backward) per second, for all ways. 'maximum speedup' is that of a step with only these "
        "operations at the rate of the large product."
    )
    more = "\nThe slowest operations of one step of ours, as fractions of its time:\n\n" + "\n".join(profiles) + "\n"
    write_benchmark(
        options.out, "pretrain_step", "A pre-training step in the usual style and in ours", words, pd.DataFrame(rows), more
    )


def measured(name: str, ratio: float, options: argparse.Namespace, rate: float) -> tuple[list[dict], str]:
    """Return a row for each way at one size and decoder ratio, and a line with the slowest operations of ours."""
    masks = MaskSettings(decoder="running_cell" if ratio else "none", decoder_ratio=ratio)
    size, clip = SIZES[name], ClipShape(patch=SIZES[name].patch)
    counts = TokenCounts.of(masks, clip)
    flops = 2 * options.batch * training_macs(size, clip, counts.visible, counts.decoded)
    ways = both_ways(name, masks, options.batch, options.compile)
    if ratio:
        pruned = masks.model_copy(update={"prune": True})
        ways["ours, pruned"] = ours(model_of(name), clip, *drawn(clip, pruned, options.batch), options.compile)
    seconds = in_turns(list(ways.values()), options.steps)
    profile = profiled(ways["ours"])
    usual = statistics.median(seconds[0])
    rows = []
    for way, taken, peak in zip(ways, seconds, peaks(list(ways.values())), strict=True):
        median = statistics.median(taken)
        row = {"size": name, "decoder ratio": ratio, "way": way, "s per step": median, "spread": max(taken) / min(taken) - 1}
        row |= {"speedup": usual / median, "maximum speedup": usual * rate / flops}
        row |= {"GFLOP/s": flops / median / 1e9, "of matmul": flops / median / rate}
        rows.append(row | ({"peak GiB": peak} if peak else {}))
    slowest = ", ".join(f"{operation} {part:.0%}" for operation, part in profile)
    return rows, f"- {name}, decoder ratio {ratio:g}: {slowest}"


def drawn(clip: ClipShape, masks: MaskSettings, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random uint8 pixels, both masks, and which decoded tokens enter the loss."""
    video = torch.randint(
        0, 256, (batch, 3, clip.frames, clip.height, clip.width), dtype=torch.uint8, generator=torch_generator(0, "pixels")
    )
    generators = (torch_generator(0, f"{side} mask") for side in ("encoder", "decoder"))
    encoder_mask, decoder_mask = draw_masks(masks, clip.grid, batch, *generators)
    counted = loss_positions(encoder_mask, visible_index(decoder_mask), masks.loss_on)
    return video.to(DEVICE), encoder_mask, decoder_mask, counted.to(DEVICE)


def model_of(name: str) -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(SIZES[name], ClipShape(patch=SIZES[name].patch)).to(DEVICE)


def both_ways(name: str, masks: MaskSettings, batch: int, compiled: bool) -> dict[str, Step]:
    """Return a step in the usual style and in ours. Raises AssertionError if their outputs differ."""
    clip = ClipShape(patch=SIZES[name].patch)
    video, encoder_mask, decoder_mask, counted = drawn(clip, masks, batch)
    model, usual = model_of(name), Straightforward(SIZES[name], clip).to(DEVICE)
    usual.load_our_weights(model.state_dict())
    mean, std = (torch.tensor(values, device=DEVICE)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (video / 255 - mean) / std
    on_device = encoder_mask.to(DEVICE), decoder_mask.to(DEVICE)
    with torch.no_grad():
        prediction, decoded = model(video, encoder_mask, decoder_mask)
        torch.testing.assert_close(usual(pixels, *on_device), prediction, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(usual.target(pixels, on_device[1]), model.target(video, decoded), atol=1e-3, rtol=1e-3)
    return {
        "usual style": in_usual_style(usual, pixels, *on_device, counted),
        "ours": ours(model, clip, video, encoder_mask, decoder_mask, counted, compiled),
    }


def in_usual_style(model: Straightforward, pixels: Tensor, encoder_mask: Tensor, decoder_mask: Tensor, counted: Tensor) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            prediction = model(pixels, encoder_mask, decoder_mask)
            target = model.target(pixels, decoder_mask)
            loss = ((prediction - target) ** 2).mean(-1)
            loss = (loss * counted).sum() / counted.sum()
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(
    model: VideoMAE, clip: ClipShape, video: Tensor, encoder_mask: Tensor, decoder_mask: Tensor, counted: Tensor, compiled: bool
) -> Step:
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)
    for block in (*model.encoder.trunk.blocks, *model.decoder.blocks) if compiled else ():
        block.compile()

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            prediction, decoded = model(video, encoder_mask, decoder_mask)
        model.forward_loss(video, prediction, decoded, counted).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_turns(steps: list[Step], count: int) -> list[list[float]]:
    """Return seconds of alternating steps, without the first round."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(count + 1):
        for step, taken in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                taken.append(time.perf_counter() - started)
    return seconds


def peaks(steps: list[Step]) -> list[float | None]:
    """Return the peak memory that a step allocates in addition to all weights and moments, GiB on a GPU; None on a CPU."""
    found: list[float | None] = []
    for step in steps:
        if DEVICE.type == "cpu":
            found.append(None)
            continue
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        found.append((torch.cuda.max_memory_allocated() - before) / 2**30)
    return found


def matmul_rate(side: int = 4096) -> float:
    """Return the FLOP/s of a large matrix product in the benchmark's precision, the best of five."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    [taken] = in_turns([lambda: torch.mm(left, right)], 5)
    return 2 * side**3 / min(taken)


def profiled(step: Step) -> list[tuple[str, float]]:
    """Return the slowest operations of a step, with their fractions of its time."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA][: 1 + (DEVICE.type == "cuda")]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    seconds = operation_seconds(profile.key_averages())
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:6]
    return [(name.removeprefix("aten::"), taken / sum(seconds.values())) for name, taken in slowest]


def operation_seconds(events: Iterable[Any]) -> dict[str, float]:
    """Return the time of each operation, from a profile's averages: on the GPU if there is one, else on the CPU.

    The profile of a GPU has the time of a kernel twice: in a row of its own, and in the row of the operator that started it.
    Only rows of kernels are counted, as in the sum below PyTorch's own table.
    """
    if DEVICE.type == "cuda":
        kernels = (event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation)
        return {event.key: event.self_device_time_total for event in kernels}
    return {event.key: event.self_cpu_time_total for event in events}


if __name__ == "__main__":
    main()
