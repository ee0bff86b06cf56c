"""Random weights for tests of checkpoints."""

import torch


def randomized(model, k_biases=True):
    """Give every weight random values large enough to reveal wrong names.

    Without `k_biases`, the biases of the keys stay zero, since some layouts do not have them.
    """
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.ndim == 1 else 0.0, std=0.2, generator=generator)
        if name.endswith("qkv.bias") and not k_biases:
            parameter.data.chunk(3)[1].zero_()
    return model.eval()
