"""Random draws stay the same: purpose strings, clip orders, masks, first batches, initial weights, two steps of each training.

A changed draw changes results under an unchanged stage key, so a refactoring must not change one. The expected values are in
frozen_draws.json. Numbers that are computed from integers are compared exactly. Others are compared by statistics: the
arithmetic of another machine differs in the last bits, and interpolation of pixels by up to one level, so bit-equality cannot
hold there. Weights and losses agree to 1e-4.

Run `python tests/test_draws.py` to write frozen_draws.json again. Do this only if a draw was changed on purpose. Then give the
stages that it concerns a new key as well, because their finished runs were made with the old draw.
"""

import ast
import hashlib
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import vmae_lab
from vmae_lab.data.activitynet import Annotations, UntrimmedSettings
from vmae_lab.data.ava import SceneSettings
from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.motionworld import MotionworldSettings
from vmae_lab.data.motionworld.dataset import render_clip
from vmae_lab.data.motionworld.scenes import SceneWorldSettings, render_scene
from vmae_lab.data.motionworld.sources import SOURCES
from vmae_lab.data.motionworld.untrimmed import UntrimmedWorldSettings, render_untrimmed
from vmae_lab.data.samplers import EpochOrder, MixtureOrder, sample_order
from vmae_lab.data.transforms import FinetuneAugment
from vmae_lab.evaluation.probes import ProbeSettings, labelled_draws
from vmae_lab.masking import MASKS, MaskSettings, draw_masks, running_cell_maps
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.training.loop import train
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.settings import Compute, TrainSettings
from vmae_lab.training.tasks.attentive_probe import AttentiveProbeTask
from vmae_lab.training.tasks.detect import DetectSettings, DetectTask
from vmae_lab.training.tasks.distill import DistillSettings, DistillTask, Teacher
from vmae_lab.training.tasks.finetune import FinetuneSettings, FinetuneTask, MixSettings
from vmae_lab.training.tasks.localise import LocaliseSettings, LocaliseTask
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.seeding import derive, library_draws, numpy_generator, seeded, torch_generator

FROZEN = Path(__file__).with_name("frozen_draws.json")
TOLERANCES = {"values": 1e-4, "pixels": 1e-2}  # relative to the largest number of a statistic
SEED = 3
MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
STEPS = {"steps": 2, "batch_size": 4, "lr": 1e-3, "precision": "fp32"}


def batch_of(task: Any, step: int, rows: range) -> dict[str, Tensor]:
    """One process's rows of a training step's batch."""
    return task.batch(step, rows)


# ---------------------------------------------------------------------------------------------------------------------------
# Purposes: the second argument of whatever seeds a generator.

DRAWING = {"derive", "torch_generator", "numpy_generator", "seeded"}
ORDERS = {"EpochOrder": 2}  # passes a purpose on: number of the argument
PURPOSES = [
    "a head of its own",
    "actor {}",
    "attentive probe",
    "bootstrap over videos",
    "check",
    "clips of the map",
    "clips to look at",
    "crop",
    "decoder mask",
    "detection order",
    "drop path",
    "encoder mask",
    "fine-tuning augmentation",
    "fine-tuning crop",
    "fine-tuning order",
    "fine-tuning segments",
    "guessing",
    "held-out {} mask",
    "initial weights",
    "labelled clips",
    "leakage {}",
    "localisation order",
    "look {}",
    "mixup and cutmix",
    "motion {}",
    "order",
    "order in {}",
    "order of sources",
    "people trained on",
    "person detector {}",
    "picture {} mask",
    "probe order",
    "queries",
    "random pixels",
    "scene augmentation",
    "scene {}",
    "scenes to look at",
    "shards",
    "shuffled labels",
    "stretch of a video",
    "tour {} mask",
    "untrimmed actions {}",
    "untrimmed motion {}",
    "untrimmed shots {}",
    "untrimmed times {}",
    "videos to look at",
    "weights that the teacher's replace",
    "{} mask",
    "{}, stand-in {}",
]


