"""Spatial action detection: who does what, where, in a key frame (VideoMAE, section 4.2, on AVA)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Literal

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from vmae_lab.data.ava import COLUMNS, CORNERS, KEY, Scenes, SceneSettings
from vmae_lab.data.corrupt_videos import CorruptVideos, read_or_replace
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import FIX_KEY_FRAMES, MissingVideos
from vmae_lab.data.samplers import EpochOrder
from vmae_lab.data.transforms import BoxAugment, augment_scene, enlarged, to_short_side
from vmae_lab.data.video_lists import ListError
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.checkpoints import State
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.vit import IMAGENET_MEAN
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.settings import TrainSettings
from vmae_lab.utils.seeding import derive, torch_generator

Whose = Literal["true", "persons"]  # boxes that a model is asked about: the ground truth's, or a person detector's


class DetectSettings(TrainSettings):
    """Training and testing of a detector of actions; the defaults are the paper's on AVA."""

    scenes: SceneSettings
    stride: int = Field(4, ge=1, description="frames between two frames of a clip")
    side: int = Field(224, ge=1, description="height and width of the crops trained on, pixels; testing takes whole frames")
    test_short_side: int = Field(256, ge=1, description="short side of the frames in testing, pixels")
    augment: BoxAugment = BoxAugment()
    most_boxes: int = Field(100, ge=1, description="people of a key frame that are trained on, at most")
    person_score: float = Field(0.8, ge=0, le=1, description="least score of a person detector's box in testing")
    enlarge: tuple[float, float] = Field((0.1, 0.05), description="growth of such a box, in parts of its width and height")
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = Field(0.75, gt=0, le=1)
    drop_path: float = Field(0.2, ge=0, lt=1)
    head_init_scale: float = Field(0.001, gt=0)

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        low, high = self.augment.short_side
        if not self.side <= low <= high:
            raise ValueError(f"augment.short_side {[low, high]}: a rising pair from side {self.side} on is expected")

    def check_model(self, model: ModelSettings) -> None:
        """Raise ValueError where the crops do not split into the model's cubes."""
        if self.side % model.clip.patch:
            raise ValueError(f"side {self.side} is not a multiple of the model's patch of {model.clip.patch} pixels")


class DetectTask:
    """Say of each person in a key frame what they do, from a pre-trained encoder's weights or from scratch (None)."""

    def __init__(
        self,
        model: ModelSettings,
        settings: DetectSettings,
        scenes: Scenes,
        encoder: State | None,
        seed: int,
        corrupt_videos: CorruptVideos | None = None,
    ):
        self.model, self.settings, self.scenes, self.encoder, self.seed = model, settings, scenes, encoder, seed
        self.corrupt_videos = CorruptVideos() if corrupt_videos is None else corrupt_videos

    def build(self) -> ActionDetector:
        settings = self.settings
        classes = len(self.scenes.actions)
        model = ActionDetector(self.model.dimensions, self.model.clip, classes, settings.drop_path, settings.head_init_scale)
        if self.encoder is not None:
            model.load_encoder(self.encoder)
        return model

    def batches(self, rows: range) -> "DetectBatches":
        return DetectBatches(self, rows)

    def weight(self, batch: Batch) -> float:
        return float(batch["there"].sum())

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """Binary cross-entropy, mean over people and classes; 0 where nobody is left in the crops (boxes under a pixel)."""
        video, boxes, there, labels = (
            batch[name].to(device, non_blocking=True) for name in ("video", "boxes", "there", "label")
        )
        scores = model(video, boxes)
        terms = functional.binary_cross_entropy_with_logits(scores[there].float(), labels[there], reduction="none")
        return terms.sum() / max(1, terms.numel())


