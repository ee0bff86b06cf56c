"""Draws of libraries are seeded inside the block. Afterwards, all generators are restored."""

import random

import numpy as np
import torch

from vmae_lab.utils.seeding import library_draws, reseed


def test_draws_of_libraries_depend_on_the_seed_and_generators_are_restored():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with library_draws(2**40 + 3):
        drawn = random.random(), np.random.random(), torch.rand(3)
    assert drawn[:2] == (random.Random(2**40 + 3).random(), np.random.RandomState((2**40 + 3) % 2**32).random())
    assert torch.equal(drawn[2], torch.rand(3, generator=torch.Generator().manual_seed(2**40 + 3)))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_draws_on_the_cpu_leave_the_gpus_alone(monkeypatch):
    """If a GPU's generator were seeded here, the surrounding training would continue from that seed."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with library_draws(5):
        torch.rand(1)
    assert seeded == []


def test_reseeding_for_the_cpu_is_manual_seed():
    with torch.random.fork_rng([]):
        reseed(torch.device("cpu"), 2**62 + 7)
        found = torch.rand(5)
        torch.manual_seed(2**62 + 7)
        assert torch.equal(found, torch.rand(5))
