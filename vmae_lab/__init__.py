"""vmae_lab: a reproducible research workbook of VideoMAE V2, dual-masked video masked autoencoders.

The names in `__all__` are public: what a script of yours may count on. They are loaded when they are first used, so that
`import vmae_lab` is quick. Everything else can be imported from its module, and may be renamed from one version to the next.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmae_lab.evaluation.predict import predict, preprocess, video_features
    from vmae_lab.lab.config import Recipe, RecipeError, build_recipe
    from vmae_lab.lab.experiments import plan_notebook
    from vmae_lab.lab.run_store import RunStore
    from vmae_lab.masking import MaskSettings, draw_masks, running_cell, tube
    from vmae_lab.models.classifier import VideoClassifier
    from vmae_lab.models.sizes import SIZES, ModelSettings
    from vmae_lab.models.videomae import VideoMAE

__all__ = [
    "SIZES",
    "MaskSettings",
    "ModelSettings",
    "Recipe",
    "RecipeError",
    "RunStore",
    "VideoClassifier",
    "VideoMAE",
    "__version__",
    "build_recipe",
    "draw_masks",
    "plan_notebook",
    "predict",
    "preprocess",
    "running_cell",
    "tube",
    "video_features",
]

__version__ = version("vmae-lab")

_MODULES = {
    "evaluation.predict": ("predict", "preprocess", "video_features"),
    "lab.config": ("Recipe", "RecipeError", "build_recipe"),
    "lab.run_store": ("RunStore",),
    "lab.experiments": ("plan_notebook",),
    "masking": ("MaskSettings", "draw_masks", "running_cell", "tube"),
    "models.classifier": ("VideoClassifier",),
    "models.sizes": ("SIZES", "ModelSettings"),
    "models.videomae": ("VideoMAE",),
}


def __getattr__(name: str) -> Any:
    """A public name, loaded from its module when it is first asked for (PEP 562)."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; public are {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if os.environ.get("VMAE_LAB_POOL_OF") == str(_parent := os.getppid()):
    # A pool's worker: it ends with its parent already while it imports what it needs, which may take longer than 10 s.
    from vmae_lab.utils.processes import end_when

    end_when(lambda: os.getppid() != _parent)
