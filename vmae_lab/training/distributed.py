"""Devices, precision and processes of a run (DDP or FSDP2, through accelerate); gathering and loading its full state."""

import ctypes
import os
import platform
import warnings
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)  # fmt: skip
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vmae_lab.training.optim import parameter_groups
from vmae_lab.training.settings import Compute, ImpossibleHere, TrainSettings
from vmae_lab.utils.counts import counted
from vmae_lab.utils.precision import bf16_is_native
from vmae_lab.utils.processes import process_state

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def accelerator_for(settings: TrainSettings) -> Accelerator:
    """Return an Accelerator for the launcher's devices and the precision in the settings."""
    AcceleratorState._reset_state()  # a process may train several stages with different precisions
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bf16_is_native())
    processes = process_state()
    if processes.distributed_type == DistributedType.FSDP:  # of an earlier stage; accelerate would not read its plugin again
        on_cpu = processes.device.type == "cpu"
        processes.distributed_type = DistributedType.MULTI_CPU if on_cpu else DistributedType.MULTI_GPU
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    policy = sharding_policy(bf16, processes.device)
    plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=policy) if sharded else None
    # Buffers are constants, such as positions, so they need no broadcasts. Without the view, gradients exist twice.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", fsdp_plugin=plugin, kwargs_handlers=[ddp])
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if sharded and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate does not shard on CPUs. PyTorch can, so that a configuration can be tested there.
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = processes.distributed_type = DistributedType.FSDP
    return accelerator


def sharding_policy(bf16: bool, device: torch.device) -> MixedPrecisionPolicy:
    """Return the precision of sharded training (FSDP2). Gradients are reduced, and weights updated, in float32.

    With bf16, weights are gathered in bf16, in half the bytes of float32. Compared with DDP, this also rounds the weights that
    autocast would use in float32: those of LayerNorm and LayerScale, and the mask token. The operations on a GPU do not change:
    autocast computes LayerNorm in float32, and the residual stream, targets and losses are float32. On a CPU, LayerNorm needs
    inputs of the type of its weights, so there the inputs of each block are cast to bf16 too.
    """
    on_cpu = device.type == "cpu"
    return MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=on_cpu)


def rows_of_process(accelerator: Accelerator, settings: TrainSettings) -> range:
    """Return the rows of the global batch that this process computes. Raises ImpossibleHere if they cannot be split equally."""
    size, processes, accumulation = settings.batch_size, accelerator.num_processes, settings.accumulation
    if size % (processes * accumulation):
        raise ImpossibleHere(
            f"batch_size {size} cannot be split into {counted(processes, 'process')} x "
            f"{counted(accumulation, 'micro-batch')}: change batch_size, accumulation or the number of processes"
        )
    first = accelerator.process_index * (size // processes)
    return range(first, first + size // processes)


def prepare(
    accelerator: Accelerator, model: nn.Module, settings: TrainSettings, compute: Compute
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model and its AdamW on the devices; blocks are checkpointed, compiled and sharded as configured."""
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
    blocks = [part for part in model.modules() if isinstance(part, Block)]
    # accelerate reads this attribute: FSDP gathers one such module at a time.
    model._no_split_modules = [Block.__name__] if blocks else []  # type: ignore[assignment]
    if compute.checkpoint_activations:
        apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, Block))
    if compute.compile:
        # All blocks share one code object, which is compiled once for each drop path rate, width, and training or evaluation.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
        for block in blocks:
            block.compile()
    fused = accelerator.device.type in ("cuda", "cpu")
    optimizer = torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, fused=fused)
    with warnings.catch_warnings():
        # The argument's new name exists only in PyTorch 2.15 and later, and accelerate does not pass it.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        model, wrapped = accelerator.prepare(model, optimizer)
    if settings.ema and isinstance(model, FSDPModule):
        raise ImpossibleHere("ema keeps a full copy of the weights, which FSDP does not support: remove ema, or use DDP")
    return model, wrapped.optimizer  # accelerate's wrapper is only needed for float16 and TPUs


def unwrapped(model: nn.Module) -> Any:
    """Return the model without DDP's wrapper. FSDP2 has none."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory for the next training step instead of returning it to the kernel.

    Otherwise the kernel may have to clear these pages in every step, which takes up to 10% of a tiny model's time. glibc raises
    both thresholds by itself, depending on what the process has freed before. These are the highest values it would use.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# ---------------------------------------------------------------------------------------------------------------------------
# Full state, by parameter names. It does not depend on the number of processes or on sharding. All processes must call each
# function.


def full_state_dict(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return the weights and optimizer state on the CPU, in the first process; the others get empty dictionaries."""
    if not optimizer.state:  # else PyTorch would run a step to create the moments, and count it
        return {"model": gathered_weights(model, cpu=True), "optimizer": {}}
    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {"model": weights, "optimizer": moments}


def gathered_weights(model: nn.Module, cpu: bool = False) -> dict[str, Any]:
    """Return the full weights in every process, on its device; if `cpu`, on the CPU in the first process only."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=cpu))


def load_full_state_dict(accelerator: Accelerator, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Load the result of `full_state_dict`, which only the first process needs. It has no moments before the first step."""
    load_full_weights(accelerator, model, state.get("model", {}))
    moments = state.get("optimizer", {})
    [begun] = broadcast_object_list([bool(moments)])
    if begun:
        set_optimizer_state_dict(model, optimizer, moments, options=_from_first_process(accelerator))
    else:
        optimizer.state.clear()


def load_full_weights(accelerator: Accelerator, model: nn.Module, weights: dict[str, Any]) -> None:
    """Load full weights, which only the first process needs."""
    set_model_state_dict(model, weights, options=_from_first_process(accelerator))


def _from_first_process(accelerator: Accelerator) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=accelerator.num_processes > 1)


def weights_are_finite(model: nn.Module) -> Tensor:
    """Whether all weights in this process are finite: a bool scalar on the device."""
    parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
    return torch.stack([part.detach().isfinite().all() for part in parts]).all()