def purposes(package: Path) -> set[str]:
    """Every purpose in the source of a package; `{}` stands for each field of an f-string."""
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                found |= set(_defaults(node))
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", None))
                place = 1 if name in DRAWING else ORDERS.get(name)
                given = [one.value for one in node.keywords if one.arg == "purpose"] + node.args[place:][:1] if place else []
                found |= {_text(one, file) for one in given} - {None}
    return found


def _defaults(function: ast.FunctionDef) -> Iterator[str]:
    """Default purposes."""
    arguments = function.args.args
    for argument, default in zip(reversed(arguments), reversed(function.args.defaults), strict=False):
        if argument.arg == "purpose":
            yield ast.literal_eval(default)


def _text(purpose: ast.expr, file: Path) -> str | None:
    """A purpose as text; None if it is a `purpose` that was passed on."""
    if isinstance(purpose, ast.Constant) and isinstance(purpose.value, str):
        return purpose.value
    if isinstance(purpose, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in purpose.values)
    if getattr(purpose, "attr", getattr(purpose, "id", None)) == "purpose":
        return None
    raise AssertionError(f"{file}:{purpose.lineno}: a purpose is a string or an f-string; got {ast.unparse(purpose)}")


def test_purposes_stay_the_same():
    assert sorted(purposes(Path(vmae_lab.__file__).parent)) == PURPOSES


# ---------------------------------------------------------------------------------------------------------------------------
# What is stored of tensors.

WAVES = torch.cos(torch.arange(65521, dtype=torch.float64).square() * torch.tensor([[0.1], [0.2], [0.3]]))


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor of integers, with its type and shape."""
    values = np.ascontiguousarray(tensor.numpy()).astype(tensor.numpy().dtype.newbyteorder("<"))
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(values.tobytes()).hexdigest()}".removeprefix("torch.")


def statistic(tensors: Sequence[Tensor]) -> list[float]:
    """Root mean square of all values, and their products with three waves, which also depend on the values' order."""
    count, squares, products = sum(one.numel() for one in tensors), 0.0, torch.zeros(len(WAVES), dtype=torch.float64)
    for one in tensors:
        for part in one.detach().double().flatten().split(WAVES.shape[1]):
            squares += float(part.square().sum())
            products += WAVES[:, : len(part)] @ part
    found = [math.sqrt(squares / count), *(products / math.sqrt(count / 2)).tolist()]
    return [float(f"{value:.6g}") for value in found]


def stored(tensor: Tensor, interpolated: bool = False) -> Any:
    """The digest of integers; the statistic of floats, and of pixels that were interpolated."""
    if tensor.is_floating_point():
        return {"shape": list(tensor.shape), "values": statistic([tensor])}
    if interpolated and tensor.dtype == torch.uint8:
        return {"shape": list(tensor.shape), "pixels": statistic([tensor])}
    return digest(tensor)


