"""What slows training on GPUs, counted by benchmarks/gpu_readiness.py: collectives, graph breaks, synchronizations."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def counts(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu_readiness")


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("sharded", "expected"),
    [
        (False, {"allreduce": 2}),  # all gradients of this small model, and the weight of the losses
        (True, {"reduce_scatter_base": 7, "allreduce": 1}),  # the gradients of each sharded unit
    ],
)
def test_collectives_of_a_step_with_four_micro_batches(counts, sharded, expected):
    found = counts.launched(sharded)
    assert {name: found[name] for name in expected} == {name: count * counts.STEPS for name, count in expected.items()}
