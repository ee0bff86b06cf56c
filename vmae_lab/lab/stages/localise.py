"""Temporal detection: when which action happens in untrimmed videos, from features of their windows."""

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
from vmae_lab.lab.stages.cost import BACKWARD, Work, count_parameters
from vmae_lab.lab.stages.inputs import load_untrimmed
from vmae_lab.lab.stages.stage import FEATURES, SEGMENTS, Job, Stage, build, training_cost
from vmae_lab.models.actionformer import CHUNK, ActionFormer, ActionFormerShape
from vmae_lab.models.flops import classify_cost
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.localise import LocaliseSettings, LocaliseTask, localise
from vmae_lab.utils.processes import process_state

BATCH = 32  # windows that go through the encoder at a time
I3D_WIDTH, THUMOS_CLASSES = 2048, 20  # for the cost of features and annotations that are not read yet


class FeaturesStage(Stage):
    """Features of the windows of every video of a split. Processes share the videos. `where` holds the videos' settings."""

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
        encoder, norm = open_encoder(job.inputs[0], self.model.frames, self.model.side, str(state.device))
        clips = videos.clips(job.compute.processes)
        if state.is_main_process:
            videos.check_rates(clips)
        mine = clips.subset(range(state.process_index, len(clips), state.num_processes))
        shown = job.progress and state.is_main_process
        done = extract_features(encoder, mine, folder, self.features, norm, BATCH, progress=shown)
        state.wait_for_everyone()
        if state.num_processes > 1 and state.is_main_process:  # one table of all videos; only unreadable ones are tried again
            done = extract_features(encoder, clips, folder, self.features, norm, BATCH, progress=False)
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
    """Training of a temporal detector, evaluated by mAP over temporal IoU; the predicted segments are kept in a file.

    Inputs: the features of the training split and of the evaluated split; none if the recipe has pre-extracted features.
    """

    kind = "localise"

    seed: int
    split: Literal["validation", "test"]
    localise: LocaliseSettings
    videos_fingerprint: str

    @property
    def settings(self) -> dict[str, Any]:
        settings = super().settings
        if not self.inputs:  # how pre-extracted features were made is part of their fingerprint
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
        segments = localise(trained.model, held_out, held_out_features, settings)
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
        }  # fmt: skip

    @property
    def work(self) -> Work:
        """Training and one pass over the held-out videos: every weight is used once per time step of its level."""
        settings, world = self.localise, self.localise.videos.motionworld
        encoder = self.inputs[0] if self.inputs else None
        width = encoder.model.dimensions.width if isinstance(encoder, FeaturesStage) else I3D_WIDTH
        one = actionformer_macs(settings.shape, width, THUMOS_CLASSES)
        if world is None:
            return Work(training=BACKWARD * one * settings.steps * settings.batch_size * settings.longest)
        trained, held_out = (feature_windows(settings.videos, settings.features, split) for split in ("train", self.split))
        per_video = min(settings.longest, trained / world.train)
        return Work(training=one * (BACKWARD * settings.steps * settings.batch_size * per_video + held_out))

    @property
    def disk_bytes(self) -> int:
        """About: of another width of features and number of classes a little more or less."""
        return 4 * count_parameters(lambda: ActionFormer(self.localise.shape, I3D_WIDTH, [""] * THUMOS_CLASSES))


def features_stage(recipe: Recipe, encoder: Stage, split: Split) -> Stage:
    """Features of windows along a split's untrimmed videos, whatever is annotated in them. Raises RecipeError."""
    settings = require(recipe.localise, "localise", "the plan extracts features")
    own = {"features": settings.features, "films": settings.videos.films(split), "where": settings.videos.model_dump_json()}
    return build(FeaturesStage, recipe, encoder, split=split, **own)


def localise_stage(recipe: Recipe, encoder: Stage, seed: int) -> Stage:
    """Temporal detection from an encoder's features, or from pre-extracted ones if the recipe has any. Raises RecipeError."""
    settings, split = require(recipe.localise, "localise", "the plan detects actions in time"), recipe.evaluate.split
    splits: tuple[Split, ...] = ("train", split) if settings.videos.extracted else ()
    features = [features_stage(recipe, encoder, part) for part in splits]
    fingerprint = settings.videos.fingerprint
    return build(LocaliseStage, recipe, *features, seed=seed, localise=settings, videos_fingerprint=fingerprint)


def score_segments(videos: Untrimmed, segments: pd.DataFrame, settings: LocaliseSettings) -> SegmentMap:
    """The mAP of predicted segments against the videos' annotations, by a stage's settings."""
    truth = videos.annotations
    durations = settings.durations or DURATIONS
    return segment_map(truth.segments, segments, truth.classes, settings.thresholds, settings.protocol, durations)


def feature_windows(videos: UntrimmedSettings, features: FeatureSettings, split: str) -> float:
    """Windows of a split of the embedded untrimmed videos, about; 0 for listed videos, whose lengths are not read yet."""
    world = videos.motionworld
    return getattr(world, split) * sum(world.seconds) / 2 * FRAMES_A_SECOND / features.stride if world else 0.0


def actionformer_macs(shape: ActionFormerShape, features: int, classes: int) -> float:
    """Multiply-accumulates of a temporal detector for one time step of the features."""
    with torch.device("meta"):
        model = ActionFormer(shape, features, [""] * classes)
    weights = {name: sum(p.numel() for p in part.parameters() if p.ndim > 1) for name, part in model.named_children()}
    rates = sum(0.5**level for level in range(shape.levels))
    blocks = weights["stem"] + weights["branch"] * (rates - 1) / max(1, shape.levels - 1)
    keys = CHUNK + shape.window - 1  # that a block of queries is compared with, most of them masked
    attention = 2 * keys * shape.width * (shape.stem_layers + rates - 1)
    return weights["embed"] + blocks + attention + (weights["classify"] + weights["regress"]) * rates


def _features(videos: Untrimmed, folder: Path | None) -> VideoFeatures:
    """The features that an input stage extracted, or pre-extracted ones."""
    features = videos.features() if folder is None else open_extracted(folder / FEATURES, videos.names)
    videos.check_lengths(features)
    return features


def _in_percent(parts: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over thresholds, of the parts that have any."""
    return {name: 100 * float(values.mean()) for name, values in parts.items() if not np.isnan(values).any()}