def weights(model: nn.Module, trained: bool = False) -> dict[str, Any]:
    """The statistic of every weight, those of the same name in all blocks together.

    Biases of keys are left out after training: their gradient is zero but for rounding, which Adam scales up to whole steps.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, value in model.state_dict().items():
        if trained and name.endswith("qkv.bias"):
            value = torch.cat([value.chunk(3)[0], value.chunk(3)[2]])
        elif trained and name.endswith("kv.bias"):
            value = value.chunk(2)[1]
        elif trained and name.endswith("qkv.1.bias"):
            continue
        groups.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(value)
    return {name: {"shapes": _shapes(some), "values": statistic(some)} for name, some in groups.items()}


def _shapes(tensors: Sequence[Tensor]) -> str:
    shapes = {tuple(one.shape) for one in tensors}
    return f"{len(tensors)} of {' and '.join(map(str, sorted(shapes)))}"


def differences(expected: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where two stored values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            yield f"{where}: {sorted(expected.keys() ^ found.keys())} stand on one side only"
        for name in expected.keys() & found.keys():
            tolerance = TOLERANCES.get(name)
            if tolerance is None:
                yield from differences(expected[name], found[name], f"{where} / {name}")
            elif not np.allclose(found[name], expected[name], rtol=0, atol=tolerance * np.abs(expected[name]).max()):
                yield f"{where}: {found[name]} instead of {expected[name]}"
    elif expected != found:
        yield f"{where}: {found} instead of {expected}"


# ---------------------------------------------------------------------------------------------------------------------------
# Data by formula.


def pixels(index: int, frames: Sequence[int], side: int = 32) -> Tensor:
    """A clip whose pixels tell the video, the frame and the place: uint8 `(3, T, side, side)`."""
    colour, frame = torch.arange(3).view(3, 1, 1, 1), torch.tensor(list(frames)).view(1, -1, 1, 1)
    row, column = torch.arange(side).view(1, 1, -1, 1), torch.arange(side)
    return ((37 * index + 61 * colour + 11 * frame + row * (2 + colour) + 5 * column) % 256).to(torch.uint8)


class FormulaClips:
    """Videos of 40 frames in three sources, with labels."""

    def __init__(self) -> None:
        self.sources = ["digits"] * 10 + ["sticks"] * 4 + ["camera"] * 2
        self.labels = np.arange(16) % 8

    def __len__(self) -> int:
        return 16

    def video(self, index: int, choose: Callable[[int], Sequence[int]], short_side: int | None = None) -> Tensor:
        return pixels(index, choose(40))


class FormulaScenes:
    """Nine key frames with one to three people."""

    def __init__(self) -> None:
        self.actions = {number: f"action {number}" for number in range(1, 9)}
        self.labelled = list(range(9))

    def clip(self, index: int, frames: int, stride: int, short_side: int, keep: bool = False) -> Tensor:
        return pixels(index, range(0, frames * stride, stride))

    def labelled_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        boxes = [[0.1, 0.2, 0.5, 0.75], [0.4, 0.1, 0.8, 0.6], [0.3, 0.5, 0.8, 0.8]][: index % 3 + 1]
        labels = (torch.arange(len(boxes))[:, None] + index) % 8 == torch.arange(8)
        return torch.tensor(boxes), labels


class FormulaFeatures:
    """Features of six videos, 8 wide."""

    def __init__(self) -> None:
        self.width, self.lengths = 8, {f"video {number}": 40 + 9 * number for number in range(6)}

    def read(self, video: str, start: int = 0, length: int | None = None) -> Tensor:
        stop = self.lengths[video] if length is None else start + length
        places = torch.arange(start, stop, dtype=torch.float64)[:, None] * (1 + torch.arange(self.width))
        return torch.sin(places / 7 + list(self.lengths).index(video)).float()

    def steps(self, seconds: np.ndarray, rate: float) -> np.ndarray:
        return seconds * rate


class FormulaVideos:
    """When which action happens in the videos of some features."""

    def __init__(self, features: FormulaFeatures) -> None:
        self.names = list(features.lengths)
        videos = [{"video": name, "duration": length / 10, "fps": 10.0} for name, length in features.lengths.items()]
        rows = [
            {"video": name, "start": start, "end": start + 0.5 + number / 4, "label": ("jump", "run", "throw")[number % 3]}
            for number, name in enumerate(self.names)
            for start in (0.6, 2.2)
        ]
        self.annotations = Annotations(pd.DataFrame(videos), pd.DataFrame(rows), ("jump", "run", "throw"))


# ---------------------------------------------------------------------------------------------------------------------------
# Tasks, each small.


def data_of(*scales: float) -> DataSettings:
    """Crops of half of a frame's 32 pixels are 16 pixels wide, and are not interpolated."""
    return DataSettings(motionworld=MotionworldSettings(), resident_side=32, stride=2, crop_scales=scales or (0.5,), mixing=0.5)


def pretrain_task(*scales: float, encoder: str = "tube", decoder: str = "running_cell", **settings: Any) -> PretrainTask:
    masks = MaskSettings(encoder=encoder, encoder_ratio=0.75, decoder=decoder, decoder_ratio=0.5 if decoder != "none" else 0)
    return PretrainTask(MODEL, masks, PretrainSettings(**STEPS, **settings), data_of(*scales), FormulaClips(), SEED)


