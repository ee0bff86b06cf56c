"""Seeds and random generators. Every random draw is a pure function of (seed, purpose, position)."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def derive(seed: int, purpose: str, *position: int) -> int:
    """Return a 63-bit seed for a purpose and a position (epoch, step, sample). Seeds are independent of each other."""
    key = "/".join(map(str, (seed, purpose, *position)))
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, purpose, *position))


def numpy_generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, purpose, *position))


def reseed(device: torch.device, seed: int) -> None:
    """Seed the global random generators of a device."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)  # also all other devices, which takes 0.3 ms


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed PyTorch's global generators in the block, for library code that takes no generator (initial weights, drop path)."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive(seed, purpose))
        yield


@contextmanager
def library_draws(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and PyTorch in the block, for augmentation by a library."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too, without restoring it
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
