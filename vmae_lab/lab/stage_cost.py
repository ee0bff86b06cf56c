"""What stages have to compute, by the resource that bounds it, and how long that takes on a machine whose rates are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import torch

from vmae_lab.data.activitynet import UntrimmedSettings
from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.decoding import read_frames
from vmae_lab.data.motionworld import ACTIONS, MotionworldSettings
from vmae_lab.data.motionworld.dataset import render_clip
from vmae_lab.data.motionworld.writer import FRAMES_A_SECOND, cache_home, write_mp4
from vmae_lab.evaluation.features import FeatureSettings
from vmae_lab.evaluation.pixel_baselines import MOST_PIXELS
from vmae_lab.evaluation.probes import ProbeSettings
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages import Stage
from vmae_lab.masking import MaskSettings
from vmae_lab.models.actionformer import CHUNK, ActionFormer, ActionFormerShape
from vmae_lab.models.flops import TokenCounts, classify_cost, pretrain_cost, training_macs
from vmae_lab.models.sizes import ClipShape, ModelSettings
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.detect import DetectSettings
from vmae_lab.training.tasks.localise import LocaliseSettings

FEATURES, CLASSES = 2048, 20  # width of I3D's features and classes of THUMOS14, where others are not known before
BACKWARD = 3  # forward and backward together, in forwards
SUPERVISED = ("finetune", "post_pretrain", "distill")
# Seconds of one quiet core (AMD EPYC, November 2026).
CLIP_S = 2.5e-4  # to read a decoded clip, whatever its size
CROP_PIXEL_S = 9e-9  # per pixel of a clip that is cropped, stacked and sent by a loader process
RESIZE_PIXEL_S = 21e-9  # per pixel of a clip that is resized as well
AUGMENT_PIXEL_S = 1.1e-7  # per pixel of a clip that RandAugment changes frame by frame: 85 ms at 16 x 224 x 224
DECODE_S = 0.05  # to decode a file of 320 x 240 pixels and cut it (reports/LOG.md, 2026-11-23); at 1280 x 720 it is 0.4
SOLVE_MACS = 8e9  # multiply-accumulates a second in float64
FILE_PIXEL_BYTES = 0.05  # of an mp4 file of the embedded data at 64 pixels; less at larger sides


@dataclass(frozen=True)
class Work:
    """What a stage does: multiply-accumulates of training, of predictions (float32) and of closed-form readouts (float64),
    layers times optimiser steps, and seconds of CPU work in loader processes and in the stage's own process.
    """

    training: float = 0.0
    prediction: float = 0.0
    readout: float = 0.0
    layer_steps: int = 0
    loading_s: float = 0.0
    own_s: float = 0.0


@dataclass(frozen=True)
class Machine:
    """Multiply-accumulates a second of each kind, and the least time of an optimiser step, per transformer layer.

    `one_device`: stages that run side by side share it, so that only their other work overlaps.
    """

    name: str
    training: float
    prediction: float
    readout: float
    layer_step_s: float = 0.0
    one_device: bool = False

    def device_seconds(self, work: Work) -> float:
        """How long the device is busy."""
        return work.training / self.training + work.prediction / self.prediction + work.readout / self.readout

    def seconds(self, work: Work, workers: int) -> float:
        """How long the work takes alone, with a number of loader processes next to its own."""
        training_s = max(work.training / self.training, work.layer_steps * self.layer_step_s, work.loading_s / max(1, workers))
        return training_s + work.prediction / self.prediction + work.readout / self.readout + work.own_s

    def bound_by_loading(self, works: Sequence[Work], compute: Compute) -> bool:
        """Whether the loader processes of stages that run `compute.jobs` at a time need longer than the device."""
        loading_s = sum(work.loading_s for work in works) / (compute.jobs * max(1, compute.workers))
        return loading_s > sum(map(self.device_seconds, works))

    def wall_seconds(self, works: Sequence[Work], compute: Compute) -> float:
        """How long several stages take, `compute.jobs` at a time."""
        side_by_side = sum(self.seconds(work, compute.workers) for work in works) / compute.jobs
        return max(side_by_side, sum(map(self.device_seconds, works))) if self.one_device else side_by_side


# Assumed, not measured. Training: about 20% of the peak in bf16. Prediction: about 60% of the peak in float32. A step of
# ViT-S with a decoder of 4 layers is bound by launches at 16 ms.
H200 = Machine("one H200 GPU with 16 CPU cores", 1e14, 2e13, 1e13, layer_step_s=1e-3, one_device=True)


def this_machine(rate: float) -> Machine:
    """The machine at hand, of which a training's multiply-accumulates a second were measured, its data loading included."""
    return Machine("this device", rate, rate, rate, one_device=torch.cuda.is_available())


