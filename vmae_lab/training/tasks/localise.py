"""Temporal action detection: classes, starts and ends of actions in a long video, from its features (ActionFormer).

VideoMAE V2 uses ActionFormer on its features. A model is trained on stretches of videos and tested on whole videos.
"""

from itertools import chain, repeat

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
from vmae_lab.evaluation.inference import gathered
from vmae_lab.evaluation.temporal_map import Protocol
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape, pyramid_padding, pyramid_points
from vmae_lab.training.dataloader import Batch
from vmae_lab.training.settings import TrainSettings
from vmae_lab.training.task import Task
from vmae_lab.utils.precision import Precision
from vmae_lab.utils.processes import process_state
from vmae_lab.utils.seeding import numpy_generator

TRIES = 100  # draws of a stretch until it has an action
FIRST_POSITIVES, MOMENTUM = 100.0, 0.9  # initial value and momentum of the number of positives, as in ActionFormer
HISTORY = 200  # steps in this moving average; earlier steps have a weight below float32's precision (0.9^200 = 7e-10)


class LocaliseSettings(TrainSettings):
    """Features, training and testing of a temporal detector. The defaults are ActionFormer's on THUMOS14."""

    videos: UntrimmedSettings
    features: FeatureSettings = FeatureSettings()
    shape: ActionFormerShape = ActionFormerShape()
    longest: int = Field(2304, ge=1, description="maximum number of time steps of a stretch in training")
    stretch: tuple[float, float] = Field((0.9, 1.0), description="range of the fraction of a shorter video in training")
    least_part: float = Field(0.5, gt=0, le=1, description="minimum fraction of a segment in a stretch, else it is dropped")
    radius: float = Field(1.5, gt=0, description="center sampling: positives are at most this many strides from the middle")
    drop_path: float = Field(0.1, ge=0, lt=1)
    suppress: SuppressSettings = SuppressSettings()
    thresholds: tuple[float, ...] = Field((0.3, 0.4, 0.5, 0.6, 0.7), description="temporal IoU thresholds of mAP")
    protocol: Protocol = Field("activitynet", description="evaluation script to follow for segments that are annotated twice")
    durations: dict[str, tuple[float, float]] | None = Field(
        None, description="ranges of segment lengths (above, up to; seconds) with an mAP each; if left out, THUMOS14's"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = 1.0
    ema: float | None = Field(0.999, gt=0, lt=1)
    min_lr: float = 0.0
    precision: Precision = Field(
        "auto", description="auto: fp32, as ActionFormer; bf16 has 8 bits, too few for distances to starts and ends"
    )

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if not 0 < self.stretch[0] <= self.stretch[1] <= 1:
            raise ValueError(f"stretch {list(self.stretch)} must be two fractions of a video in ascending order")
        if not self.thresholds or not all(0 < threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds {list(self.thresholds)} must be above 0 and at most 1")


class LocaliseTask(Task[ActionFormer]):
    """Predict classes, starts and ends of actions from features of annotated videos."""

    settings: LocaliseSettings

    def __init__(self, settings: LocaliseSettings, videos: Untrimmed, features: VideoFeatures, seed: int):
        # Only here, since another default in the settings would rename finished stages.
        precision = "fp32" if settings.precision == "auto" else settings.precision
        self.settings = settings.model_copy(update={"precision": precision})
        self.features, self.seed = features, seed
        self.names, self.classes = videos.names, videos.annotations.classes
        self.order = EpochOrder(len(self.names), seed, "localisation order")
        self._positives: dict[int, int] = {}  # by step
        self._segments: dict[str, tuple[Tensor, Tensor]] = {}  # by video: `(n, 2)` in time steps, and classes `(n,)`
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
        """Return `features`, `(B, T, C)`; `padding`, bool `(B, T)`; targets of the pyramid's points: `label`, `(B, P,
        classes)`, and `distances`, `(B, P, 2)`; `positives`, `(B,)`: the number that divides the loss, repeated for each row.
        """
        shape, radius = self.settings.shape, self.settings.radius
        stretches = self._stretches(step, rows)
        lengths = [part for _, _, part in stretches]
        length = _padded(max(lengths), shape.multiple)
        targets = [assign(*self.segments(*part), length, shape.levels, len(self.classes), radius) for part in stretches]
        return {
            "features": torch.stack([_filled(self.features.read(*part), length) for part in stretches]),
            "padding": torch.arange(length) >= torch.tensor(lengths)[:, None],
            "label": torch.stack([target.labels for target in targets]),
            "distances": torch.stack([target.distances for target in targets]),
            "positives": torch.full((len(rows),), self._recent_positives(step)),
        }

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """Return focal plus DIoU loss, divided by the recent number of positives. The mean over rows is the step's loss."""
        features, padding, positives = (
            batch[name].to(device, non_blocking=True) for name in ("features", "padding", "positives")
        )
        logits, predicted = model(features, padding)
        points = pyramid_padding(batch["padding"], self.settings.shape.levels)
        loss = localisation_loss(logits, predicted, batch["label"], batch["distances"], points)
        return loss / positives[0] * self.settings.batch_size / len(features)

    def stretch(self, position: int, video: str) -> tuple[int, int]:
        """Draw start and length, in time steps, of the stretch of a video at a position in the stream of samples.

        If the stretch has no action but the video has, draw again, up to a hundred times.
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
        """Return the segments in a stretch, float32 `(n, 2)` in its time steps, cut at its ends, and their classes `(n,)`."""
        whole, labels = self._segments[video]
        # Do not cut at the ends of the video: annotated segments may extend beyond the middle of the first or last window.
        low = 0.0 if start else -torch.inf
        high = length if start + length < self.features.lengths[video] else torch.inf
        cut = (whole - start).clamp(low, high)
        kept = (cut[:, 1] - cut[:, 0]) >= self.settings.least_part * (whole[:, 1] - whole[:, 0])
        return cut[kept], labels[kept]

    def _stretches(self, step: int, rows: range) -> list[tuple[str, int, int]]:
        """Return video, start and length of the stretches in some rows of a step."""
        positions = [step * self.settings.batch_size + row for row in rows]
        videos = [self.names[self.order[position]] for position in positions]
        return [(video, *self.stretch(position, video)) for position, video in zip(positions, videos, strict=True)]

    def _recent_positives(self, step: int) -> float:
        """Return ActionFormer's moving average of the number of positive points per step.

        It is a function of the step, so there is no state to save. It needs no features.
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
def localise(
    model: ActionFormer, videos: pd.DataFrame, features: VideoFeatures, settings: LocaliseSettings
) -> pd.DataFrame:  # fmt: skip
    """Predict segments for whole videos: a table with the columns PREDICTIONS, times in seconds, best scores first.

    videos: columns video, fps, duration (seconds). Processes share them, and all return the complete table. The model computes
    in float32, as in training.
    """
    device, state = next(model.parameters()).device, process_state()
    found_rows: dict[int, list[tuple]] = {}
    model.eval()
    mine = range(state.process_index, len(videos), state.num_processes)
    for number, video in zip(mine, videos.iloc[mine].itertuples(), strict=True):
        read = features.read(video.video)
        length = _padded(len(read), model.shape.multiple)
        padding = (torch.arange(length) >= len(read))[None]
        predicted = model(_filled(read, length)[None].to(device), padding.to(device))
        # On the CPU: Soft-NMS has up to 200 steps per video, and on a GPU each would wait for the one before.
        logits, distances = (values[0].float().cpu() for values in predicted)
        found = candidates(logits, distances, padding, model.shape.levels, settings.suppress)
        segments, scores, labels = (kept.numpy() for kept in suppress(*found, settings.suppress))
        times = features.times(segments.astype(float), video.fps).clip(0, video.duration)
        names = [model.classes[label] for label in labels]
        found_rows[number] = [*zip(repeat(video.video), times[:, 0], times[:, 1], names, scores.astype(float), strict=False)]
    rows = list(chain(*gathered(found_rows.items(), len(videos))))
    return pd.DataFrame(rows, columns=PREDICTIONS).astype(dict.fromkeys(["start", "end", "score"], float))


def candidates(
    logits: Tensor, distances: Tensor, padding: Tensor, levels: int, settings: SuppressSettings
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return a video's best predictions per level: segments `(n, 2)` in time steps, scores `(n,)`, classes int64 `(n,)`.

    logits: `(P, classes)`; distances: `(P, 2)`; padding: bool `(1, T)`.
    """
    times, strides = pyramid_points(padding.shape[1], levels)
    scores = logits.sigmoid().masked_fill(pyramid_padding(padding, levels)[0, :, None], 0.0)
    parts = []
    for level in range(levels):
        points = (strides == 2**level).nonzero().flatten()
        best, index = scores[points].flatten().topk(min(settings.candidates, scores[points].numel()))
        index = index[best > settings.least_score]
        point, label = points[index // scores.shape[1]], index % scores.shape[1]
        to_ends = distances[point] * strides[point, None] * torch.tensor([-1.0, 1.0])
        parts.append((times[point, None] + to_ends, scores[point, label], label))
    segments, best, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    long = segments[:, 1] - segments[:, 0] > settings.least_length
    return segments[long], best[long], labels[long]


def _padded(length: int, multiple: int) -> int:
    """Return the smallest multiple that is at least `length`."""
    return length + -length % multiple


def _filled(features: Tensor, length: int) -> Tensor:
    """Pad features with zeros: `(n, C)` -> `(length, C)`."""
    return functional.pad(features, (0, 0, 0, length - len(features)))
