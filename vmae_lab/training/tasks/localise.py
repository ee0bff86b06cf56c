"""Temporal action detection: when which action happens in a long video, from its features (ActionFormer, used by VideoMAE V2).

Trained on stretches of videos, tested on whole ones, through `models.localiser`.
"""

from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from vmae_lab.data.activitynet import PREDICTIONS, Untrimmed, UntrimmedSettings
from vmae_lab.data.samplers import EpochOrder
from vmae_lab.data.video_features import VideoFeatures
from vmae_lab.detection.label_assignment import Targets, assign, localisation_loss, positive_points
from vmae_lab.detection.soft_nms import SuppressSettings, suppress
from vmae_lab.evaluation.features import FeatureSettings
from vmae_lab.evaluation.temporal_map import Protocol
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape, pyramid_padding, pyramid_points
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.settings import TrainSettings
from vmae_lab.utils.seeding import numpy_generator

TRIES = 100  # to find a stretch with an action in it
FIRST_POSITIVES, MOMENTUM = 100.0, 0.9  # of the number of positives that the loss is divided by: ActionFormer's
HISTORY = 200  # steps that it is a mean of: what was before weighs less than float32's rounding (.9^200 = 7e-10)


class LocaliseSettings(TrainSettings):
    """Features, training and testing of a temporal detector; the defaults are ActionFormer's on THUMOS14."""

    videos: UntrimmedSettings
    features: FeatureSettings = FeatureSettings()
    shape: ActionFormerShape = ActionFormerShape()
    longest: int = Field(2304, ge=1, description="time steps of a video that are trained on at once, at most")
    stretch: tuple[float, float] = Field(
        (0.9, 1.0), description="part of a shorter video that is trained on, drawn between these"
    )
    least_part: float = Field(
        0.5, gt=0, le=1, description="part of a segment that is left in a stretch, or it is not trained on"
    )
    radius: float = Field(
        1.5, gt=0, description="centre sampling: strides from a segment's middle up to which points answer for it"
    )
    drop_path: float = Field(0.1, ge=0, lt=1)
    suppress: SuppressSettings = SuppressSettings()
    thresholds: tuple[float, ...] = Field((0.3, 0.4, 0.5, 0.6, 0.7), description="temporal IoU of mAP")
    protocol: Protocol = Field(
        "activitynet", description="whose script is followed where they differ: in twice annotated segments"
    )
    durations: dict[str, tuple[float, float]] | None = Field(
        None, description="lengths, above and up to so many seconds, by which mAP is told apart; THUMOS14's where left out"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = 1.0
    ema: float | None = Field(0.999, gt=0, lt=1)
    min_lr: float = 0.0

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if not 0 < self.stretch[0] <= self.stretch[1] <= 1:
            raise ValueError(f"stretch {list(self.stretch)}: a rising pair of parts of a video is expected")
        if not self.thresholds or not all(0 < one <= 1 for one in self.thresholds):
            raise ValueError(f"thresholds {list(self.thresholds)}: overlaps above 0 and up to 1 are expected")


class LocaliseTask:
    """Say when which action happens, from features of videos that are annotated."""

    def __init__(self, settings: LocaliseSettings, videos: Untrimmed, features: VideoFeatures, seed: int):
        self.settings, self.features, self.seed = settings, features, seed
        self.names, self.classes = videos.names, videos.annotations.classes
        self._segments = _grouped(videos, features)

    def build(self) -> ActionFormer:
        return ActionFormer(self.settings.shape, self.features.width, self.classes, self.settings.drop_path)

    def batches(self, rows: range) -> "LocaliseBatches":
        return LocaliseBatches(self, rows)

    def weight(self, batch: Batch) -> float:
        return float(len(batch["features"]))

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """Focal and DIoU loss by the recent number of positives, such that the loss of a step's rows is their mean."""
        features, padding, labels, distances, positives = (
            batch[name].to(device, non_blocking=True) for name in ("features", "padding", "label", "distances", "positives")
        )
        logits, said = model(features, padding)
        wrong = localisation_loss(logits, said, labels, distances, pyramid_padding(padding, self.settings.shape.levels))
        return wrong / positives[0] * self.settings.batch_size / len(features)

    def stretch(self, position: int, video: str) -> tuple[int, int]:
        """Where the stretch of a video begins that stands at a position of the stream, and how long it is, in time steps.

        Another one is drawn, up to a hundred times, where there is no action in it though there is one in the video.
        """
        settings, whole = self.settings, self.features.lengths[video]
        for attempt in range(TRIES):
            rng = numpy_generator(self.seed, "stretch of a video", position, attempt)
            part = settings.longest if whole > settings.longest else max(1, round(whole * rng.uniform(*settings.stretch)))
            start = int(rng.integers(whole - part + 1))
            if not len(self._segments[video][1]) or len(self.segments(video, start, part)[1]):
                break
        return start, part

    def segments(self, video: str, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Segments, float32 `(n, 2)` in time steps of a stretch, and classes, int64 `(n,)`; cut where they reach beyond it."""
        whole, labels = self._segments[video]
        # A video's own ends cut nothing: an annotated segment may reach beyond the middles of its first and last window.
        low = 0.0 if start else -torch.inf
        high = length if start + length < self.features.lengths[video] else torch.inf
        cut = (whole - start).clamp(low, high)
        kept = (cut[:, 1] - cut[:, 0]) >= self.settings.least_part * (whole[:, 1] - whole[:, 0])
        return cut[kept], labels[kept]


class LocaliseBatches(Dataset):
    """Step -> a process's rows: `features (B, T, C)`, bool `padding (B, T)`, the points' targets `label (B, P, classes)` and
    `distances (B, P, 2)`, and `positives (B,)`, one number that the loss is divided by. A pure function of (seed, step).
    """

    def __init__(self, task: LocaliseTask, rows: range):
        self.task, self.rows = task, rows
        self.order = EpochOrder(len(task.names), task.seed, "localisation order")
        self._positives = lru_cache(maxsize=2 * HISTORY)(self._count)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocaliseBatches, (self.task, self.rows)  # as a loader process that is spawned gets it: the cache stays behind

    def __getitem__(self, step: int) -> Batch:
        task, shape = self.task, self.task.settings.shape
        positions = [step * task.settings.batch_size + row for row in self.rows]
        places = [self._place(position) for position in positions]
        length = _padded(max(part for _, _, part in places), shape.multiple)
        targets = [self._targets(*place, length) for place in places]
        features = torch.stack([_filled(task.features.read(video, start, n), length) for video, start, n in places])
        return {
            "features": features,
            "padding": torch.arange(length) >= torch.tensor([[n] for _, _, n in places]),
            "label": torch.stack([one.labels for one in targets]),
            "distances": torch.stack([one.distances for one in targets]),
            "positives": torch.full((len(places),), self._recent_positives(step)),
        }

    def _place(self, position: int) -> tuple[str, int, int]:
        video = self.task.names[self.order[position]]
        return video, *self.task.stretch(position, video)

    def _targets(self, video: str, start: int, part: int, length: int) -> Targets:
        task = self.task
        segments, labels = task.segments(video, start, part)
        return assign(segments, labels, length, task.settings.shape.levels, len(task.classes), task.settings.radius)

    def _recent_positives(self, step: int) -> float:
        """A moving average, as ActionFormer keeps one, of positive points a step: of all rows of the step, of whatever process.

        A function of the step: it needs no features, and nothing that a resumed run would have to remember.
        """
        mean = FIRST_POSITIVES
        for past in range(max(0, step - HISTORY), step + 1):
            mean = MOMENTUM * mean + (1 - MOMENTUM) * max(self._positives(past), 1)
        return mean

    def _count(self, step: int) -> int:
        """Points of the whole step's rows that answer for a segment, also where the step was later skipped by going back."""
        batch, shape = self.task.settings.batch_size, self.task.settings.shape
        count = 0
        for video, start, part in (self._place(step * batch + row) for row in range(batch)):
            length = _padded(part, shape.multiple)
            padding = pyramid_padding(torch.arange(length)[None] >= part, shape.levels)[0]
            segments, _ = self.task.segments(video, start, part)
            count += int((positive_points(segments, length, shape.levels, self.task.settings.radius) & ~padding).sum())
        return count


@torch.no_grad()
def localise(model: ActionFormer, videos: Untrimmed, features: VideoFeatures, settings: LocaliseSettings) -> pd.DataFrame:
    """What a model says of whole videos: PREDICTIONS, best first in each video, times in seconds inside it."""
    device, found = next(model.parameters()).device, []
    model.eval()
    for video in videos.annotations.videos.itertuples():
        there = features.read(video.video)
        length = _padded(len(there), model.shape.multiple)
        padding = (torch.arange(length) >= len(there))[None].to(device)
        logits, distances = model(_filled(there, length)[None].to(device), padding)
        answers = answers_of(logits[0].float(), distances[0].float(), padding, model.shape.levels, settings.suppress)
        segments, scores, labels = (one.cpu().numpy() for one in suppress(*answers, settings.suppress))
        times = features.times(segments.astype(float), video.fps).clip(0, video.duration)
        names = [model.classes[label] for label in labels]
        rows = {"video": video.video, "start": times[:, 0], "end": times[:, 1], "label": names, "score": scores.astype(float)}
        if len(names):
            found.append(pd.DataFrame(rows))
    nothing = pd.DataFrame(columns=PREDICTIONS).astype(dict.fromkeys(["start", "end", "score"], float))
    return pd.concat(found, ignore_index=True) if found else nothing


def answers_of(
    logits: Tensor, distances: Tensor, padding: Tensor, levels: int, settings: SuppressSettings
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The best answers of every level for one video: segments `(n, 2)` in time steps, scores `(n,)`, classes int64 `(n,)`.

    `(P, classes)`, `(P, 2)`, and which time steps are padding, bool `(1, T)`.
    """
    times, strides = (one.to(logits.device) for one in pyramid_points(padding.shape[1], levels))
    scores = logits.sigmoid().masked_fill(pyramid_padding(padding, levels)[0, :, None], 0.0)
    parts = []
    for level in range(levels):
        here = (strides == 2**level).nonzero().flatten()
        best, index = scores[here].flatten().topk(min(settings.candidates, scores[here].numel()))
        index = index[best > settings.least_score]
        point, label = here[index // scores.shape[1]], index % scores.shape[1]
        to_ends = distances[point] * strides[point, None] * torch.tensor([-1.0, 1.0], device=logits.device)
        parts.append((times[point, None] + to_ends, scores[point, label], label))
    segments, best, labels = (torch.cat(one) for one in zip(*parts, strict=True))
    long = segments[:, 1] - segments[:, 0] > settings.least_length
    return segments[long], best[long], labels[long]


def _grouped(videos: Untrimmed, features: VideoFeatures) -> dict[str, tuple[Tensor, Tensor]]:
    """Each video's segments in time steps, and classes."""
    codes = {name: code for code, name in enumerate(videos.annotations.classes)}
    rows = videos.annotations.segments
    by_video = rows.groupby("video").indices
    grouped = {}
    for video in videos.annotations.videos.itertuples():
        mine = rows.iloc[by_video.get(video.video, [])]
        steps = features.steps(mine[["start", "end"]].to_numpy(float), video.fps)
        labels = torch.tensor([codes[label] for label in mine.label], dtype=torch.int64)
        grouped[video.video] = torch.from_numpy(steps).float().reshape(-1, 2), labels
    return grouped


def _padded(length: int, multiple: int) -> int:
    return length + -length % multiple


def _filled(features: Tensor, length: int) -> Tensor:
    """`(n, C)` filled up with zeros: `(length, C)`."""
    return nn.functional.pad(features, (0, 0, 0, length - len(features)))
