"""Devices, precision and processes of a training (DDP or FSDP2, by accelerate), and its state gathered from all of them."""

import ctypes
import os
import platform
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
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
from vmae_lab.utils.processes import process_state

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def accelerator_for(settings: TrainSettings) -> Accelerator:
    """The devices of the launcher's configuration, in the precision of the settings."""
    AcceleratorState._reset_state()  # one process may train several stages, each with its own precision
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bf16_is_native())
    process_state()
    # As without shards: autocast chooses each product's precision; gradients are added up and reduced in float32.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=policy) if sharded else None
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", fsdp_plugin=plugin)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if sharded and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # PyTorch can shard on CPUs too, so a configuration can be tried out there; accelerate ignores it.
        state = accelerator.state
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator


def rows_of_process(accelerator: Accelerator, settings: TrainSettings) -> range:
    """The rows of the global batch that this process computes. Raises ImpossibleHere if they cannot be divided equally."""
    size, processes, accumulation = settings.batch_size, accelerator.num_processes, settings.accumulation
    if size % (processes * accumulation):
        raise ImpossibleHere(
            f"batch_size {size} does not divide over {processes} processes x {accumulation} micro-batches: change batch_size, "
            "accumulation or the number of processes"
        )
    first = accelerator.process_index * (size // processes)
    return range(first, first + size // processes)


def prepare(
    accelerator: Accelerator, model: nn.Module, settings: TrainSettings, compute: Compute
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and its AdamW on the devices, with its blocks checkpointed, compiled and sharded as set."""
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
    blocks = [part for part in model.modules() if isinstance(part, Block)]
    # What FSDP gathers at a time: accelerate reads this attribute.
    model._no_split_modules = [Block.__name__] if blocks else []  # type: ignore[assignment]
    if compute.checkpoint_activations:
        apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, Block))
    if compute.compile:
        # Blocks share their code: each rate of drop path, each width, training and evaluation compile it once.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
        for block in blocks:
            block.compile()
    fused = accelerator.device.type in ("cuda", "cpu")
    optimizer = torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, fused=fused)
    model, wrapped = accelerator.prepare(model, optimizer)
    if settings.ema and isinstance(model, FSDPModule):
        raise ImpossibleHere("ema keeps a full copy of the weights, which FSDP shards: leave ema out, or use DDP")
    return model, wrapped.optimizer  # accelerate's wrapper is for float16 and TPUs only


def unwrapped(model: nn.Module) -> Any:
    """The model without DDP. FSDP2 changes a model in place."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB that a training step frees, for the next step, instead of returning it to the kernel.

    Otherwise the kernel may clear these pages at every step, up to 10% of a tiny model's time: glibc adapts both thresholds
    to what the process has freed before. The values are the highest that it adapts to.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


def bf16_is_native() -> bool:
    """Whether the GPU computes in bf16 itself. Older GPUs emulate it, which is slow."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# ---------------------------------------------------------------------------------------------------------------------------
# State of all processes, by parameters' names. It does not depend on the number of processes or on shards. All processes call
# each function together.


def full_state_dict(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Weights and optimiser state on the CPU; in the first process only, the others get empty dictionaries."""
    if not optimizer.state:  # PyTorch would take a step to create the moments, and count it
        return {"model": gathered_weights(model, cpu=True), "optimizer": {}}
    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {"model": weights, "optimizer": moments}


def gathered_weights(model: nn.Module, cpu: bool = False) -> dict[str, Any]:
    """The full weights in every process, on its device; with `cpu` on the CPU, in the first process only."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=cpu))


def load_full_state_dict(accelerator: Accelerator, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Load what `full_state_dict` returned; only the first process needs it. There are no moments before the first step."""
    load_full_weights(accelerator, model, state.get("model", {}))
    moments = state.get("optimizer", {})
    [begun] = broadcast_object_list([bool(moments)])
    if begun:
        set_optimizer_state_dict(model, optimizer, moments, options=_from_first_process(accelerator))
    else:
        optimizer.state.clear()


def load_full_weights(accelerator: Accelerator, model: nn.Module, weights: dict[str, Any]) -> None:
    """Load weights that only the first process needs to have."""
    set_model_state_dict(model, weights, options=_from_first_process(accelerator))


def _from_first_process(accelerator: Accelerator) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=accelerator.num_processes > 1)


def weights_are_finite(model: nn.Module) -> Tensor:
    """Whether all weights of this process are finite: a bool scalar on the device."""
    parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
    return torch.stack([part.detach().isfinite().all() for part in parts]).all()
