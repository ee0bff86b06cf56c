"""Seconds of a pre-training step, in the field's usual style and ours, on the device at hand.

`python benchmarks/pretrain_step.py --out reports/benchmarks` (one thread, float32) or, on a GPU, the same (bf16).
The same weights, masks and pixels; predictions, targets and losses are checked equal before anything is timed. Steps of the two
ways are taken in turns, so that a noisy machine is as noisy to both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from parts.straightforward import Straightforward
from parts.written import machine_words, write_benchmark
from torch import Tensor

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
    arguments.add_argument("--batch", type=int, default=2, help="clips a step")
    arguments.add_argument("--steps", type=int, default=5, help="timed steps of each way, after one that is not")
    arguments.add_argument("--compile", action="store_true", help="ours with its blocks compiled")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    rate = matmul_rate()
    rows, profiles = [], []
    for name in options.sizes:
        for ratio in (0.0, 0.5):
            found, where = measured(name, ratio, options, rate)
            rows += found
            profiles.append(where)
            print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g"), flush=True)
    words = (
        f"One pre-training step (forward, target, loss, backward, AdamW) on {options.batch} clips of 16 x 224 x 224 pixels, "
        f"encoder ratio .9; medians of {options.steps} steps, in turns, outputs checked equal first. {machine_words()}, "
        f"{'bf16 autocast' if DEVICE.type == 'cuda' else 'float32, one thread'}; a product of two 4096 x 4096 matrices "
        f"runs at {rate / 1e9:,.0f} GFLOP/s there. A step's rate counts the multiply-accumulates that ours needs "
        "(models/flops.py: forward and backward), twice, for all ways alike. 'at most' is how many times as fast a step "
        "would be that did nothing but these at the rate of the large product."
    )
    more = "\nWhere the time of ours goes (the dearest operations of one step):\n\n" + "\n".join(profiles) + "\n"
    write_benchmark(
        options.out, "pretrain_step", "A pre-training step, the usual style and ours", words, pd.DataFrame(rows), more
    )


def measured(name: str, ratio: float, options: argparse.Namespace, rate: float) -> tuple[list[dict], str]:
    """A row for each way at one size and decoder ratio, and where the time of ours goes, in words."""
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
        each = statistics.median(taken)
        row = {"size": name, "decoder ratio": ratio, "way": way, "s a step": each, "spread": max(taken) / min(taken) - 1}
        row |= {"times as fast": usual / each, "at most": usual * rate / flops}
        row |= {"GFLOP/s": flops / each / 1e9, "of matmul": flops / each / rate}
        rows.append(row | ({"peak GiB": peak} if peak else {}))
    where = ", ".join(f"{operation} {part:.0%}" for operation, part in profile)
    return rows, f"- {name}, decoder ratio {ratio:g}: {where}"


def drawn(clip: ClipShape, masks: MaskSettings, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random uint8 pixels, both masks, and which decoded tokens count."""
    video = torch.randint(
        0, 256, (batch, 3, clip.frames, clip.side, clip.side), dtype=torch.uint8, generator=torch_generator(0, "pixels")
    )
    generators = (torch_generator(0, f"{side} mask") for side in ("encoder", "decoder"))
    encoder_mask, decoder_mask = draw_masks(masks, clip.grid, batch, *generators)
    counted = loss_positions(encoder_mask, visible_index(decoder_mask), masks.loss_on)
    return video.to(DEVICE), encoder_mask, decoder_mask, counted.to(DEVICE)


def model_of(name: str) -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(SIZES[name], ClipShape(patch=SIZES[name].patch)).to(DEVICE)


def both_ways(name: str, masks: MaskSettings, batch: int, compiled: bool) -> dict[str, Step]:
    """A step of each; refused where they do not compute the same."""
    clip = ClipShape(patch=SIZES[name].patch)
    video, encoder_mask, decoder_mask, counted = drawn(clip, masks, batch)
    model, usual = model_of(name), Straightforward(SIZES[name], clip).to(DEVICE)
    usual.take_weights(model.state_dict())
    colour = [torch.tensor(values, device=DEVICE)[:, None, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)]
    pixels = (video / 255 - colour[0]) / colour[1]
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
    """Seconds of each step, taken in turns, the first turn not counted."""
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
    """GiB that a step takes over what stood before it (the weights and moments of all), on a GPU; None on a CPU."""
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
    """FLOP/s of a large product of matrices, in the precision that is measured in; the best of five."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    [taken] = in_turns([lambda: torch.mm(left, right)], 5)
    return 2 * side**3 / min(taken)


def profiled(step: Step) -> list[tuple[str, float]]:
    """The dearest operations of a step, and their parts of its time."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA][: 1 + (DEVICE.type == "cuda")]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    seconds = {
        one.key: getattr(one, f"self_{'device' if DEVICE.type == 'cuda' else 'cpu'}_time_total")
        for one in profile.key_averages()
    }
    dearest = sorted(seconds.items(), key=lambda item: -item[1])[:6]
    return [(name.removeprefix("aten::"), taken / sum(seconds.values())) for name, taken in dearest]


if __name__ == "__main__":
    main()
