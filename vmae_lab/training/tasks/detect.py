"""Spatial action detection: the actions of each person in a key frame (VideoMAE, section 4.2, on AVA)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from vmae_lab.data.ava import COLUMNS, CORNERS, KEY, Scenes, SceneSettings
from vmae_lab.data.corrupt_videos import CorruptVideos, read_or_replace
from vmae_lab.data.eval_clips import FIX_KEY_FRAMES, all_readable, batches_of
from vmae_lab.data.samplers import EpochOrder
from vmae_lab.data.transforms import BoxAugment, augment_scene, enlarged, to_short_side
from vmae_lab.data.video_lists import ListError
from vmae_lab.detection.label_assignment import indices
from vmae_lab.evaluation.inference import gathered
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.checkpoints import State
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.vit import IMAGENET_MEAN
from vmae_lab.training.dataloader import Batch, RowSize
from vmae_lab.training.settings import TrainSettings
from vmae_lab.training.task import Task
from vmae_lab.utils.precision import Precision, autocast
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.seeding import derive, torch_generator
from vmae_lab.utils.shapes import Side, height_width

Whose = Literal["true", "persons"]  # boxes to classify: of the ground truth, or of a person detector


class DetectSettings(TrainSettings):
    """Training and testing of an action detector. The defaults are the paper's on AVA."""

    scenes: SceneSettings
    stride: int = Field(4, ge=1, description="a clip has every stride-th frame")
    side: Side = Field(
        224,
        description="height and width of training crops in pixels, [height, width] if they differ; testing uses whole frames",
    )
    test_short_side: int = Field(256, ge=1, description="short side of frames in testing, pixels")
    augment: BoxAugment = BoxAugment()
    most_boxes: int = Field(100, ge=1, description="maximum number of people per key frame in training")
    person_score: float = Field(0.8, ge=0, le=1, description="minimum score of a person detector's box in testing")
    enlarge: tuple[float, float] = Field((0.1, 0.05), description="enlarge such boxes by these fractions of width and height")
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = Field(0.75, gt=0, le=1)
    drop_path: float = Field(0.2, ge=0, lt=1)
    head_init_scale: float = Field(0.001, gt=0)

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        low, high = self.augment.short_side
        longer = max(height_width(self.side))
        if not longer <= low <= high:
            raise ValueError(f"augment.short_side {[low, high]} must be an ascending pair of at least side {longer}")

    def check_model(self, model: ModelSettings) -> None:
        """Raise ValueError if the model's patches do not divide the crops."""
        patch = model.clip.patch
        if any(length % patch for length in height_width(self.side)):
            side = list(self.side) if isinstance(self.side, tuple) else self.side
            raise ValueError(f"detect.side {side} is not a multiple of the model's patch of {patch} pixels")

    @property
    def keep_decoded(self) -> bool:
        """Whether to keep decoded clips in memory: only the embedded scenes, which are few and small."""
        return self.scenes.motionworld is not None


