"""Export a classifier to one file for other programs: ONNX, or PyTorch's ExportedProgram.

The written file is run and compared with the model before it is kept.
"""

import json
import os
import tempfile
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.vit import IMAGENET_MEAN, IMAGENET_STD
from vmae_lab.utils.atomic_io import make_folder, storing_in
from vmae_lab.utils.errors import UserError

Form = Literal["onnx", "torch_export"]
SUFFIXES: dict[Form, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE = 1e-4  # largest difference of logits, relative to the largest logit if that is above 1
BATCHES = (1, 3)  # of the check; the model is traced with another one
CONFIG = "config.json"  # name of the model's config in the metadata of a file
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONE_FILE = 2**31 - 2**27  # bytes of weights; an ONNX file cannot have 2 GiB, so larger weights go to a second file


class ExportError(UserError, RuntimeError):
    """An export is impossible here, or the file computes something else than the model."""


class UintClassifier(nn.Module):
    """The classifier as it is exported: uint8 clips `(B, C, T, H, W)` -> logits `(B, classes)`.

    It normalizes whole clips. `VideoClassifier` normalizes patches, with the same result, and has a fast path for uint8 that
    cannot be exported.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: VideoClassifier):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None, None])

    def forward(self, video: Tensor) -> Tensor:
        return self.model((video / 255 - self.mean) / self.std)


def export_classifier(model: VideoClassifier, path: Path, form: Form) -> float:
    """Write a classifier to a file, and return the largest difference between the file's logits and the model's.

    The input `video` is uint8 `(batch, C, T, H, W)` of any batch size, the output `logits` float32 `(batch, classes)`. The
    metadata contains the model's config as JSON, with the names of the classes if they are known. The file replaces an older
    one only after the check. ONNX weights of about 2 GiB or more are in a second file, `<path>.data`.

    Raises ExportError if a package is missing, or if the logits differ by more than TOLERANCE; StorageError.
    """
    missing = [name for name in ONNX_PACKAGES if form == "onnx" and not find_spec(name)]
    if missing:
        raise ExportError(f"ONNX needs packages that are not installed ({', '.join(missing)}): pip install 'vmae-lab[export]'")
    model = deepcopy(model).cpu().float().eval()
    write, run = (_write_onnx, _onnx_runner) if form == "onnx" else (_write_torch, _torch_runner)
    make_folder(path.parent)
    with storing_in(path.parent), tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        written = Path(folder, path.name)
        write(model, written)
        difference = _check(model, run(written), path)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the weights before the file that refers to them
            os.replace(file, path.parent / file.name)
    return difference


def _clips(model: VideoClassifier, batch: int) -> Tensor:
    """Return random clips, always the same: uint8 `(batch, C, T, H, W)`."""
    shape = (batch, model.clip.channels, model.clip.frames, model.clip.height, model.clip.width)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _write_onnx(model: VideoClassifier, path: Path) -> None:
    program = torch.onnx.export(
        UintClassifier(model).eval(), (_clips(model, 2),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["video"], output_names=["logits"], verbose=False,
    )  # fmt: skip
    assert program is not None  # the type allows None for the older exporter
    program.model.metadata_props[CONFIG] = _config(model)
    size = sum(weights.numel() * weights.element_size() for weights in model.state_dict().values())
    program.save(path, external_data=size > ONE_FILE)


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda video: torch.from_numpy(session.run(["logits"], {"video": video.numpy()})[0])


def _write_torch(model: VideoClassifier, path: Path) -> None:
    program = torch.export.export(
        UintClassifier(model).eval(), (_clips(model, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )  # fmt: skip
    torch.export.save(program, path, extra_files={CONFIG: _config(model)})


def _torch_runner(path: Path) -> Callable[[Tensor], Tensor]:
    module: Any = torch.export.load(path).module()
    return lambda video: module(video)


def _config(model: VideoClassifier) -> str:
    return json.dumps(model.config.model_dump(mode="json"))


@torch.no_grad()
def _check(model: VideoClassifier, run: Callable[[Tensor], Tensor], path: Path) -> float:
    """Return the largest difference of logits for batches of several sizes. Raises ExportError if it is too large."""
    largest = 0.0
    for batch in BATCHES:
        video = _clips(model, batch)
        expected = model(video)
        difference = (run(video) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # also if it is not a number
            raise ExportError(
                f"the exported model's logits differ by {difference:.2g} from the model's, for a batch of {batch}; {path} was "
                "not written. Try another version of torch or of onnxruntime"
            )
        largest = max(largest, difference)
    return largest
