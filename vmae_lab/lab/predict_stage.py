"""Predictions of finished `localise` and `detect` stages on videos without annotations."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import yaml

from vmae_lab.data.ava import CORNERS, KEY, SceneLists, Scenes, SceneSettings, SplitFiles, Video, keyed, read_person_boxes
from vmae_lab.data.check import content_key
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.video_dataset import VideoDataset
from vmae_lab.data.video_features import open_features
from vmae_lab.detection.person_detector import PersonDetector, detect_people
from vmae_lab.evaluation.features import JOURNAL, extract_features, open_encoder
from vmae_lab.evaluation.predict import PredictionError, names_of
from vmae_lab.lab.run_store import RESULT, SETTINGS
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.actionformer import ActionFormer
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.tasks.detect import DetectSettings, detect
from vmae_lab.training.tasks.localise import LocaliseSettings, localise
from vmae_lab.utils.atomic_io import read_json
from vmae_lab.utils.errors import first_of
from vmae_lab.utils.journal import read_journal

SEGMENT_COLUMNS = ["start_s", "end_s", "class", "score"]
DETECTION_COLUMNS = ["time_s", "person", *CORNERS, "label", "class", "score"]
Found = Iterator[tuple[str, pd.DataFrame | VideoError]]  # the name of each video, and its predictions or why it has none


def predict_segments(folder: Path, clips: VideoDataset, encoder: str | None, device: torch.device) -> Found:
    """Predict the actions in each video with the detector of a `localise` stage: SEGMENT_COLUMNS, best scores first.

    The features are extracted as in training. `encoder` is the model that gave the features of training; by default, it is
    found in the folder of runs. Raises PredictionError, CheckpointError, VideoError of a video without a frame rate.
    """
    settings = LocaliseSettings.model_validate(_settings_of(folder)["localise"])
    if not settings.videos.extracted:
        raise PredictionError(
            f"{folder} was trained on features from files. vmae_lab does not know the model that gave them, so it cannot "
            "extract those of other videos"
        )
    model = ActionFormer.from_pretrained(folder).to(device)
    used, norm = open_encoder(encoder or _encoder_of(folder), None, None, device)
    if used.width != model.features:
        raise PredictionError(f"{folder} takes features of width {model.features}, but those of the encoder have {used.width}")
    with TemporaryDirectory() as temporary:
        done = extract_features(used, clips, Path(temporary), settings.features, norm, progress=len(clips) > 1)
        extracted = read_journal(Path(temporary) / JOURNAL)
        for row in range(len(clips)):
            name = clips.name(row)
            if row in done.failed:
                yield name, done.failed[row]
                continue
            entry = extracted[content_key(clips.file(row))]
            if not entry["fps"]:
                yield name, VideoError(name, "its frame rate is unknown, so its segments have no times")
                continue
            videos = pd.DataFrame({"video": [name], "fps": entry["fps"], "duration": entry["frames"] / entry["fps"]})
            features = open_features({name: Path(temporary, entry["file"])}, settings.features.stride, used.clip.frames)
            segments = localise(model, videos, features, settings)
            yield name, segments.set_axis(["video", *SEGMENT_COLUMNS], axis=1)[SEGMENT_COLUMNS]


def predict_boxes(
    folder: Path, clips: VideoDataset, persons: Path | PersonDetector, every_s: float, top: int, device: torch.device
) -> Found:
    """Predict the actions of each person with the detector of a `detect` stage: DETECTION_COLUMNS, in the order of time.

    `persons` is a file of boxes in AVA's format, with the videos' names without suffix, or a detector, which then finds the
    people in a frame every `every_s` seconds. `person` is the number of the box in its frame. The `top` classes of each box are
    kept. Boxes are relative to width and height. Raises CheckpointError, ListError, and PredictionError if the file has no
    boxes for any of the videos.
    """
    boxes = _boxes_for(clips, persons) if isinstance(persons, Path) else None
    values = _settings_of(folder)
    settings = DetectSettings.model_validate(values["detect"])
    shape = ModelSettings.model_validate(values["model"])
    model = ActionDetector.from_pretrained(folder).to(device)
    names = names_of(model)
    for row in range(len(clips)):
        name = clips.name(row)
        try:
            scenes = _scenes(clips, row, boxes, every_s, settings, names)
            if not isinstance(persons, Path):
                scenes.persons = keyed(detect_people(persons, scenes, settings.person_score))
            own = settings.model_copy(update={"scenes": SceneSettings(lists=scenes.settings)})  # keeps no clip in memory
            yield name, _best(detect(model, scenes, own, shape)["persons"], names, top)
        except MissingVideos as missing:
            yield name, next(iter(missing.failed.values()))
        except VideoError as error:
            yield name, error


def _boxes_for(clips: VideoDataset, file: Path) -> pd.DataFrame:
    """Return the boxes of a file. Warns if some of the videos have none; raises PredictionError if all have none."""
    boxes = read_person_boxes(file)
    names = dict.fromkeys(Path(clips.name(row)).stem for row in range(len(clips)))
    known = boxes.video.unique().tolist()
    missing = [name for name in names if name not in known]
    if missing:
        message = (
            f"{file} has no boxes for {first_of([repr(name) for name in missing])}; names in it: {first_of(known) or 'none'}"
        )
        if len(missing) == len(names):
            raise PredictionError(f"{message}. A name is that of the video's file without suffix")
        warnings.warn(f"{message}. These videos get no detections", stacklevel=2)
    return boxes


def _scenes(
    clips: VideoDataset, row: int, boxes: pd.DataFrame | None, every_s: float, settings: DetectSettings, names: tuple[str, ...]
) -> Scenes:
    """Return the key frames of one video: those with boxes, or one every `every_s` seconds. Raises VideoError."""
    name = clips.name(row)
    [timing] = clips.decoders.map(DecoderProcess.time, [clips.file(row)])
    if isinstance(timing, VideoError):
        raise timing
    if not timing.rate:
        raise VideoError(name, "its frame rate is unknown, so its key frames have no times")
    lists = settings.scenes.lists
    unused = SplitFiles(boxes="")
    own = SceneLists(train=unused, validation=unused, actions="", rate=lists.rate if lists else None)
    if boxes is None:
        times = np.arange(math.ceil(timing.info.frames / timing.rate / every_s)) * every_s
        keys = pd.DataFrame({"video": name, "timestamp": times})
        persons = None
    else:
        persons = keyed(boxes[boxes.video == Path(name).stem].assign(video=name))
        keys = persons[KEY].drop_duplicates().sort_values("timestamp", ignore_index=True)
    actions = dict(enumerate(names))
    video = Video(clips.file(row), timing.rate, timing.info.frames)
    return Scenes(keyed(keys), pd.DataFrame(columns=KEY), persons, actions, actions, {name: video}, own, clips.decoders)


def _best(found: pd.DataFrame, names: tuple[str, ...], top: int) -> pd.DataFrame:
    """Return the `top` actions of each box: DETECTION_COLUMNS."""
    box = [*KEY, *CORNERS]
    kept = found.sort_values("score", ascending=False, kind="stable").groupby(box, sort=False).head(top)
    person = found.drop_duplicates(box).assign(person=lambda table: table.groupby(KEY).cumcount() + 1)[[*box, "person"]]
    table = kept.merge(person, on=box).sort_values(["timestamp", "person"], kind="stable", ignore_index=True)
    table = table.assign(time_s=table.timestamp, label=table.action_id)
    table[CORNERS] = table[CORNERS].round(6)  # as in files of detections; they were float32
    return table.assign(**{"class": [names[label] for label in table.label]})[DETECTION_COLUMNS]


def _settings_of(folder: Path) -> dict:
    """Return the settings of a finished stage. Raises PredictionError if it is not finished."""
    if not (folder / RESULT).is_file():
        raise PredictionError(f"the stage {folder} is not finished: it has no {RESULT}")
    return yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))


def _encoder_of(folder: Path) -> Path:
    """Return the folder of the encoder whose features a `localise` stage was trained on. Raises PredictionError."""
    key = read_json(folder / RESULT).get("encoder")
    if key and (encoder := folder.parent / key).is_dir():
        return encoder
    raise PredictionError(
        f"the model that gave the features of {folder} is not in {folder.parent}; add --encoder with its folder or name"
    )