@dataclass(eq=False)
class DetectTask(Task[ActionDetector]):
    """Predict the actions of each person in a key frame. `encoder`: pre-trained weights, or None to train from scratch."""

    model: ModelSettings
    settings: DetectSettings
    scenes: Scenes
    encoder: State | None
    seed: int
    corrupt_videos: CorruptVideos = field(default_factory=CorruptVideos)

    def __post_init__(self) -> None:
        self.order = EpochOrder(len(self.scenes.labelled), self.seed, "detection order")

    def build(self) -> ActionDetector:
        drop_path, init_scale = self.settings.drop_path, self.settings.head_init_scale
        model = ActionDetector(self.model.dimensions, self.model.clip, len(self.scenes.actions), drop_path, init_scale)
        if self.encoder is not None:
            model.load_encoder(self.encoder)
        return model

    def batch(self, step: int, rows: range) -> Batch:
        """Return `video`, uint8 `(B, C, T, H, W)`; `boxes`, `(B, M, 4)` in its pixels; `there`, bool `(B, M)`, False = padding;
        `label`, float `(B, M, classes)`. M is the maximum number of people in a clip.
        """
        videos, boxes, labels = zip(*(self._sample(step * self.settings.batch_size + row) for row in rows), strict=True)
        there = [torch.ones(len(some), dtype=torch.bool) for some in boxes]
        parts = {"boxes": boxes, "label": labels, "there": there}
        return {"video": torch.stack(videos), **{name: pad_sequence(list(some), True) for name, some in parts.items()}}

    @property
    def row_size(self) -> RowSize:
        return RowSize(self.model.clip.channels * self.model.frames * math.prod(height_width(self.settings.side)))

    def weight(self, batch: Batch) -> float:
        return float(batch["there"].sum())

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """Return the binary cross-entropy, averaged over people and classes; 0 if no box is inside its crop."""
        video, boxes, labels = (batch[name].to(device, non_blocking=True) for name in ("video", "boxes", "label"))
        people = indices(batch["there"], device)
        scores = model(video, boxes).flatten(0, 1)[people]
        terms = functional.binary_cross_entropy_with_logits(scores.float(), labels.flatten(0, 1)[people], reduction="none")
        return terms.sum() / max(1, terms.numel())

    def _sample(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the augmented clip at a position in the stream of samples, its boxes in pixels, and their labels."""
        settings, labelled = self.settings, self.scenes.labelled

        def read(row: int) -> Tensor:
            short_side = settings.augment.short_side[1]
            return self.scenes.clip(labelled[row], self.model.frames, settings.stride, short_side, settings.keep_decoded)

        row, video = read_or_replace(self.order, position, read, self.corrupt_videos)
        boxes, labels = self.scenes.labelled_boxes(labelled[row])
        seed = derive(self.seed, "scene augmentation", position)
        video, boxes, kept = augment_scene(video, boxes, settings.side, settings.augment, seed)
        chosen = torch.randperm(len(kept), generator=torch_generator(self.seed, "people trained on", position))
        chosen = chosen[: settings.most_boxes]
        return video, boxes[chosen], labels[kept[chosen]].float()


@torch.no_grad()
def detect(
    model: ActionDetector, scenes: Scenes, settings: DetectSettings, shape: ModelSettings,
    whose: Sequence[Whose] = ("persons",), batch: int = 16, precision: Precision = "auto",
) -> dict[Whose, pd.DataFrame]:  # fmt: skip
    """Predict the actions of each person in each key frame. Returns a table for each kind of boxes in `whose`.

    A table has COLUMNS and `score`, a row per box and class, in the order of the lists. Boxes of `persons` are enlarged, and
    scores are multiplied by theirs. Frames are not cropped. Each clip is read and encoded once. Processes share the key frames,
    and all return the complete tables. Raises MissingVideos, and ListError if the split has no boxes of this kind.
    """
    # The boxes of all kinds together, so that each clip is encoded once.
    tables = [people_of(scenes, kind, settings.person_score).assign(kind=kind) for kind in whose]
    people = pd.concat(tables, ignore_index=True)
    people[CORNERS] = people[CORNERS].astype(np.float32)
    growths = [settings.enlarge if kind == "persons" else (0.0, 0.0) for kind in whose]
    corners = [torch.tensor(table[CORNERS].to_numpy(np.float32)) for table in tables]
    boxes = torch.cat([enlarged(part, *growth) for part, growth in zip(corners, growths, strict=True)])
    rows_of = people.groupby(KEY).indices  # by key frame

    # Scores of this process's boxes, batch by batch. If all frames have one size, the batches are those of one process.
    keys = list(scenes.keys[KEY].itertuples(index=False, name=None))
    classes, device = sorted(scenes.actions), next(model.parameters()).device
    model.eval()
    state = process_state()
    wanted = [index for index, key in enumerate(keys) if key in rows_of]
    mine = list(batches_of(wanted, batch))[state.process_index :: state.num_processes]

    def found() -> Iterator[tuple[int, Tensor]]:
        for clips in _test_clips(scenes, list(chain(*mine)), settings, shape.frames, batch):
            clip_rows = [rows_of[keys[index]] for index, _ in clips]
            height, width = clips[0][1].shape[-2:]
            pixels = pad_sequence([boxes[part] * torch.tensor([width, height] * 2) for part in clip_rows], batch_first=True)
            videos = torch.stack([_to_patches(video, shape.clip.patch) for _, video in clips])
            with autocast(precision, device):
                logits = model(videos.to(device), pixels.to(device))
            predicted = logits.float().sigmoid().cpu()  # (B, M, classes), padded
            for (index, _), values, part in zip(clips, predicted, clip_rows, strict=True):
                yield index, values[: len(part)]

    scores = gathered(found(), len(scenes))

    # One row per box and class.
    order = np.concatenate([np.empty(0, dtype=int), *(rows_of[keys[index]] for index in wanted)])
    box_scores = torch.tensor(people.score.to_numpy(float)[order]).float()
    products = (torch.cat([torch.empty(0, len(classes)), *scores]) * box_scores[:, None]).flatten().double().numpy()
    result = people.iloc[order.repeat(len(classes))].astype(dict.fromkeys(CORNERS, float))
    result = result.assign(action_id=classes * len(order), score=products)
    return {kind: result.loc[result.kind == kind, [*COLUMNS, "score"]].reset_index(drop=True) for kind in whose}


def people_of(scenes: Scenes, whose: Whose, least_score: float) -> pd.DataFrame:
    """Return boxes of people: KEY, CORNERS and `score`. True boxes have score 1; others must have at least `least_score`.

    Raises ListError if the split has no boxes of a person detector.
    """
    if whose == "true":
        return scenes.truth.drop_duplicates([*KEY, *CORNERS]).assign(score=1.0)
    if scenes.persons is None:
        raise ListError("scenes.lists: this split has no boxes of a person detector (persons); `vmae-lab persons` writes them")
    return scenes.persons[scenes.persons.score >= least_score]


def _test_clips(
    scenes: Scenes, wanted: Sequence[int], settings: DetectSettings, frames: int, batch: int
) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield key frames (index and clip) in batches of at most `batch` consecutive clips of one size. Raises MissingVideos."""
    side = settings.test_short_side
    videos = scenes.clips(wanted, frames, settings.stride, side, settings.keep_decoded)
    read = all_readable(wanted, videos, len(scenes), FIX_KEY_FRAMES, "key frames")
    resized = ((index, to_short_side(video, side)) for index, video in read)
    for _, alike in groupby(resized, lambda clip: clip[1].shape):
        while clips := list(islice(alike, batch)):
            yield clips


def _to_patches(video: Tensor, patch: int) -> Tensor:
    """Pad a clip with the mean color, at the right and bottom, to multiples of a patch: uint8 `(C, T, H, W)`."""
    height, width = video.shape[-2:]
    color = torch.tensor([round(255 * value) for value in IMAGENET_MEAN], dtype=torch.uint8).view(3, 1, 1, 1)
    padded = color.repeat(1, video.shape[1], height + -height % patch, width + -width % patch)
    padded[..., :height, :width] = video
    return padded
