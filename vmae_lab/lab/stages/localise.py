"""Stages `features` and `localise`: temporal action detection in untrimmed videos, from features of their windows."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from vmae_lab.data.activitynet import Split, Untrimmed, UntrimmedSettings, write_predictions
from vmae_lab.data.motionworld.writer import FRAMES_A_SECOND
from vmae_lab.data.video_features import VideoFeatures
from vmae_lab.evaluation.features import FeatureSettings, extract_features, open_encoder, open_extracted
from vmae_lab.evaluation.temporal_map import DURATIONS, SegmentMap, segment_map
from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.stages.cost import BACKWARD, EmbeddedVideos, Work, count_parameters
from vmae_lab.lab.stages.inputs import load_untrimmed
from vmae_lab.lab.stages.stage import FEATURES, SEGMENTS, Job, Stage, build, training_cost
from vmae_lab.models.actionformer import CHUNK, ActionFormer, ActionFormerShape
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.localise import LocaliseSettings, LocaliseTask, localise
from vmae_lab.utils.processes import process_state

BATCH = 32  # windows per forward pass of the encoder
I3D_WIDTH, THUMOS_CLASSES = 2048, 20  # assumed for the cost of features and annotations that are not read yet


class FeaturesStage(Stage):
    """Features of the windows of every video of a split, divided over the processes. `where` has the settings of the videos."""

    kind = "features"

    model: ModelSettings
    split: Split
    features: FeatureSettings
    films: str

    @property
    def videos(self) -> UntrimmedSettings:
        return UntrimmedSettings.model_validate_json(self.where)

    def run(self, job: Job) -> dict[str, Any]:
        videos = load_untrimmed(self.videos, self.split, job.compute)
        state, folder = process_state(), job.folder / FEATURES
        model, device = self.model, str(state.device)
        encoder, norm = open_encoder(job.inputs[0], model.frames, model.side, device, model.positions)
        clips = videos.clips(job.compute.processes)
        if state.is_main_process:
            videos.check_rates(clips)
        mine = clips.subset(range(state.process_index, len(clips), state.num_processes))
        shown = job.progress and state.is_main_process
        precision = job.compute.evaluation_precision
        done = extract_features(encoder, mine, folder, self.features, norm, BATCH, progress=shown, precision=precision)
        state.wait_for_everyone()
        if state.num_processes > 1 and state.is_main_process:  # write one table of all videos; unreadable ones are tried again
            done = extract_features(encoder, clips, folder, self.features, norm, BATCH, progress=False, precision=precision)
        clips.decoders.close()
        done.check()
        return {"metrics": {}, "videos": len(clips), "windows": len(done.windows)}

    @property
    def work(self) -> Work:
        window = classify_cost(self.model.dimensions, self.model.clip, 1).macs
        return Work(prediction=window * feature_windows(self.videos, self.features, self.split))

    @property
    def disk_bytes(self) -> int:
        return int(4 * feature_windows(self.videos, self.features, self.split) * self.model.dimensions.width)


class LocaliseStage(Stage):
    """Training of a temporal detector, evaluated by mAP over temporal IoU. The predicted segments are written to a file.

    Inputs: the features of the training split and of the evaluated split; none with pre-extracted features.
    """

    kind = "localise"

    seed: int
    split: Literal["validation", "test"]
    localise: LocaliseSettings
    videos_fingerprint: str

    @property
    def settings(self) -> dict[str, Any]:
        settings = super().settings
        if not self.inputs:  # the settings of pre-extracted features are part of their fingerprint
            settings = {**settings, "localise": {k: v for k, v in settings["localise"].items() if k != "features"}}
        return settings

    def run(self, job: Job) -> dict[str, Any]:
        settings = self.localise
        videos, held_out = (load_untrimmed(settings.videos, split, job.compute) for split in ("train", self.split))
        features, held_out_features = (
            _features(part, folder) for part, folder in zip((videos, held_out), job.inputs or (None, None), strict=True)
        )
        task = LocaliseTask(settings, videos, features, self.seed)
        trained = train(task, job.folder, job.compute, job.progress)
        segments = localise(trained.model, held_out.annotations.videos, held_out_features, settings)
        if process_state().is_main_process:
            trained.model.save(job.folder)
            write_predictions(job.folder / SEGMENTS, segments)
        score = score_segments(held_out, segments, settings)
        by_threshold = {
            f"segment_map_{100 * threshold:.0f}": 100 * value
            for threshold, value in zip(settings.thresholds, score.by_threshold, strict=True)
        }
        return {
            "metrics": {"segment_map": 100 * score.mean, **by_threshold}, "training": training_cost(trained),
            "per_class": _in_percent(score.per_class), "by_duration": _in_percent(score.by_duration),
            "videos": len(held_out.names), "training_videos": len(videos.names),
            "segments": len(held_out.annotations.segments), "training_segments": len(videos.annotations.segments),
            **({"encoder": self.inputs[0].inputs[0].key} if self.inputs else {}),
        }  # fmt: skip

    @property
    def work(self) -> Work:
        """Training, and one pass over the held-out videos."""
        settings, world = self.localise, self.localise.videos.motionworld
        encoder = self.inputs[0] if self.inputs else None
        width = encoder.model.dimensions.width if isinstance(encoder, FeaturesStage) else I3D_WIDTH
        step = actionformer_macs(settings.shape, width, THUMOS_CLASSES)  # of the features
        if world is None:
            return Work(training=BACKWARD * step * settings.steps * settings.batch_size * settings.longest)
        trained, held_out = (feature_windows(settings.videos, settings.features, split) for split in ("train", self.split))
        per_video = min(settings.longest, trained / world.train)
        return Work(training=step * (BACKWARD * settings.steps * settings.batch_size * per_video + held_out))

    @property
    def parameters(self) -> int:
        """Approximate number: it depends slightly on the width of the features and on the number of classes."""
        return count_parameters(lambda: ActionFormer(self.localise.shape, I3D_WIDTH, [""] * THUMOS_CLASSES))

    @property
    def embedded_videos(self) -> EmbeddedVideos | None:
        world = self.localise.videos.motionworld
        return EmbeddedVideos(world, round(sum(world.seconds) / 2 * FRAMES_A_SECOND), world.side) if world else None


def features_stage(recipe: Recipe, encoder: Stage, split: Split) -> Stage:
    """Build a stage that extracts the features of a split's untrimmed videos. Raises RecipeError."""
    settings = require(recipe.localise, "localise", "the plan extracts features")
    own = {"features": settings.features, "films": settings.videos.films(split), "where": settings.videos.model_dump_json()}
    return build(FeaturesStage, recipe, encoder, split=split, **own)


