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


def test_a_step_has_no_synchronization(counts):
    assert counts.synchronizations() == 0
    assert counts.synchronizations(by_masks=True) == 6, "the count works"


@pytest.mark.slow
def test_forward_is_one_graph(counts):
    assert counts.graphs() == (1, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("sharded", "precision", "expected"),
    [
        (False, "fp32", {"allreduce": 3, "broadcast": 2}),  # of all gradients; of the order of the buckets, once
        (True, "bf16", {"reduce_scatter_base": 3 * 7}),  # of the gradients of each sharded unit
    ],
)
def test_collectives_of_three_steps_with_four_micro_batches(counts, sharded, precision, expected):
    found = counts.launched(sharded, precision)
    gathered = found.pop("allgather_base", None)
    assert {name: calls for name, (calls, _) in found.items()} == expected
    if gathered:
        weights = sum(weight.numel() for weight in counts.pretraining().build().parameters())
        bytes_per_weight = gathered[1] / weights / (counts.STEPS * counts.ACCUMULATION)
        assert bytes_per_weight < 2 * 2 * 1.01, "forward and backward gather bf16; a unit that stays gathered is gathered once"
