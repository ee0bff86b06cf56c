"""The predicted memory of a step is consistent, and a step can be measured."""

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments.cost_of_dual_masking import ARMS
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import measure
from vmae_lab.lab.stages.cost import parameter_count
from vmae_lab.lab.stages.measure import GIB, MemoryTaken, largest_batch, measure_stage, measure_step, predicted_bytes
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE

TINY = ModelSettings(size="tiny", frames=8, side=24, patch=4)
MASKS = MaskSettings()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("gib", [16.0, 80.0])
@pytest.mark.parametrize("size", ["small", "base", "giant"])
def test_the_largest_batch_fits_and_one_clip_more_does_not(size, gib, half):
    """The largest batch in a table must agree with the prediction that decides whether a step is measured."""
    model = ModelSettings(size=size)
    batch = largest_batch(model, MASKS, gib * GIB, half)
    if batch:
        assert predicted_bytes(model, MASKS, batch, half) <= gib * GIB
    assert predicted_bytes(model, MASKS, batch + 1, half) > gib * GIB
    assert batch > 0 or (size, gib) == ("giant", 16.0), "a giant's weights and moments alone are 16 GiB"


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
def test_a_memory_that_does_not_hold_the_model_holds_no_clip(half):
    state = (18 if half else 16) * parameter_count(TINY)  # float32 weights, gradients, two moments; bf16 copies
    assert largest_batch(TINY, MASKS, state - 1, half) == 0
    assert largest_batch(TINY, MASKS, state, half) > 0, "activations may use the memory of the gradients"


@pytest.mark.parametrize("size", ["micro", "tiny"])
def test_parameters_are_those_of_a_real_model(size):
    model = ModelSettings(size=size, frames=4, side=16, patch=4)
    assert parameter_count(model) == sum(p.numel() for p in VideoMAE(model.dimensions, model.clip).parameters())


def test_a_step_that_cannot_fit_is_not_tried(monkeypatch):
    """Trying could make the machine swap, or kill the notebook's kernel."""

    def refuse(*_arguments):
        raise AssertionError("a process was started")

    monkeypatch.setattr(measure, "worker_pool", refuse)
    monkeypatch.setattr(measure, "device_memory", lambda: 2**20)
    assert measure_step(TINY, MASKS, 1, steps=1) == {"fits": False}


@pytest.mark.parametrize(("taken", "stored"), [(0.5, True), (60.0, False)])
def test_an_out_of_memory_error_is_stored_only_if_no_other_process_uses_the_gpu(pool_that, monkeypatch, taken, stored):
    monkeypatch.setattr(measure, "device_memory", lambda: 139 * GIB)
    pool_that(lambda: {"fits": False, "taken_gib": taken})
    if stored:
        assert measure_step(TINY, MASKS, 8, steps=1) == {"fits": False}
    else:
        with pytest.raises(MemoryTaken, match="60"):
            measure_step(TINY, MASKS, 8, steps=1)


def test_a_killed_measurement_is_not_stored(pool_that, smoke, tmp_path):
    """The stage is not finished, so the next run tries again."""

    def killed():
        raise BrokenProcessPool

    recipe, store = build_recipe({**smoke, "arms": ["small_none"]}, ARMS), RunStore(tmp_path)
    stage = measure_stage(recipe, 1)
    pool_that(killed)
    with pytest.raises(MemoryTaken, match="killed"):
        store.complete(stage, recipe.compute, progress=False)
    assert not store.finished(stage)
    pool_that(lambda: {"fits": True, "seconds_per_step": 1.0, "peak_gib": 0.1})
    assert store.complete(stage, recipe.compute, progress=False)["fits"]


@pytest.fixture
def pool_that(monkeypatch):
    """Replace the process that measures by a function."""

    def replace(call):
        def submit(*_arguments):
            future = Future()
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
            return future

        monkeypatch.setattr(measure, "worker_pool", lambda _count: nullcontext(SimpleNamespace(submit=submit)))

    return replace


@pytest.mark.parametrize("native", [False, True])
def test_bf16_is_predicted_only_for_a_gpu_that_supports_it(monkeypatch, native):
    """A GPU that emulates bf16 trains in float32, so it is measured in float32."""
    predicted = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(measure, "device_memory", lambda: 0)
    monkeypatch.setattr(measure, "predicted_bytes", lambda *arguments: predicted.append(arguments[-1]) or GIB)
    assert measure_step(TINY, MASKS, 1, steps=1) == {"fits": False}
    assert predicted == [native]


@pytest.mark.slow
def test_a_measured_step_has_a_time_and_a_memory(monkeypatch):
    """The caller uses more memory than the step, which must not be counted for the process that it starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the process that is started: it reads this, not our threads
    ballast = np.ones(GIB // 8)
    measured = measure_step(TINY, MASKS, 8, steps=2)
    assert ballast[0] == 1
    assert set(measured) == {"fits", "seconds_per_step", "peak_gib"}
    assert measured["fits"]
    assert 0 < measured["seconds_per_step"] < 60
    assert 0 < measured["peak_gib"] < 1