def localise_stage(recipe: Recipe, encoder: Stage, seed: int) -> Stage:
    """Build a temporal detection stage, from an encoder's features or from pre-extracted ones. Raises RecipeError."""
    settings, split = require(recipe.localise, "localise", "the plan detects actions in time"), recipe.evaluate.split
    splits: tuple[Split, ...] = ("train", split) if settings.videos.extracted else ()
    features = [features_stage(recipe, encoder, part) for part in splits]
    fingerprint = settings.videos.fingerprint
    return build(LocaliseStage, recipe, *features, seed=seed, localise=settings, videos_fingerprint=fingerprint)


def score_segments(videos: Untrimmed, segments: pd.DataFrame, settings: LocaliseSettings) -> SegmentMap:
    """Return the mAP of predicted segments against the videos' annotations, with a stage's settings."""
    truth = videos.annotations
    durations = settings.durations or DURATIONS
    return segment_map(truth.segments, segments, truth.classes, settings.thresholds, settings.protocol, durations)


def feature_windows(videos: UntrimmedSettings, features: FeatureSettings, split: str) -> float:
    """Return about how many windows a split of the embedded videos has; 0 for listed videos, which are not read yet."""
    world = videos.motionworld
    return getattr(world, split) * sum(world.seconds) / 2 * FRAMES_A_SECOND / features.stride if world else 0.0


def actionformer_macs(shape: ActionFormerShape, features: int, classes: int) -> float:
    """Return the multiply-accumulates of a temporal detector for one time step of the features.

    Every weight is used once per time step of its level, and a level has half as many time steps as the one below it.
    """
    with torch.device("meta"):
        model = ActionFormer(shape, features, [""] * classes)
    weights = {name: sum(p.numel() for p in part.parameters() if p.ndim > 1) for name, part in model.named_children()}
    rates = sum(0.5**level for level in range(shape.levels))
    blocks = weights["stem"] + weights["branch"] * (rates - 1) / max(1, shape.levels - 1)
    keys = CHUNK + shape.window - 1  # number of keys that a block of queries is compared with; most are masked
    attention = 2 * keys * shape.width * (shape.stem_layers + rates - 1)
    return weights["embed"] + blocks + attention + (weights["classify"] + weights["regress"]) * rates


def _features(videos: Untrimmed, folder: Path | None) -> VideoFeatures:
    """Return the features from the folder of an input stage, or pre-extracted ones."""
    features = videos.features() if folder is None else open_extracted(folder / FEATURES, videos.names)
    videos.check_lengths(features)
    return features


def _in_percent(parts: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the means over thresholds, for the parts that have values."""
    return {name: 100 * float(values.mean()) for name, values in parts.items() if not np.isnan(values).any()}
