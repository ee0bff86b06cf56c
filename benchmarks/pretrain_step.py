"""Clips per second of a pre-training step, in the usual style of reference code and in ours, on this machine's device.

Run `python benchmarks/pretrain_step.py --out reports/benchmarks`: on a GPU in bf16, else with one thread in float32. All ways
have the same weights, masks and pixels. First, predictions and targets of both styles are checked to be equal. On a CPU, steps
of all ways alternate, so that other load on the machine affects all. On a GPU, each way runs alone, so that its memory can be
measured.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from itertools import product
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
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
USUAL, OURS, PRUNED, COMPILED = "usual style", "ours", "ours, pruned", "ours, compiled"
# FLOP/s of dense bf16 products according to NVIDIA's data sheets, by a part of the device's name; the first match counts.
PEAK = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--sizes", nargs="+", default=["small", "base"], choices=sorted(SIZES))
    arguments.add_argument("--batch", nargs="+", type=int, default=[2], help="clips per step; several are measured in turn")
    arguments.add_argument("--side", type=int, default=224, help="side of a clip in pixels")
    arguments.add_argument("--ratios", nargs="+", type=float, default=[0.0, 0.5], help="decoder mask ratios")
    arguments.add_argument("--steps", type=int, default=5, help="number of timed steps, after one warm-up step")
    arguments.add_argument("--compile", action="store_true", help="also measure ours with compiled blocks")
    arguments.add_argument("--seconds", type=float, default=float("inf"), help="start no measurement after this time")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    started = time.monotonic()
    if not ON_GPU:
        torch.set_num_threads(1)
    side = 8192 if ON_GPU else 2048
    rate = matmul_rate(side)
    ways = [USUAL, OURS, PRUNED, *([COMPILED] if options.compile else [])]
    clips = {name: ClipShape(side=options.side, patch=SIZES[name].patch) for name in options.sizes}
    unequal = [name for name, clip in clips.items() if not outputs_are_equal(name, clip, options.ratios)]
    rows, profiles, skipped = [], [], []
    for group, name in product([[way] for way in ways] if ON_GPU else [ways], options.sizes):
        makers: dict[str, Callable] = {}  # empty before those of the next size are built
        for ratio, batch in product(options.ratios, options.batch):
            if time.monotonic() - started > options.seconds:
                skipped.append(f"{name}, ratio {ratio:g}, {batch} clips ({'; '.join(group)})")
                continue
            makers = makers or {way: step_maker(way, name, clips[name]) for way in group}
            masks = MaskSettings(decoder="running_cell" if ratio else "none", decoder_ratio=ratio)
            measurements, slowest = measured(makers, name, clips[name], masks, batch, options.steps, rate)
            rows += measurements
            profiles += [f"- {name}, decoder ratio {ratio:g}, {batch} clips: {slowest}"] if slowest else []
    if not rows:
        print(f"nothing was measured within {options.seconds:.0f} seconds")
        sys.exit(1)
    words = (
        f"One pre-training step (forward, target, loss, backward, AdamW) on clips of 16 x {options.side} x {options.side} "
        f"pixels, encoder ratio 0.9. Medians of {options.steps} steps after a first one, which includes compilation. "
        f"{machine_words()}, "
        f"{'bf16 autocast' if ON_GPU else 'float32, one thread'}; the product of two {side} x {side} matrices runs at "
        f"{rate / 1e9:,.0f} GFLOP/s. The rate of a step is twice the multiply-accumulates that ours needs (models/flops.py: "
        "forward and backward) per second, for all ways. 'of matmul': compared with the large product. 'MFU': compared with "
        "the device's peak. 'maximum speedup': of a step with only these operations at the rate of the large product. "
        "'peak GiB': weights, moments, activations and pixels; measured on a GPU."
    )
    words += f"\n\nOutputs of both styles differ for {', '.join(unequal)}." if unequal else " Outputs are equal."
    words += f"\n\nNot measured within {options.seconds:.0f} seconds: {'. '.join(skipped)}." if skipped else ""
    more = "\nThe slowest operations of one step of ours, as fractions of its time:\n\n" + "\n".join(profiles) + "\n"
    table = compared(pd.DataFrame(rows), rate)
    write_benchmark(options.out, "pretrain_step", "A pre-training step in the usual style and in ours", words, table, more)
    sys.exit(1 if unequal else 0)


def measured(
    makers: dict[str, Callable], name: str, clip: ClipShape, masks: MaskSettings, batch: int, count: int, rate: float
) -> tuple[list[dict], str]:
    """Return a row for each way at one size, decoder ratio and batch size, and a text with the slowest operations of ours."""
    counts = TokenCounts.of(masks, clip)
    flops = 2 * batch * training_macs(SIZES[name], clip, counts.visible, counts.decoded)
    ways = [way for way in makers if way != PRUNED or masks.decoder_ratio]
    pruned = masks.model_copy(update={"prune": True})
    seconds, rows, slowest = [], [], ""
    try:
        steps = {way: makers[way](*drawn(clip, pruned if way == PRUNED else masks, batch)) for way in ways}
        forget_peak()
        seconds = in_turns(list(steps.values()), count)
        peak_gib = torch.cuda.max_memory_allocated() / 2**30 if ON_GPU else 0.0
        if OURS in steps:
            slowest = ", ".join(f"{operation} {part:.0%}" for operation, part in profiled(steps[OURS]))
    except torch.OutOfMemoryError as error:
        print(str(error).splitlines()[0])
    for index, way in enumerate(ways):
        row = {"size": name, "decoder ratio": masks.decoder_ratio, "clips": batch, "way": way}
        row |= {"fits": "yes" if seconds else "no"}
        if seconds:
            first, *taken = seconds[index]
            median = statistics.median(taken)
            row |= {"s per step": median, "spread": max(taken) / min(taken) - 1, "first step, s": first}
            row |= {"clips/s": batch / median, "GFLOP/s": flops / median / 1e9, "of matmul": flops / median / rate}
            if ON_GPU:
                peak = next((peak for part, peak in PEAK.items() if part in torch.cuda.get_device_name()), float("nan"))
                row |= {"MFU": flops / median / peak, "peak GiB": peak_gib}
        values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(", ".join(values), flush=True)
        rows.append(row)
    return rows, slowest


def compared(table: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Add each way's speedup over the usual style, in order of sizes, ratios and batches."""
    keys = ["size", "decoder ratio", "clips"]
    table["order"] = table["size"].map({name: order for order, name in enumerate(dict.fromkeys(table["size"]))})
    table = table.sort_values(["order", *keys[1:]], kind="stable", ignore_index=True).drop(columns="order")
    if "s per step" in table:
        usual = table[keys].merge(table[table.way == USUAL][[*keys, "s per step"]], "left", keys)["s per step"]
        table["speedup"] = usual / table["s per step"]
        table["maximum speedup"] = usual / table["s per step"] / table["of matmul"]
    return table