def stage_macs(stage: Stage) -> float:
    """Multiply-accumulates of a whole stage: forward and backward of every step, or the forward passes of an evaluation."""
    settings = stage.settings
    if stage.kind in ("initial", "opened"):
        return 0.0
    if stage.kind == "localise":
        return _localise_macs(stage)
    model = ModelSettings(**settings["model"])
    if stage.kind == "pretrain":
        recipe = settings["pretrain"]
        return recipe["steps"] * step_macs(model, MaskSettings(**settings["mask"]), recipe["batch_size"])
    if stage.kind == "measure":
        return (settings["steps"] + 1) * step_macs(model, MaskSettings(**settings["mask"]), settings["batch_size"])
    if stage.kind == "detect":
        return _detect_macs(model, DetectSettings(**settings["detect"]), settings["split"])
    if stage.kind == "features":
        one = classify_cost(model.dimensions, model.clip, 1).macs
        return one * feature_windows(
            UntrimmedSettings.model_validate_json(stage.where), FeatureSettings(**settings["features"]), settings["split"]
        )
    data = DataSettings(**settings["data"])
    one = classify_cost(model.dimensions, model.clip, data.classes).macs
    clips = _held_out_clips(data, settings["split"], settings.get("sources", data.pretrain_sources))
    if stage.kind in ("finetune", "post_pretrain"):
        recipe = settings[stage.kind]
        return one * (BACKWARD * recipe["steps"] * recipe["batch_size"] + clips)
    if stage.kind == "views":
        return one * clips * settings["views"]["clips"] * settings["views"]["crops"]
    if stage.kind == "distill":
        teacher = ModelSettings(**stage.inputs[0].settings["model"])
        other = classify_cost(teacher.dimensions, teacher.clip, data.classes).macs
        shown = settings["distill"]["steps"] * settings["distill"]["batch_size"]
        return one * (BACKWARD * shown + clips) + other * (shown + clips)
    if stage.kind == "probe":
        return one * ((settings["probe"]["labels"] or 0) * settings["probe"]["draws"] + clips)
    return one * clips


def _detect_macs(model: ModelSettings, recipe: DetectSettings, split: str) -> float:
    """Training on square crops; one pass over what is judged, of the embedded scenes alone: lists are not counted before."""
    sides = (recipe.side, recipe.test_short_side - recipe.test_short_side % model.clip.patch)
    crop, whole = (
        classify_cost(model.dimensions, ClipShape(model.frames, side, model.tubelet, model.clip.patch), 1).macs
        for side in sides
    )
    world = recipe.scenes.motionworld
    return BACKWARD * crop * recipe.steps * recipe.batch_size + whole * (getattr(world, split) if world else 0)


def feature_windows(videos: UntrimmedSettings, features: FeatureSettings, split: str) -> float:
    """Windows of a split of the embedded untrimmed videos, about; how long listed videos are is not known before."""
    world = videos.motionworld
    if world is None:
        return 0.0
    return getattr(world, split) * sum(world.seconds) / 2 * FRAMES_A_SECOND / features.stride


def _localise_macs(stage: Stage) -> float:
    """Training and one pass over what is judged: every weight is used once a time step of its level."""
    settings = LocaliseSettings(**stage.settings["localise"])
    encoder = stage.inputs[0].settings["model"] if stage.inputs else None
    width = ModelSettings(**encoder).dimensions.width if encoder else FEATURES
    one = actionformer_macs(settings.shape, width, CLASSES)
    if settings.videos.motionworld is None:
        return BACKWARD * one * settings.steps * settings.batch_size * settings.longest
    trained, judged = (
        feature_windows(settings.videos, settings.features, split) for split in ("train", stage.settings["split"])
    )
    a_video = min(settings.longest, trained / settings.videos.motionworld.train)
    return one * (BACKWARD * settings.steps * settings.batch_size * a_video + judged)


def actionformer_macs(shape: ActionFormerShape, features: int, classes: int) -> float:
    """Multiply-accumulates of a temporal detector for one time step of the features."""
    with torch.device("meta"):
        model = ActionFormer(shape, features, [""] * classes)
    weights = {name: sum(p.numel() for p in part.parameters() if p.ndim > 1) for name, part in model.named_children()}
    rates = sum(0.5**level for level in range(shape.levels))
    blocks = weights["stem"] + weights["branch"] * (rates - 1) / max(1, shape.levels - 1)
    keys = CHUNK + shape.window - 1  # that a block of queries is compared with, most of them to be masked
    attention = 2 * keys * shape.width * (shape.stem_layers + rates - 1)
    return weights["embed"] + blocks + attention + (weights["classify"] + weights["regress"]) * rates


