"""Parameter groups and learning rate schedule of the paper's recipes."""

import math
from collections.abc import Collection

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Return timm's parameter groups for AdamW.

    Biases, 1-D parameters and those in `model.no_weight_decay()` have no weight decay.

    If `layer_decay` is below 1, each group has an `lr_scale` of `layer_decay ** (number of layers above)`.
    """
    not_decayed: Collection[str] = getattr(model, "no_weight_decay", set)()
    if layer_decay == 1.0:
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=not_decayed)
    return param_groups_layer_decay(model, weight_decay, no_weight_decay_list=not_decayed, layer_decay=layer_decay)


def cosine_schedule(step: int, steps: int, warmup: int, start: float, peak: float, end: float) -> float:
    """Return the learning rate at a step: linear warm-up from `start` to `peak` in its last step, then half a cosine to `end`.

    Equal to the official schedule. A pure function of the step, so there is no scheduler state to save.
    """
    if step < warmup:
        return peak if warmup == 1 else start + (peak - start) * step / (warmup - 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * progress))
