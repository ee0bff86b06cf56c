"""Where a training computes: one device or many, in which precision; and its whole state, wherever its parts are."""

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
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vmae_lab.training.settings import Compute, TrainSettings
from vmae_lab.utils.processes import process_state

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def accelerator_for(settings: TrainSettings) -> Accelerator:
    """The devices that the launcher's configuration names, in the precision of the settings."""
    AcceleratorState._reset_state()  # a kernel trains many stages, each with its own precision
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bf16_is_native())
    process_state()
    # As without shards: autocast chooses each product's precision; gradients are added up and reduced in float32.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    shards = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=policy) if shards else None
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", fsdp_plugin=plugin)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if shards and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # PyTorch shards on CPUs too, by which a recipe can be tried out; accelerate drops the wish there.
        state = accelerator.state
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator


def prepared(
    accelerator: Accelerator, model: nn.Module, groups: list[dict], settings: TrainSettings, compute: Compute
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and its AdamW on the devices, its blocks checkpointed, compiled and sharded as set."""
    blocks = [part for part in model.modules() if isinstance(part, Block)]
    # What FSDP gathers at a time: accelerate reads it here.
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
    return model, wrapped.optimizer  # the wrapper serves float16 and TPUs only


def unwrapped(model: nn.Module) -> Any:
    """The model that was built. Of what `prepared` does, only DDP wraps it: FSDP2 changes it in place."""
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
    """Whether there is a GPU that computes in bf16 itself; older ones emulate it, slowly."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def full_state_dict(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Weights and optimiser state of all processes, by parameters' names, on the CPU: in the first process, else empty.

    All processes call it together. What it holds does not depend on how many there are or how they share the model.
    """
    if not optimizer.state:  # PyTorch would take a step to make moments, and count it
        return {"model": gathered_state_dict(model), "optimizer": {}}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optimizer": moments}


def gathered_state_dict(model: nn.Module) -> dict[str, Any]:
    """The weights of all processes, by parameters' names, on the CPU: in the first process, else empty."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def gathered_weights(model: nn.Module) -> dict[str, Any]:
    """The weights of a model that is sharded, whole in every process, on its device. All processes call it together."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def load_full_state_dict(accelerator: Accelerator, model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Take up what `full_state_dict` gave, which only the first process need have: no moments where no step had been taken."""
    load_full_weights(accelerator, model, state.get("model", {}))
    moments = state.get("optimizer", {})
    [begun] = broadcast_object_list([bool(moments)])
    if not begun:
        optimizer.state.clear()
        return
    set_optimizer_state_dict(model, optimizer, moments, options=_from_the_first(accelerator))


def load_full_weights(accelerator: Accelerator, model: nn.Module, weights: dict[str, Any]) -> None:
    """Weights alone, which only the first process need have."""
    set_model_state_dict(model, weights, options=_from_the_first(accelerator))


def _from_the_first(accelerator: Accelerator) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=accelerator.num_processes > 1)


def finite(model: nn.Module) -> Tensor:
    """Whether all of this process's weights are finite: a bool scalar on the device."""
    parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
    return torch.stack([part.detach().isfinite().all() for part in parts]).all()
