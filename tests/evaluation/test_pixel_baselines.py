"""The pixel baselines read no more of large clips than they need."""

import numpy as np

from vmae_lab.data.memmap_dataset import MemmapDataset
from vmae_lab.data.motionworld import ClipRecord
from vmae_lab.evaluation import pixel_baselines
from vmae_lab.models.sizes import ModelSettings


def clips(count: int) -> MemmapDataset:
    frames = np.random.default_rng(0).integers(0, 256, (count, 4, 64, 64, 3), dtype=np.uint8)
    records = [ClipRecord(f"{row}.mp4", "train", "digits", ["move_left", "move_right"][row % 2], 4) for row in range(count)]
    return MemmapDataset(frames, np.arange(count), records)


def test_large_frames_are_reduced(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        pixel_baselines, "ridge_answers", lambda x, y, others, alphas: sizes.append(x.shape) or y[: len(others)]
    )
    monkeypatch.setattr(MemmapDataset, "labels", np.arange(12) % 2)
    pixel_baselines.single_frame_accuracies(clips(12), clips(12), 64)
    pixel_baselines.single_frame_accuracies(clips(12), clips(12), 24)
    assert sizes == 4 * [(12, 16 * 16 * 3)] + 4 * [(12, 12 * 12 * 3)]


def test_only_labeled_clips_are_read_for_raw_pixels(monkeypatch):
    read, video = [], MemmapDataset.video
    monkeypatch.setattr(
        MemmapDataset, "video", lambda self, index, *rest: read.append(self.name(index)) or video(self, index, *rest)
    )
    monkeypatch.setattr(MemmapDataset, "labels", np.arange(4) % 2)
    model = ModelSettings(size="micro", frames=4, side=16)
    pixel_baselines.raw_pixel_accuracy(clips(12), clips(4), np.array([1, 4, 7, 10]), model, 1)
    assert read == ["1.mp4", "4.mp4", "7.mp4", "10.mp4", "0.mp4", "1.mp4", "2.mp4", "3.mp4"]
