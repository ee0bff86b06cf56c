"""Detection of people in key frames, for lists without boxes, with torchvision's detector or a custom one."""

import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights, fasterrcnn_resnet50_fpn_v2

from vmae_lab.data.ava import CORNERS, KEY, Scenes
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import FIX_KEY_FRAMES, MissingVideos
from vmae_lab.models.checkpoints import CheckpointError, load_weights
from vmae_lab.utils.progress import Progress

PUBLISHED = FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1
PERSON = PUBLISHED.meta["categories"].index("person")
SHORT_SIDE = 480  # short side of the frames in pixels; the detector resizes them


class PersonDetector(Protocol):
    """A detector: frames, uint8 `(C, H, W)` of any size -> per frame, boxes `(n, 4)` in pixels and scores `(n,)`."""

    def __call__(self, frames: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]: ...


class TorchvisionDetector:
    """Torchvision's Faster R-CNN (ResNet-50, FPN, v2), trained on COCO."""

    def __init__(self, weights: str | Path | None = None, device: str = "cpu"):
        """Load weights from a file, or the published ones (from the cache or the network). Raises CheckpointError."""
        self.device = device
        self.model: nn.Module = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        load_weights(self.model, _state(weights), str(weights or PUBLISHED.url))
        self.model.to(device).eval()

    @torch.no_grad()
    def __call__(self, frames: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        people = []
        for found in self.model([frame.to(self.device) / 255 for frame in frames]):
            is_person = found["labels"] == PERSON
            people.append((found["boxes"][is_person].cpu(), found["scores"][is_person].cpu()))
        return people


def detect_people(detector: PersonDetector, scenes: Scenes, least_score: float = 0.05, batch: int = 4) -> pd.DataFrame:
    """Detect the people in every key frame: KEY, CORNERS relative to width and height, and `score`.

    Boxes without area and boxes below `least_score` are removed. Raises MissingVideos if a key frame cannot be read.
    """
    found: list[pd.DataFrame] = []
    failed: dict[int, VideoError] = {}
    with Progress(range(0, len(scenes), batch), desc="finding people", unit="batches") as starts:
        for start in starts:
            frames: dict[int, Tensor] = {}
            for index in range(start, min(start + batch, len(scenes))):
                try:
                    frames[index] = scenes.clip(index, 1, 1, SHORT_SIDE)[:, 0]
                except VideoError as error:
                    failed[index] = error
            detections = detector(list(frames.values())) if frames else []
            found += [_rows(scenes, *frame, *people) for frame, people in zip(frames.items(), detections, strict=True)]
    if failed:
        raise MissingVideos(failed, len(scenes), FIX_KEY_FRAMES, "key frames")
    table = pd.concat([pd.DataFrame(columns=[*KEY, *CORNERS, "score"]), *found])
    table = table.astype(dict.fromkeys(["timestamp", *CORNERS, "score"], float))
    kept = (table.score >= least_score) & (table.x2 > table.x1) & (table.y2 > table.y1)
    return table[kept].reset_index(drop=True)


def _rows(scenes: Scenes, index: int, frame: Tensor, boxes: Tensor, scores: Tensor) -> pd.DataFrame:
    """Return the people of a frame, highest score first. Numbers are rounded as in files, so that boxes keep their area."""
    height, width = frame.shape[-2:]
    parts = (boxes.double() / torch.tensor([width, height] * 2)).clamp(0, 1)
    table = pd.DataFrame(parts.numpy().round(6), columns=CORNERS).assign(score=scores.double().numpy())
    key = scenes.keys.iloc[index]
    table = table.assign(video=key.video, timestamp=key.timestamp).sort_values("score", ascending=False, kind="stable")
    return table[[*KEY, *CORNERS, "score"]]


def _state(weights: str | Path | None) -> dict[str, Tensor]:
    if weights is None:
        try:
            return PUBLISHED.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
        except OSError as error:  # no network, or a full disk
            raise CheckpointError(
                f"cannot download the weights of the person detector from {PUBLISHED.url}: {error}. Download the file on a "
                "machine with a network connection, and pass its path"
            ) from error
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        cause = getattr(error, "strerror", None) or "it is not a weights file, or contains other objects"
        raise CheckpointError(
            f"cannot read the weights of the person detector from {weights}: {cause}. Download them from {PUBLISHED.url}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{weights} has no state dictionary; download the file from {PUBLISHED.url}")
    return state