def finetune_task(*scales: float, **settings: Any) -> FinetuneTask:
    given = FinetuneSettings(**{**STEPS, "drop_path": 0.0, **settings})
    return FinetuneTask(MODEL, given, data_of(*scales), FormulaClips(), list(range(15)), None, SEED)


def distill_task() -> DistillTask:
    teacher_model = ModelSettings(size="tiny", frames=4, side=16, patch=4)
    with seeded(SEED, "initial weights"):
        teacher = VideoClassifier(teacher_model.dimensions, teacher_model.clip, 8, init_scale=1.0)
    given = DistillSettings(**STEPS, drop_path=0.0, feature_weight=1.0)
    state = Teacher(teacher.state_dict(), teacher_model)
    return DistillTask(MODEL, given, data_of(), FormulaClips(), list(range(16)), None, state, SEED)


def probe_task() -> AttentiveProbeTask:
    tokens = torch.sin(torch.arange(20 * 32 * 64, dtype=torch.float64) * 0.7).float().view(20, 32, 64)
    return AttentiveProbeTask(tokens, torch.arange(20) % 8, 2, 8, TrainSettings(**STEPS), SEED)


def detect_task(side: int = 16, **augment: Any) -> DetectTask:
    scenes = SceneSettings(motionworld=SceneWorldSettings())
    own = {"stride": 2, "drop_path": 0.0, "head_init_scale": 1.0, "side": side, "augment": {"short_side": (16, 20), **augment}}
    return DetectTask(MODEL, DetectSettings(scenes=scenes, **STEPS, **own), FormulaScenes(), None, SEED)


def detect_task_without_crops() -> DetectTask:
    """No box reaches the frame's edge. There RoIAlign's bins are equal but for rounding, which decides on their maximum."""
    still = {"flip": 0.0, "colour": (0, 0, 0, 0), "outward": (0, 0), "inward": (0, 0)}
    return detect_task(side=32, short_side=(32, 32), **still)


def localise_task(drop_path: float = 0.0) -> LocaliseTask:
    shape = {"width": 32, "heads": 2, "window": 9, "stem_layers": 1, "levels": 3, "head_layers": 1}
    videos = UntrimmedSettings(motionworld=UntrimmedWorldSettings())
    given = LocaliseSettings(videos=videos, shape=shape, drop_path=drop_path, longest=60, **STEPS)
    features = FormulaFeatures()
    return LocaliseTask(given, FormulaVideos(features), features, SEED)


EVERYTHING: dict[str, Any] = {  # of fine-tuning's augmentation
    "repeats": 2, "sampling": "sparse", "mix": MixSettings(), "augment": FinetuneAugment(erase=0.5),
}  # fmt: skip
TASKS: dict[str, Callable[[], Any]] = {
    "pretrain": pretrain_task,
    "pretrain, no decoder mask": lambda: pretrain_task(decoder="none"),
    "pretrain, another clip's target": lambda: pretrain_task(target_from="other_clip", encoder="random", decoder="random"),
    "finetune": finetune_task,
    "distill": distill_task,
    "attentive probe": probe_task,
    "detect, no crops": detect_task_without_crops,
    "localise": localise_task,
}
INTERPOLATED: dict[str, Callable[[], Any]] = {
    "pretrain, crops of several sizes": lambda: pretrain_task(1.0, 0.75, 0.5, repeats=2),
    "finetune, crops of several sizes": lambda: finetune_task(1.0, 0.75, 0.5),
    "finetune, everything": lambda: finetune_task(**EVERYTHING),
    "detect": detect_task,
}
# Without MKL PyTorch's dropout and drop path draw other numbers.
DROPPING: dict[str, Callable[[], Any]] = {
    "finetune, dropout and drop path": lambda: finetune_task(drop_path=0.5, dropout=0.5, ema=0.5),
    "localise, drop path": lambda: localise_task(drop_path=0.5),
}