class DetectBatches(Dataset):
    """Step -> a process's rows: uint8 `video (B, C, T, S, S)`, `boxes (B, M, 4)` in its pixels, bool `there (B, M)`, float
    `label (B, M, classes)`; M is the largest number of people in a clip. A pure function of (seed, step).
    """

    def __init__(self, task: DetectTask, rows: range):
        self.task, self.rows = task, rows
        self.order = EpochOrder(len(task.scenes.labelled), task.seed, "detection order")

    def __getitem__(self, step: int) -> Batch:
        samples = [self._sample(step * self.task.settings.batch_size + row) for row in self.rows]
        videos, boxes, labels = zip(*samples, strict=True)
        return {
            "video": torch.stack(videos), "boxes": _padded(boxes), "label": _padded(labels),
            "there": _padded([torch.ones(len(some), dtype=torch.bool) for some in boxes]),
        }  # fmt: skip

    def _sample(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """The augmented clip at a position of the stream, its boxes in pixels and what is done in them."""
        task, settings, labelled = self.task, self.task.settings, self.task.scenes.labelled

        def read(row: int) -> Tensor:
            most = settings.augment.short_side[1]
            return task.scenes.clip(labelled[row], task.model.frames, settings.stride, most, keep=_kept(settings))

        row, video = read_or_replace(self.order, position, read, task.corrupt_videos)
        boxes, labels = task.scenes.labelled_boxes(labelled[row])
        seed = derive(task.seed, "scene augmentation", position)
        video, boxes, kept = augment_scene(video, boxes, settings.side, settings.augment, seed)
        chosen = torch.randperm(len(kept), generator=torch_generator(task.seed, "people trained on", position))
        chosen = chosen[: settings.most_boxes]
        return video, boxes[chosen], labels[kept[chosen]].float()


@torch.no_grad()
def detect(
    model: ActionDetector, scenes: Scenes, settings: DetectSettings, shape: ModelSettings,
    whose: Sequence[Whose] = ("persons",), batch: int = 16,
) -> dict[Whose, pd.DataFrame]:  # fmt: skip
    """What a model says of each person of each key frame: COLUMNS and `score`, a row a class, in the lists' order.

    `whose` boxes: of `persons`, those that the person detector is sure of, enlarged, and its score is a factor of theirs;
    or the `true` ones. Whole frames, each clip read once and encoded once. Raises MissingVideos where one cannot be read,
    ListError where there are no boxes.
    """
    people = {one: people_of(scenes, one, settings.person_score) for one in whose}
    grow = {one: settings.enlarge if one == "persons" else (0.0, 0.0) for one in whose}
    device = next(model.parameters()).device
    found: dict[Whose, list[pd.DataFrame]] = {one: [] for one in whose}
    model.eval()
    for clips in _test_clips(scenes, settings, shape, people, batch):
        padded = torch.stack([_to_patches(video, shape.clip.patch) for _, video, _ in clips])
        pixels = [
            torch.cat([enlarged(boxes, *grow[one]) for one, (boxes, _) in here.items()]) * torch.tensor(_size(video) * 2)
            for _, video, here in clips
        ]
        scores = model(padded.to(device), _padded(pixels).to(device)).float().sigmoid().cpu()
        for said, (index, _, here) in zip(scores, clips, strict=True):
            counts = [len(boxes) for boxes, _ in here.values()]
            for (one, (boxes, sure)), part in zip(here.items(), said[: sum(counts)].split(counts), strict=True):
                if len(boxes):
                    found[one].append(_rows(scenes, index, boxes, part * sure[:, None]))
    empty = pd.DataFrame(columns=[*COLUMNS, "score"])
    return {one: pd.concat(rows, ignore_index=True) if rows else empty for one, rows in found.items()}


def people_of(scenes: Scenes, whose: Whose, least_score: float) -> pd.DataFrame:
    """Who is asked about: KEY, CORNERS and `score`, of true boxes 1, of others from a score on. ListError without such."""
    if whose == "true":
        return scenes.truth.drop_duplicates([*KEY, *CORNERS]).assign(score=1.0)
    if scenes.persons is None:
        raise ListError("scenes.lists: this split names no person detector's boxes (persons); `vmae-lab persons` makes them")
    return scenes.persons[scenes.persons.score >= least_score]


def _test_clips(
    scenes: Scenes, settings: DetectSettings, shape: ModelSettings, people: Mapping[Whose, pd.DataFrame], batch: int
) -> Iterator[list[tuple[int, Tensor, Mapping[Whose, tuple[Tensor, Tensor]]]]]:
    """Key frames with people in them, neighbours of one size together: number, clip, and boxes in [0, 1] and how sure they are.

    What follows one that cannot be read is only tried.
    """
    rows = {one: table.groupby(KEY).indices for one, table in people.items()}
    keys, side = list(scenes.keys[KEY].itertuples(index=False, name=None)), settings.test_short_side
    wanted = [index for index, key in enumerate(keys) if any(key in there for there in rows.values())]
    failed: dict[int, VideoError] = {}

    def read() -> Iterator[tuple[int, Tensor, Mapping[Whose, tuple[Tensor, Tensor]]]]:
        clips = scenes.clips(wanted, shape.frames, settings.stride, side, keep=_kept(settings))
        for index, video in zip(wanted, clips, strict=True):
            if isinstance(video, VideoError):
                failed[index] = video
            elif not failed:
                here = {one: people[one].iloc[rows[one].get(keys[index], [])] for one in people}
                yield index, to_short_side(video, side), {one: _boxes(some) for one, some in here.items()}

    for _, alike in groupby(read(), lambda clip: clip[1].shape):
        while clips := list(islice(alike, batch)):
            yield clips
    if failed:
        raise MissingVideos(failed, len(scenes), FIX_KEY_FRAMES, "key frames")


def _boxes(people: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """Boxes `(n, 4)` and scores `(n,)`."""
    boxes, scores = (torch.tensor(people[names].to_numpy(float)).float() for names in (CORNERS, "score"))
    return boxes, scores


def _kept(settings: DetectSettings) -> bool:
    """The embedded scenes are few and small enough to be kept."""
    return settings.scenes.motionworld is not None


def _rows(scenes: Scenes, index: int, boxes: Tensor, scores: Tensor) -> pd.DataFrame:
    classes, key = sorted(scenes.actions), scenes.keys.iloc[index]
    each = pd.DataFrame(boxes.double().numpy(), columns=CORNERS).assign(video=key.video, timestamp=key.timestamp)
    table = each.loc[each.index.repeat(len(classes))].reset_index(drop=True)
    return table.assign(action_id=classes * len(boxes), score=scores.flatten().double().numpy())[[*COLUMNS, "score"]]


def _padded(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """`(n, ...)` of different n -> `(B, M, ...)`, filled up with zeros."""
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def _size(video: Tensor) -> tuple[int, int]:
    return video.shape[-1], video.shape[-2]


def _to_patches(video: Tensor, patch: int) -> Tensor:
    """A clip filled up with the mean colour, at its right and lower edges, to multiples of a patch: uint8 `(C, T, H, W)`."""
    height, width = video.shape[-2:]
    filled = torch.tensor([round(255 * value) for value in IMAGENET_MEAN], dtype=torch.uint8).view(3, 1, 1, 1)
    filled = filled.repeat(1, video.shape[1], height + -height % patch, width + -width % patch)
    filled[..., :height, :width] = video
    return filled