def _held_out_clips(data: DataSettings, split: str, sources: list[str]) -> int:
    """Videos that are evaluated on; those of list files are not counted before they are there."""
    if data.motionworld is None:
        return 0
    return len(sources or data.sources) * data.classes * getattr(data.motionworld, split)


@lru_cache
def _token_counts(masks: MaskSettings, clip: ClipShape) -> TokenCounts:
    return TokenCounts.of(masks, clip)


def step_macs(model: ModelSettings, masks: MaskSettings, batch_size: int) -> float:
    """Multiply-accumulates of one pre-training step, forward and backward, with only the visible cubes embedded."""
    counts = _token_counts(masks, model.clip)
    return batch_size * training_macs(model.dimensions, model.clip, counts.visible, counts.decoded)


def stage_work(stage: Stage) -> Work:
    """All the work of a stage: its models' multiply-accumulates as in `stage_macs`, and what comes with them."""
    settings, macs = stage.settings, stage_macs(stage)
    if stage.kind in ("localise", "detect", "measure"):
        return Work(training=macs)
    if "data" not in settings:
        return Work(prediction=macs)
    model, data = ModelSettings(**settings["model"]), DataSettings(**settings["data"])
    layers = model.dimensions.depth
    if stage.kind == "pretrain":
        layers += model.dimensions.decoder_depth
        return Work(training=macs, layer_steps=layers * stage.steps, loading_s=_loading_seconds(stage, model, data))
    clips = _held_out_clips(data, settings["split"], settings.get("sources", data.pretrain_sources))
    reading_s = _reading_seconds(model, data)
    if stage.kind == "controls":
        return Work(own_s=_controls_seconds(stage, model, data, clips))
    if stage.kind in SUPERVISED:
        predicted = classify_cost(model.dimensions, model.clip, data.classes).macs * clips
        return Work(
            macs - predicted, predicted, layer_steps=layers * stage.steps, loading_s=_loading_seconds(stage, model, data),
            own_s=clips * reading_s * (2 if stage.kind == "distill" else 1),
        )  # fmt: skip
    if stage.kind == "probe":
        return _probe_work(stage, model, data, clips, macs)
    return Work(prediction=macs, own_s=clips * reading_s)


def _probe_work(stage: Stage, model: ModelSettings, data: DataSettings, clips: int, macs: float) -> Work:
    """Tokens of labelled and held-out clips, the readouts of every draw, and reconstruction after a pre-training."""
    probe, width, tokens = ProbeSettings(**stage.settings["probe"]), model.dimensions.width, model.clip.tokens
    labels = probe.labels or 0
    columns = {"ridge": width * tokens, "linear_2x2": 4 * width, "linear_mean": width}
    solved = sum(ridge_macs(labels, columns[name], clips, data.classes) for name in probe.probes if name in columns)
    read, trained_steps = labels * probe.draws + clips, 0
    if "attentive" in probe.probes:
        trained_steps = probe.draws * probe.attentive_steps
        pooling = 2 * tokens * width * (width + 1) + 10 * width**2  # keys and values of all tokens; one query, its MLP
        macs += pooling * (BACKWARD * trained_steps * min(32, labels) + probe.draws * clips)
    if stage.inputs[0].kind == "pretrain" and not {"step", "labels_shuffled"} & stage.settings.keys():
        counts = _token_counts(MaskSettings(**stage.inputs[0].settings["mask"]), model.clip)
        macs += clips * pretrain_cost(model.dimensions, model.clip, counts.visible, counts.decoded, embed_visible=True).macs
        read += clips
    return Work(
        prediction=macs, readout=probe.draws * solved, layer_steps=2 * trained_steps, own_s=read * _reading_seconds(model, data)
    )


def ridge_macs(rows: int, columns: int, others: int, classes: int) -> float:
    """Multiply-accumulates of a ridge classifier: its Gram or covariance matrix, eigenvectors, and predictions."""
    least = min(rows, columns)
    return rows * columns * least + 10 * least**3 + (rows + others) * columns * classes