# ---------------------------------------------------------------------------------------------------------------------------
# What is frozen, case by case. Each returns a dict that JSON can hold.


def generators() -> dict[str, Any]:
    with seeded(SEED, "purpose"):
        initial = torch.randint(2**31, (3,)).tolist()
    with library_draws(SEED):
        library = [torch.randint(2**31, (3,)).tolist(), np.random.randint(2**31, size=3).tolist()]
    return {
        "derive": [derive(SEED, "purpose"), derive(SEED, "purpose", 1), derive(SEED, "purpose", 1, 2), derive(4, "other")],
        "torch_generator": torch.randperm(16, generator=torch_generator(SEED, "purpose", 1)).tolist(),
        "numpy_generator": numpy_generator(SEED, "purpose", 1).permutation(16).tolist(),
        "seeded": initial,
        "library_draws": library,
    }


def orders() -> dict[str, Any]:
    sources, weights = FormulaClips().sources, {"digits": 1.0, "sticks": 2.0, "camera": 1.0}
    streams = {
        "EpochOrder": EpochOrder(7, SEED),
        "EpochOrder of a purpose": EpochOrder(7, SEED, "fine-tuning order"),
        "MixtureOrder": MixtureOrder(sources, 0.5, SEED),
        "sample_order by size": sample_order(sources, 1.0, SEED),
        "sample_order mixed": sample_order(sources, 0.0, SEED),
        "sample_order by weight": sample_order(sources, 1.0, SEED, weights),
    }
    found = {name: [order[position] for position in range(40)] for name, order in streams.items()}
    stand_ins = {f"{name}, stand-ins": [order.stand_in(9, n) for n in range(1, 9)] for name, order in streams.items()}
    labelled = labelled_draws(np.arange(40) % 4, ProbeSettings(labels=8, draws=2), SEED)
    return {**found, **stand_ins, "labelled clips": [rows.tolist() for rows in labelled]}


def masks() -> dict[str, Any]:
    grids = {"8x14x14": (8, 14, 14), "4x4x4": (4, 4, 4)}
    found = {
        f"{kind} on {name}": digest(mask(grid, 0.5, 5, torch_generator(SEED, "encoder mask", 0)))
        for kind, mask in MASKS.items()
        for name, grid in grids.items()
    }
    maps = {f"running_cell_maps {ratio}": digest(running_cell_maps((8, 14, 14), ratio)) for ratio in (0.25, 0.5, 0.75)}
    pairs = {
        "default": MaskSettings(),
        "no decoder mask": MaskSettings(decoder="none", decoder_ratio=0),
        "pruned": MaskSettings(prune=True),
        "random and frame": MaskSettings(encoder="random", decoder="frame"),
    }
    for name, settings in pairs.items():
        both = (torch_generator(SEED, f"{side} mask", 0) for side in ("encoder", "decoder"))
        found[f"both, {name}"] = [digest(mask) for mask in draw_masks(settings, (8, 14, 14), 5, *both)]
    return {**found, **maps}


def embedded_data() -> dict[str, Any]:
    """The first clips, scenes and untrimmed videos that the embedded data sets draw."""
    clips, scenes = MotionworldSettings(side=32), SceneWorldSettings(side=32)
    untrimmed = UntrimmedWorldSettings(side=16, seconds=(12.0, 16.0))
    found: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        for source in SOURCES:
            frames, boxes = render_clip(source, "left", clips, split, 0)
            found[f"{split}: {source}"] = _seen(frames, boxes)
        frames, boxes, actions = render_scene(scenes, split, 0)
        found[f"{split}: scene"] = {**_seen(frames, boxes), "actions": [list(some) for some in actions]}
        frames, segments = render_untrimmed(untrimmed, split, 0)
        found[f"{split}: untrimmed"] = {**_seen(frames), "actions": [[one.start, one.end, one.action] for one in segments]}
    return found


def _seen(frames: np.ndarray, boxes: np.ndarray | None = None) -> dict[str, Any]:
    found = {"frames": stored(torch.from_numpy(frames), interpolated=True)}
    return found if boxes is None else {**found, "boxes": stored(torch.from_numpy(boxes))}


