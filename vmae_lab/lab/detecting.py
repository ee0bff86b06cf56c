"""How the stages of detection are carried out: in space, the features of untrimmed videos, and in time."""

from pathlib import Path
from typing import Any

import numpy as np

from vmae_lab.data.activitynet import Untrimmed, UntrimmedSettings, write_predictions
from vmae_lab.data.ava import write_detections
from vmae_lab.data.video_features import VideoFeatures
from vmae_lab.evaluation.features import FeatureSettings, extract_features, open_encoder, open_extracted
from vmae_lab.evaluation.frame_map import frame_map
from vmae_lab.evaluation.temporal_map import DURATIONS, SegmentMap, segment_map
from vmae_lab.lab.jobs import Job, input_encoder_state, save_model, training_cost
from vmae_lab.lab.loading import corrupt_videos_in, load_scenes, load_untrimmed, set_aside
from vmae_lab.lab.stages import DETECTIONS, FEATURES, SEGMENTS
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.detect import DetectSettings, DetectTask, Whose, detect
from vmae_lab.training.tasks.localise import LocaliseSettings, LocaliseTask, localise
from vmae_lab.utils.processes import process_state

BATCH = 32  # windows that go through the encoder at a time


def run_detect(job: Job) -> dict[str, Any]:
    """Frame mAP by a person detector's boxes where there are such, and by true ones; what was said is kept beside it."""
    model, settings = ModelSettings(**job.section("model")), DetectSettings(**job.section("detect"))
    scenes, held_out = (load_scenes(settings.scenes, split, job.compute) for split in ("train", job.section("split")))
    state = input_encoder_state(job.input_folders[0]) if job.input_folders else None
    task = DetectTask(model, settings, scenes, state, job.section("seed"), corrupt_videos_in(job.folder))
    trained = train(task, job.folder, job.compute, job.progress)
    save_model(job, trained.model)
    names: dict[Whose, str] = {"true": "frame_map_true_boxes"}
    if held_out.persons is not None:
        names["persons"] = "frame_map"
    said = detect(trained.model, held_out, settings, model, tuple(names))
    judged = {name: frame_map(held_out.truth, said[whose], held_out.evaluated) for whose, name in names.items()}
    *_, main = judged.values()  # by the person detector's boxes, where there are such
    if process_state().is_main_process:
        write_detections(job.folder / DETECTIONS, said[list(names)[-1]])
    return {
        "metrics": {name: 100 * one.mean for name, one in judged.items()}, "training": training_cost(trained),
        "per_class": {held_out.actions[action]: 100 * value for action, value in main.per_class.items() if value == value},
        "by_size": {size: 100 * value for size, value in main.by_size.items() if value == value},  # NaN where none is
        "key_frames": len(held_out), "training_key_frames": len(scenes.labelled), **set_aside(task.corrupt_videos),
    }  # fmt: skip


def run_features(job: Job) -> dict[str, Any]:
    """Features of the windows of every video of a split, in a folder of their own. Processes share the videos out."""
    model, settings = ModelSettings(**job.section("model")), FeatureSettings(**job.section("features"))
    videos = load_untrimmed(UntrimmedSettings.model_validate_json(job.stage.where), job.section("split"), job.compute)
    here, folder = process_state(), job.folder / FEATURES
    encoder, norm = open_encoder(job.input_folders[0], model.frames, model.side, str(here.device))
    clips = videos.clips(job.compute.processes)
    if here.is_main_process:
        videos.check_rates(clips)
    mine = clips.subset(range(here.process_index, len(clips), here.num_processes))
    done = extract_features(encoder, mine, folder, settings, norm, BATCH, progress=job.progress and here.is_main_process)
    here.wait_for_everyone()
    if here.num_processes > 1 and here.is_main_process:  # all is there, but for what could not be read: one table of all
        done = extract_features(encoder, clips, folder, settings, norm, BATCH, progress=False)
    clips.decoders.close()
    done.check()
    return {"metrics": {}, "videos": len(clips), "windows": len(done.windows)}


def run_localise(job: Job) -> dict[str, Any]:
    """mAP over temporal IoU on the split that is judged; what was said is kept beside it."""
    settings = LocaliseSettings(**job.section("localise"))
    videos, held_out = (load_untrimmed(settings.videos, split, job.compute) for split in ("train", job.section("split")))
    features, others = (
        _features(one, folder) for one, folder in zip((videos, held_out), job.input_folders or (None, None), strict=True)
    )
    trained = train(LocaliseTask(settings, videos, features, job.section("seed")), job.folder, job.compute, job.progress)
    said = localise(trained.model, held_out, others, settings)
    if process_state().is_main_process:
        trained.model.save(job.folder)
        write_predictions(job.folder / SEGMENTS, said)
    judged = judge(held_out, said, settings)
    by_threshold = {
        f"segment_map_{100 * threshold:.0f}": 100 * value
        for threshold, value in zip(settings.thresholds, judged.by_threshold, strict=True)
    }
    return {
        "metrics": {"segment_map": 100 * judged.mean, **by_threshold}, "training": training_cost(trained),
        "per_class": _in_percent(judged.per_class), "by_duration": _in_percent(judged.by_duration),
        "videos": len(held_out.names), "training_videos": len(videos.names),
        "segments": len(held_out.annotations.segments), "training_segments": len(videos.annotations.segments),
    }  # fmt: skip


def judge(videos: Untrimmed, said: Any, settings: LocaliseSettings) -> SegmentMap:
    """What was said of some videos against their annotations, as a stage of these settings is judged."""
    there = videos.annotations
    durations = settings.durations or DURATIONS
    return segment_map(there.segments, said, there.classes, settings.thresholds, settings.protocol, durations)


def _features(videos: Untrimmed, folder: Path | None) -> VideoFeatures:
    """Those that an input stage has extracted, or such as were there already."""
    features = videos.features() if folder is None else open_extracted(folder / FEATURES, videos.names)
    videos.check_lengths(features)
    return features


def _in_percent(parts: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over thresholds, of what there is."""
    return {name: 100 * float(values.mean()) for name, values in parts.items() if not np.isnan(values).any()}