def forget_peak() -> None:
    """Return unused memory to the GPU, and forget its peak so far."""
    gc.collect()  # compiled blocks are in reference cycles
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def drawn(clip: ClipShape, masks: MaskSettings, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random uint8 pixels, both masks, and which decoded tokens enter the loss."""
    video = torch.randint(
        0, 256, (batch, 3, clip.frames, clip.height, clip.width), dtype=torch.uint8, generator=torch_generator(0, "pixels")
    )
    generators = (torch_generator(0, f"{side} mask") for side in ("encoder", "decoder"))
    encoder_mask, decoder_mask = draw_masks(masks, clip.grid, batch, *generators)
    counted = loss_positions(encoder_mask, visible_index(decoder_mask), masks.loss_on)
    return video.to(DEVICE), encoder_mask, decoder_mask, counted.to(DEVICE)


def model_of(name: str, clip: ClipShape) -> VideoMAE:
    torch.manual_seed(0)
    with DEVICE:  # weights are drawn on the device, which is faster for large models
        return VideoMAE(SIZES[name], clip).to(DEVICE)


def usual_model_of(name: str, clip: ClipShape) -> Straightforward:
    with DEVICE:
        return Straightforward(SIZES[name], clip).to(DEVICE)


def normalized(video: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=DEVICE)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (video / 255 - mean) / std


def outputs_are_equal(name: str, clip: ClipShape, ratios: list[float]) -> bool:
    """Compare predictions and targets of both styles in float32 on two clips. Prints the first difference."""
    model, usual = model_of(name, clip), usual_model_of(name, clip)
    usual.load_our_weights(model.state_dict())
    for ratio in ratios:
        masks = MaskSettings(decoder="running_cell" if ratio else "none", decoder_ratio=ratio)
        video, encoder_mask, decoder_mask, _ = drawn(clip, masks, 2)
        pixels, on_device = normalized(video), (encoder_mask.to(DEVICE), decoder_mask.to(DEVICE))
        try:
            with torch.no_grad():
                prediction, decoded = model(video, encoder_mask, decoder_mask)
                torch.testing.assert_close(usual(pixels, *on_device), prediction, atol=2e-4, rtol=1e-3)
                torch.testing.assert_close(
                    usual.target(pixels, on_device[1]), model.target(video, decoded), atol=1e-3, rtol=1e-3
                )
        except AssertionError as error:
            print(f"{name}, decoder ratio {ratio:g}: {error}")
            return False
    return True


def step_maker(way: str, name: str, clip: ClipShape) -> Callable[[Tensor, Tensor, Tensor, Tensor], Step]:
    """Build the model and the optimizer of a way. Return a function that makes a step of pixels, masks and counted tokens."""
    if way == USUAL:
        return in_usual_style(usual_model_of(name, clip))
    model = model_of(name, clip)
    if way == COMPILED:
        torch._dynamo.reset()
        # As in a training, which has one shape, each shape is compiled for itself.
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 64
        for block in (*model.encoder.trunk.blocks, *model.decoder.blocks):
            block.compile()
    return ours(model)


def in_usual_style(model: Straightforward) -> Callable[[Tensor, Tensor, Tensor, Tensor], Step]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def make(video: Tensor, encoder_mask: Tensor, decoder_mask: Tensor, counted: Tensor) -> Step:
        pixels = normalized(video)
        encoder_mask, decoder_mask = encoder_mask.to(DEVICE), decoder_mask.to(DEVICE)

        def step() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
                prediction = model(pixels, encoder_mask, decoder_mask)
                target = model.target(pixels, decoder_mask)
                loss = ((prediction - target) ** 2).mean(-1)
                loss = (loss * counted).sum() / counted.sum()
            loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    return make


def ours(model: VideoMAE) -> Callable[[Tensor, Tensor, Tensor, Tensor], Step]:
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)

    def make(video: Tensor, encoder_mask: Tensor, decoder_mask: Tensor, counted: Tensor) -> Step:
        def step() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
                prediction, decoded = model(video, encoder_mask, decoder_mask)
            model.forward_loss(video, prediction, decoded, counted).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


def in_turns(steps: list[Step], count: int) -> list[list[float]]:
    """Return seconds of alternating steps: of a first round, and of `count` others."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(count + 1):
        for step, taken in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step()
            if ON_GPU:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    return seconds


def matmul_rate(side: int) -> float:
    """Return the FLOP/s of a large matrix product in the benchmark's precision, the best of five."""
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    left, right = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    [taken] = in_turns([lambda: torch.mm(left, right)], 5)
    return 2 * side**3 / min(taken[1:])


def profiled(step: Step) -> list[tuple[str, float]]:
    """Return the slowest operations of a step, with their fractions of its time."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA][: 1 + ON_GPU]
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