def batches(task: Any, interpolated: bool) -> dict[str, Any]:
    """The first batch of a process that has all rows, and the second batch's last rows."""
    size = task.settings.batch_size
    parts = {"step 0": batch_of(task, 0, range(size)), "step 1, last rows": batch_of(task, 1, range(size - 2, size))}
    return {
        f"{part}: {name}": stored(tensor, interpolated) for part, batch in parts.items() for name, tensor in batch.items()
    }  # fmt: skip


def built(make: Callable[[], nn.Module]) -> dict[str, Any]:
    with seeded(SEED, "initial weights"):
        return weights(make())


def model_of(size: str) -> VideoMAE:
    patch = SIZES[size].patch
    return VideoMAE(SIZES[size], ModelSettings(size=size, frames=4, side=4 * patch).clip)


def shapes_of(size: str) -> dict[str, Any]:
    """Names and shapes of a model too large to draw here."""
    with torch.device("meta"):
        model = model_of(size)
    return {
        name: list(value.shape) for name, value in model.state_dict().items() if ".blocks." not in name or ".blocks.0." in name
    }


def head_of_its_own() -> dict[str, Any]:
    """What `from_pretrained` draws for a class head that a file does not hold."""
    with seeded(SEED, "initial weights"):
        model = VideoMAE(MODEL.dimensions, MODEL.clip)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(Path(folder))
        return weights(VideoClassifier.from_pretrained(folder, classes=8, seed=SEED))


def two_steps(task: Any) -> dict[str, Any]:
    """Losses of both steps, and the weights after them."""
    with tempfile.TemporaryDirectory() as folder:
        compute = Compute(tensorboard=False, log_every=1)
        model = train(task, Path(folder), compute, progress=False).model
        losses = [row["loss"] for row in read_metrics(Path(folder))]
    return {"losses": {"values": losses}, **weights(model, trained=True)}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "generators": generators,
    "orders": orders,
    "masks": masks,
    "embedded data": embedded_data,
    **{f"batches: {name}": lambda make=make: batches(make(), False) for name, make in TASKS.items()},
    **{f"batches: {name}": lambda make=make: batches(make(), True) for name, make in INTERPOLATED.items()},
    **{
        f"initial weights: {size}": lambda size=size: built(lambda: model_of(size))
        for size in ("micro", "tiny", "mini", "small", "base")
    },
    **{f"shapes: {size}": lambda size=size: shapes_of(size) for size in ("large", "huge", "giant")},
    **{
        f"initial weights: {readout} head": lambda readout=readout: built(finetune_task(readout=readout).build)
        for readout in ("mean", "flat", "attentive")
    },
    **{
        f"initial weights: {name}": lambda name=name: built(TASKS[name]().build)
        for name in ("pretrain", "distill", "attentive probe", "detect, no crops", "localise")
    },
    "initial weights: a head of its own": head_of_its_own,
    **{f"two steps: {name}": lambda make=make: two_steps(make()) for name, make in {**TASKS, **DROPPING}.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_draws_stay_the_same(case):
    if case.startswith("two steps") and torch.cuda.is_available():
        pytest.skip("trains on the GPU, whose arithmetic is another")
    if case.removeprefix("two steps: ") in DROPPING and not torch.backends.mkl.is_available():
        pytest.skip("PyTorch without MKL draws other numbers for dropout")
    expected = json.loads(FROZEN.read_text(encoding="utf-8"))[case]
    found = list(differences(expected, CASES[case]()))
    assert not found, "\n".join(found)


def test_every_frozen_case_is_checked():
    assert list(json.loads(FROZEN.read_text(encoding="utf-8"))) == list(CASES)


def freeze() -> None:
    """Write frozen_draws.json, a line for each value. Only if a draw was changed on purpose: see above."""
    blocks = []
    for case, make in CASES.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in make().items())
        blocks.append(f" {json.dumps(case)}: {{\n{lines}\n }}")
    FROZEN.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    freeze()
