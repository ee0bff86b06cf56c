"""vmae_lab: a reproducible research workbook of VideoMAE V2, dual-masked video masked autoencoders.

The names in `__all__` are the public API. They are loaded on first use, so that `import vmae_lab` is fast. Everything else can
be imported from its module, but may be renamed in a later version.
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
    """Load a public name from its module on first use (PEP 562)."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; the public names are {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if os.environ.get("VMAE_LAB_POOL_OF") == str(_parent := os.getppid()):
    # This process is a worker of a pool. It must end with its parent, also during its imports, which may take over 10 s.
    from vmae_lab.utils.processes import end_when

    end_when(lambda: os.getppid() != _parent)
