"""Temporal action detection: when which action happens in a long video, from its features (ActionFormer, used by VideoMAE V2).

A model is trained on stretches of videos and tested on whole ones.
"""

from itertools import repeat

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vmae_lab.data.activitynet import PREDICTIONS, Untrimmed, UntrimmedSettings
from vmae_lab.data.samplers import EpochOrder
from vmae_lab.data.video_features import VideoFeatures
from vmae_lab.detection.label_assignment import assign, localisation_loss, positive_points
from vmae_lab.detection.soft_nms import SuppressSettings, suppress
from vmae_lab.evaluation.features import FeatureSettings
from vmae_lab.evaluation.temporal_map import Protocol
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape, pyramid_padding, pyramid_points
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.settings import TrainSettings
from vmae_lab.utils.seeding import numpy_generator

TRIES = 100  # to draw a stretch with an action
FIRST_POSITIVES, MOMENTUM = 100.0, 0.9  # of the number of positives that divides the loss, as in ActionFormer
HISTORY = 200  # steps in its moving average; earlier ones weigh less than float32's rounding (0.9^200 = 7e-10)


class LocaliseSettings(TrainSettings):
    """Features, training and testing of a temporal detector; the defaults are ActionFormer's on THUMOS14."""

    videos: UntrimmedSettings
    features: FeatureSettings = FeatureSettings()
    shape: ActionFormerShape = ActionFormerShape()
    longest: int = Field(2304, ge=1, description="largest number of time steps of a video in training")
    stretch: tuple[float, float] = Field((0.9, 1.0), description="part of a shorter video in training, drawn between these")
    least_part: float = Field(0.5, gt=0, le=1, description="part of a segment that must be in the stretch, else it is left out")
    radius: float = Field(1.5, gt=0, description="centre sampling: points up to this many strides from a segment's middle")
    drop_path: float = Field(0.1, ge=0, lt=1)
    suppress: SuppressSettings = SuppressSettings()
    thresholds: tuple[float, ...] = Field((0.3, 0.4, 0.5, 0.6, 0.7), description="temporal IoU of mAP")
    protocol: Protocol = Field("activitynet", description="the script to follow for segments that are annotated twice")
    durations: dict[str, tuple[float, float]] | None = Field(
        None, description="ranges of lengths, above and up to seconds, with an mAP each; THUMOS14's if left out"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = 1.0
    ema: float | None = Field(0.999, gt=0, lt=1)
    min_lr: float = 0.0

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if not 0 < self.stretch[0] <= self.stretch[1] <= 1:
            raise ValueError(f"stretch {list(self.stretch)}: expected two parts of a video in ascending order")
        if not self.thresholds or not all(0 < one <= 1 for one in self.thresholds):
            raise ValueError(f"thresholds {list(self.thresholds)}: expected overlaps above 0 and up to 1")


class LocaliseTask:
    """Predict when which action happens, from features of annotated videos."""

    def __init__(self, settings: LocaliseSettings, videos: Untrimmed, features: VideoFeatures, seed: int):
        self.settings, self.features, self.seed = settings, features, seed
        self.names, self.classes = videos.names, videos.annotations.classes
        self.order = EpochOrder(len(self.names), seed, "localisation order")
        self._positives: dict[int, int] = {}  # by step
        self._segments: dict[str, tuple[Tensor, Tensor]] = {}  # of each video: in time steps `(n, 2)`, and classes `(n,)`
        rows = videos.annotations.segments
        rows_of = rows.groupby("video").indices
        for video in videos.annotations.videos.itertuples():
            found = rows.iloc[rows_of.get(video.video, [])]
            steps = features.steps(found[["start", "end"]].to_numpy(float), video.fps)
            labels = torch.tensor([self.classes.index(label) for label in found.label], dtype=torch.int64)
            self._segments[video.video] = torch.from_numpy(steps).float().reshape(-1, 2), labels

    def build(self) -> ActionFormer:
        return ActionFormer(self.settings.shape, self.features.width, self.classes, self.settings.drop_path)

    def batch(self, step: int, rows: range) -> Batch:
        """`features (B, T, C)`, bool `padding (B, T)`, the points' targets `label (B, P, classes)` and `distances (B, P, 2)`,
        and `positives (B,)`, one number by which the loss is divided.
        """
        shape, radius = self.settings.shape, self.settings.radius
        stretches = self._stretches(step, rows)
        parts = [part for _, _, part in stretches]
        length = _padded(max(parts), shape.multiple)
        targets = [assign(*self.segments(*one), length, shape.levels, len(self.classes), radius) for one in stretches]
        return {
            "features": torch.stack([_filled(self.features.read(*one), length) for one in stretches]),
            "padding": torch.arange(length) >= torch.tensor(parts)[:, None],
            "label": torch.stack([one.labels for one in targets]),
            "distances": torch.stack([one.distances for one in targets]),
            "positives": torch.full((len(rows),), self._recent_positives(step)),
        }

    def weight(self, batch: Batch) -> float:
        return float(len(batch["features"]))

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """Focal and DIoU loss divided by the recent number of positives, and scaled so that a step's loss is its rows' mean."""
        features, padding, labels, distances, positives = (
            batch[name].to(device, non_blocking=True) for name in ("features", "padding", "label", "distances", "positives")
        )
        logits, predicted = model(features, padding)
        points = pyramid_padding(padding, self.settings.shape.levels)
        loss = localisation_loss(logits, predicted, labels, distances, points)
        return loss / positives[0] * self.settings.batch_size / len(features)

    def stretch(self, position: int, video: str) -> tuple[int, int]:
        """Start and length, in time steps, of the stretch of a video at a position of the stream.

        It is drawn again, up to a hundred times, if it has no action though the video has one.
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
        """Segments, float32 `(n, 2)` in time steps of a stretch and cut at its ends, and their classes, int64 `(n,)`."""
        whole, labels = self._segments[video]
        # The video's own ends cut nothing: an annotated segment may extend beyond the middles of its first and last window.
        low = 0.0 if start else -torch.inf
        high = length if start + length < self.features.lengths[video] else torch.inf
        cut = (whole - start).clamp(low, high)
        kept = (cut[:, 1] - cut[:, 0]) >= self.settings.least_part * (whole[:, 1] - whole[:, 0])
        return cut[kept], labels[kept]

    def _stretches(self, step: int, rows: range) -> list[tuple[str, int, int]]:
        """Video, start and length of some rows of a step."""
        positions = [step * self.settings.batch_size + row for row in rows]
        videos = [self.names[self.order[position]] for position in positions]
        return [(video, *self.stretch(position, video)) for position, video in zip(positions, videos, strict=True)]

    def _recent_positives(self, step: int) -> float:
        """ActionFormer's moving average of the number of positive points in all rows of a step.

        A function of the step: it needs no features, and a resumed run has nothing to restore.
        """
        mean = FIRST_POSITIVES
        for past in range(max(0, step - HISTORY), step + 1):
            if past not in self._positives:
                self._positives[past] = self._count_positives(past)
            mean = MOMENTUM * mean + (1 - MOMENTUM) * max(self._positives[past], 1)
        return mean

    def _count_positives(self, step: int) -> int:
        shape, count = self.settings.shape, 0
        for video, start, part in self._stretches(step, range(self.settings.batch_size)):
            length = _padded(part, shape.multiple)
            padding = pyramid_padding(torch.arange(length)[None] >= part, shape.levels)[0]
            segments, _ = self.segments(video, start, part)
            count += int((positive_points(segments, length, shape.levels, self.settings.radius) & ~padding).sum())
        return count


@torch.no_grad()
def localise(model: ActionFormer, videos: Untrimmed, features: VideoFeatures, settings: LocaliseSettings) -> pd.DataFrame:
    """What a model predicts for whole videos: PREDICTIONS, the best of each video first, times in seconds."""
    device, rows = next(model.parameters()).device, list[tuple]()
    model.eval()
    for video in videos.annotations.videos.itertuples():
        read = features.read(video.video)
        length = _padded(len(read), model.shape.multiple)
        padding = (torch.arange(length) >= len(read))[None].to(device)
        logits, distances = model(_filled(read, length)[None].to(device), padding)
        found = candidates(logits[0].float(), distances[0].float(), padding, model.shape.levels, settings.suppress)
        segments, scores, labels = (one.cpu().numpy() for one in suppress(*found, settings.suppress))
        times = features.times(segments.astype(float), video.fps).clip(0, video.duration)
        names = [model.classes[label] for label in labels]
        rows += zip(repeat(video.video), times[:, 0], times[:, 1], names, scores.astype(float), strict=False)
    return pd.DataFrame(rows, columns=PREDICTIONS).astype(dict.fromkeys(["start", "end", "score"], float))


def candidates(
    logits: Tensor, distances: Tensor, padding: Tensor, levels: int, settings: SuppressSettings
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The best predictions of every level for one video: segments `(n, 2)` in time steps, scores `(n,)`, classes int64 `(n,)`.

    From `(P, classes)`, `(P, 2)`, and which time steps are padding, bool `(1, T)`.
    """
    times, strides = (one.to(logits.device) for one in pyramid_points(padding.shape[1], levels))
    scores = logits.sigmoid().masked_fill(pyramid_padding(padding, levels)[0, :, None], 0.0)
    parts = []
    for level in range(levels):
        points = (strides == 2**level).nonzero().flatten()
        best, index = scores[points].flatten().topk(min(settings.candidates, scores[points].numel()))
        index = index[best > settings.least_score]
        point, label = points[index // scores.shape[1]], index % scores.shape[1]
        to_ends = distances[point] * strides[point, None] * torch.tensor([-1.0, 1.0], device=logits.device)
        parts.append((times[point, None] + to_ends, scores[point, label], label))
    segments, best, labels = (torch.cat(one) for one in zip(*parts, strict=True))
    long = segments[:, 1] - segments[:, 0] > settings.least_length
    return segments[long], best[long], labels[long]


def _padded(length: int, multiple: int) -> int:
    return length + -length % multiple


def _filled(features: Tensor, length: int) -> Tensor:
    """`(n, C)` padded with zeros: `(length, C)`."""
    return functional.pad(features, (0, 0, 0, length - len(features)))
