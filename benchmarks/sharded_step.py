"""A training step of a sharded model that does not fit in one process: each process initializes only its own shards.

Run `torchrun --standalone --nproc_per_node 2 benchmarks/sharded_step.py --out reports/benchmarks` for ViT-g on two CPU
processes or GPUs, with FSDP2, activation checkpointing and AdamW. Compares PyTorch's count of the operations with
models/flops.py.
"""

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch
from parts.written import machine_words, write_benchmark
from timm.models.vision_transformer import Block
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from vmae_lab.lab.stages.measure import resident_gib
from vmae_lab.masking import MaskSettings, draw_masks, loss_positions, visible_index
from vmae_lab.models.flops import TokenCounts, pretrain_cost
from vmae_lab.models.sizes import SIZES, ClipShape, Size
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.models.vit import PixelScale, VideoEncoder, sincos_positions
from vmae_lab.training.distributed import sharding_policy
from vmae_lab.training.optim import parameter_groups
from vmae_lab.utils.seeding import torch_generator

START = "torchrun --standalone --nproc_per_node 2 benchmarks/sharded_step.py --out reports/benchmarks"
GPU = torch.cuda.is_available()
MASKS = MaskSettings(decoder="running_cell", decoder_ratio=0.5)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--size", default="giant", choices=sorted(SIZES))
    arguments.add_argument("--batch", type=int, default=1, help="clips per process")
    arguments.add_argument("--steps", type=int, default=2)
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    if "RANK" not in os.environ:
        arguments.error(f"this needs several processes: start it with `{START}`")
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if GPU else torch.device("cpu")
    if GPU:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if GPU else "gloo", timeout=timedelta(hours=1))
    size, clip = SIZES[options.size], ClipShape(patch=SIZES[options.size].patch)
    model = sharded(size, clip, device)
    parameters = sum(weight.numel() for weight in model.parameters())
    held = sum(weight.to_local().numel() for weight in model.parameters())
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)
    generators = (torch_generator(rank, f"{side} mask") for side in ("encoder", "decoder"))
    encoder_mask, decoder_mask = draw_masks(MASKS, clip.grid, options.batch, *generators)
    visible, decoded = visible_index(encoder_mask), visible_index(decoder_mask)
    counted = loss_positions(encoder_mask, decoded).to(device)
    video = torch.randint(0, 256, (options.batch, 3, clip.frames, clip.height, clip.width), dtype=torch.uint8, device=device)
    losses, seconds, forward = [], [], 0
    for index in range(options.steps):
        started = time.perf_counter()
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=GPU)
        with FlopCounterMode(display=False) as counter, autocast:
            prediction, positions = model(video, visible, decoded)
        forward = counter.get_total_flops() // 2 if index == 0 else forward
        loss = model.forward_loss(video, prediction, positions, counted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    counts = TokenCounts.of(MASKS, clip)
    expected = options.batch * pretrain_cost(size, clip, counts.visible, counts.decoded, embed_visible=True).macs
    if rank == 0:
        row = {
            "size": options.size, "processes": distributed.get_world_size(), "clips per process": options.batch,
            "parameters, M": parameters / 1e6, "per process, M": held / 1e6, "forward, G MAC": forward / 1e9,
            "counted, G MAC": expected / 1e9, "s per step": seconds[-1], "loss": f"{losses[0]:.3f}, then {losses[-1]:.3f}",
            "peak GiB per process": torch.cuda.max_memory_allocated() / 2**30 if GPU else resident_gib(),
        }  # fmt: skip
        words = (
            "The model is built on the meta device and sharded (FSDP2, per block) before its weights are allocated. Activation "
            f"checkpointing; running cell decoder mask 0.5; random pixels, so the loss is meaningless. {machine_words()}."
        )
        write_benchmark(options.out, "sharded_step", "A training step of a sharded model", words, pd.DataFrame([row]))
    distributed.destroy_process_group()


def sharded(size: Size, clip: ClipShape, device: torch.device) -> VideoMAE:
    """Return the sharded model with initial weights. Each process initializes its own shards."""
    with torch.device("meta"):
        model = VideoMAE(size, clip)
    apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, Block))
    policy = sharding_policy(GPU, device)
    for part in [part for part in model.modules() if isinstance(part, Block)]:
        fully_shard(part, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model.to_empty(device=device)
    for part in model.modules():
        _fill(part, clip)
    return model


@torch.no_grad()
def _fill(part: nn.Module, clip: ClipShape) -> None:
    for weight in part.parameters(recurse=False):
        values = weight.to_local() if isinstance(weight, DTensor) else weight
        nn.init.ones_(values) if isinstance(part, nn.LayerNorm) else nn.init.trunc_normal_(values, std=0.02)
    if isinstance(part, nn.LayerNorm | nn.Linear) and part.bias is not None:
        nn.init.zeros_(part.bias.to_local())
    if isinstance(part, VideoEncoder | VideoMAE):
        part.positions.copy_(sincos_positions(*part.positions.shape))
    if isinstance(part, PixelScale):
        for name, values in PixelScale(clip).named_buffers():
            getattr(part, name).copy_(values)


if __name__ == "__main__":
    main()
