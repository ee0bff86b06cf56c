"""Fixtures shared by the tests of training."""

from collections.abc import Callable

import pytest

from vmae_lab.data.dataset import Clips, load_clips
from vmae_lab.lab.config import Recipe, build_recipe

FINETUNING = {
    "steps": 8, "batch_size": 4, "drop_path": 0.2, "dropout": 0.2, "repeats": 2, "ema": 0.8,
    "mix": {"mixup": 0.8, "cutmix": 1.0}, "augment": {"erase": 0.5}, "readout": "mean",
}  # fmt: skip


@pytest.fixture(scope="module")
def finetuning_recipe(smoke) -> Callable[..., Recipe]:
    """Build a recipe whose fine-tuning has all options, with changes of its settings."""

    def make(**changes) -> Recipe:
        override = {f"evaluate.finetune.{name}": value for name, value in {**FINETUNING, **changes}.items()}
        return build_recipe({**smoke, "arms": ["none"], "override": override})

    return make


@pytest.fixture(scope="module")
def clips(home, recipe) -> Clips:
    """The training clips of the module's recipe."""
    return load_clips(recipe.data, "train")