def _controls_seconds(stage: Stage, model: ModelSettings, data: DataSettings, clips: int) -> float:
    """Ridge on every single frame of all training clips, and on the pixels of the labelled clips."""
    world, labels, draws = data.motionworld, stage.settings["labels"] or 0, stage.settings["draws"]
    assert world is not None, "controls are of the embedded data set alone"
    trained = len(stage.settings["sources"] or data.sources) * data.classes * world.train
    pixels, small = 3 * model.frames * model.side**2, 3 * min(model.side // 2, MOST_PIXELS) ** 2
    solved = world.frames * ridge_macs(trained, small, clips, data.classes)
    solved += draws * ridge_macs(labels, pixels, clips, data.classes)
    return (
        solved / SOLVE_MACS
        + draws * (labels + clips) * _reading_seconds(model, data)
        + world.frames * (trained + clips) * _reading_seconds(model.model_copy(update={"frames": 1}), data)
    )


def _loading_seconds(stage: Stage, model: ModelSettings, data: DataSettings) -> float:
    """CPU seconds of a training's batches."""
    recipe = stage.settings[stage.kind]
    sizes = {round(scale * data.resident_side) for scale in data.crop_scales}
    resized = data.motionworld is None or sizes != {model.side}
    pixels = model.frames * model.side**2
    a_sample = CLIP_S + pixels * (RESIZE_PIXEL_S if resized else CROP_PIXEL_S)
    if data.motionworld is None:
        a_sample += DECODE_S / recipe.get("repeats", 1)
    if recipe.get("augment"):
        a_sample += AUGMENT_PIXEL_S * pixels
    return recipe["steps"] * recipe["batch_size"] * a_sample


def _reading_seconds(model: ModelSettings, data: DataSettings) -> float:
    """CPU seconds of one clip of an evaluation, which its own process reads."""
    resized = data.motionworld is None or data.resident_side != model.side
    return CLIP_S + (model.frames * model.side**2 * RESIZE_PIXEL_S if resized else 0.0)


@dataclass(frozen=True)
class DataWork:
    """The embedded data that plans still have to write: `clips`, scenes and untrimmed videos among them."""

    clips: int = 0
    cpu_s: float = 0.0
    disk_bytes: float = 0.0


def data_work(recipe: Recipe, stages: Sequence[Stage]) -> DataWork:
    """What of the embedded data the stages read and is not written yet. One clip per source is rendered now, to time it."""
    world, kinds = recipe.data.motionworld, {stage.kind for stage in stages}
    if world is None:
        return DataWork()
    parts = []  # videos, their frames, their side, and bytes per pixel kept decoded
    decoded = cache_home() / f"motionworld-{world.fingerprint}" / f"decoded-{recipe.data.resident_side}.npy"
    if any("data" in stage.settings for stage in stages) and not decoded.exists():
        parts.append((world.clips(), world.frames, world.side, 3 * (recipe.data.resident_side / world.side) ** 2))
    scenes, videos = recipe.detect and recipe.detect.scenes.motionworld, recipe.localise and recipe.localise.videos.motionworld
    if scenes and "detect" in kinds and not (cache_home() / f"scenes-{scenes.fingerprint}").is_dir():
        parts.append((scenes.train + scenes.validation + scenes.test, scenes.seconds * FRAMES_A_SECOND, scenes.side, 0.0))
    if videos and "localise" in kinds and not (cache_home() / f"untrimmed-{videos.fingerprint}").is_dir():
        frames = round(sum(videos.seconds) / 2 * FRAMES_A_SECOND)
        parts.append((videos.train + videos.validation + videos.test, frames, videos.side, 0.0))
    if not parts:
        return DataWork()
    pixels = [count * frames * side**2 for count, frames, side, _ in parts]
    kept = [decoded_bytes + FILE_PIXEL_BYTES for *_, decoded_bytes in parts]
    return DataWork(
        sum(count for count, *_ in parts), sum(pixels) * pixel_seconds(world),
        sum(size * each for size, each in zip(pixels, kept, strict=True)),
    )  # fmt: skip


@lru_cache
def pixel_seconds(world: MotionworldSettings) -> float:
    """CPU seconds in which a pixel of the embedded data is rendered, encoded and decoded here, averaged over sources."""
    with TemporaryDirectory() as folder:
        spent = sum(_clip_seconds(world, source, Path(folder)) for source in world.sources)
    return spent / len(world.sources) / (world.frames * world.side**2)


def _clip_seconds(world: MotionworldSettings, source: str, folder: Path) -> float:
    """CPU seconds of a source's second clip: the first one loads what all clips share."""
    for index in range(2):
        started, file = process_time(), folder / f"{source}-{index}.mp4"
        write_mp4(render_clip(source, ACTIONS[0], world, "train", index)[0], file)
        read_frames(file)
    return process_time() - started
