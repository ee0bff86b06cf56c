"""No task reads a value from the device during a step: the process would wait for the device each time."""

import pytest
import torch
from test_draws import TASKS

from vmae_lab.training.dataloader import BatchParts

META = torch.device("meta")


def test_the_meta_device_has_no_values_to_read():
    """So every operation that would wait for a GPU fails on it."""
    mask = torch.ones(3, dtype=torch.bool, device=META)
    for read in (mask.sum().item, mask.nonzero, lambda: torch.ones(3, device=META)[mask]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


@pytest.mark.parametrize("name", TASKS)
def test_loss_and_gradients_read_no_value_from_the_device(name):
    task = TASKS[name]()
    batch = BatchParts(task.training_batch, range(task.settings.batch_size))[0]
    loss = task.loss(task.build().to(META), batch, META)
    loss.backward()
    assert loss.device == META
