"""Views of test videos: frames and crops, every video once, and results that do not depend on processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.frame_sampling import DenseViews, SparseViews
from vmae_lab.data.transforms import crops_along
from vmae_lab.evaluation.multi_view import ViewSettings, cut_views, view_probabilities
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.utils.seeding import seeded

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
VIEWS = ViewSettings(clips=3, crops=2)


class NumberedClips:
    """Videos of different length and shape. Pixels depend on the row, and some videos are unreadable."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()):
        self.count, self.broken, self.labels = count, broken, np.arange(count) % 3

    def __len__(self) -> int:
        return self.count

    def name(self, row):
        return f"video {row}"

    def videos(self, rows, choose, short_side=None):
        for row in rows:
            if row in self.broken:
                yield VideoError(f"{row}.mp4", "broken")
                continue
            pixels = np.random.default_rng(row).integers(0, 256, (3, 5 + 3 * row, 16, 16 + 4 * (row % 3)), np.uint8)
            yield torch.from_numpy(pixels)[:, list(choose(pixels.shape[1]))]


def classifier() -> VideoClassifier:
    with seeded(0, "classifier"):
        return VideoClassifier(MODEL.dimensions, MODEL.clip, 3, init_scale=1.0)


def test_dense_views_cover_the_video():
    chosen = np.array(DenseViews(4, 2, 3)(15)).reshape(3, 4)
    assert chosen.tolist() == [[0, 2, 4, 6], [4, 6, 8, 10], [8, 10, 12, 14]]
    assert list(DenseViews(4, 2, 1)(15)) == [4, 6, 8, 10], "a single view is in the middle"
    assert list(DenseViews(4, 2, 2)(5)) == [0, 2, 4, 4] * 2, "a short video repeats its last frame"
    assert list(DenseViews(4, 2, 2)(8)) == [0, 2, 4, 6] * 2, "less than a stride remains"
    with pytest.raises(ValueError, match="no frames"):
        DenseViews(4, 2, 2)(0)


def test_dense_views_equal_the_official_protocol():
    """101 frames at stride 4 are 26 frames. Five windows of 16 start at frames int(m * 10 / 4) of these: 0, 2, 5, 7, 10."""
    chosen = np.array(DenseViews(16, 4, 5)(101)).reshape(5, 16)
    assert chosen.tolist() == [[4 * (start + t) for t in range(16)] for start in (0, 2, 5, 7, 10)]


def test_sparse_views_are_shifted_within_segments():
    assert np.array(SparseViews(4, 2)(40)).reshape(2, 4).tolist() == [[0, 10, 20, 30], [5, 15, 25, 35]]
    assert list(SparseViews(4, 1)(40)) == [5, 15, 25, 35]
    assert list(SparseViews(4, 2)(2)) == [0, 0, 1, 1] * 2


def test_crops_touch_the_edges_of_the_long_side():
    wide = torch.arange(10).expand(3, 2, 6, 10).to(torch.uint8)
    assert [crop[0, 0, 0].tolist() for crop in crops_along(wide, 6, 3)] == [[*range(s, s + 6)] for s in (0, 2, 4)]
    tall = wide.transpose(-1, -2)
    assert [crop[0, 0, :, 0].tolist() for crop in crops_along(tall, 6, 2)] == [[*range(s, s + 6)] for s in (0, 4)]
    assert [crop[0, 0, 0].tolist() for crop in crops_along(wide, 6, 1)] == [[2, 3, 4, 5, 6, 7]]


def test_a_view_is_one_clip_and_one_crop():
    video = torch.arange(6 * 4).reshape(6, 4).to(torch.uint8)[None, :, None, :].expand(3, 6, 2, 4)  # depends on t and x
    views = cut_views(video, frames=3, side=2, crops=2)
    assert views.shape == (4, 3, 3, 2, 2)
    expected = [[[4 * t + x for x in (left, left + 1)] for t in range(first, first + 3)] for first in (0, 3) for left in (0, 2)]
    assert views[:, 0, :, 0].tolist() == expected


def test_softmax_is_averaged_over_views():
    model, clips = classifier(), NumberedClips(4)
    got = view_probabilities(model, clips, MODEL, 2, VIEWS)
    assert got.shape == (4, 3)
    assert got.sum(1) == pytest.approx(np.ones(4))
    video = next(clips.videos([3], VIEWS.choose(4, 2)))
    with torch.no_grad():
        each = [model.eval()(view[None]).double().softmax(1)[0] for view in cut_views(video, 4, 16, 2)]
    assert len(each) == 6
    assert got[3] == pytest.approx(torch.stack(each).mean(0).numpy(), abs=1e-6)


def test_scores_are_moved_to_the_cpu_before_float64():
    """Apple's GPUs do not support float64. A tensor that refuses it replaces them here."""

    class OnSuchADevice(torch.Tensor):
        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    class There(VideoClassifier):
        def forward(self, video):
            return super().forward(video).as_subclass(OnSuchADevice)

    model, expected = classifier(), view_probabilities(classifier(), NumberedClips(2), MODEL, 2, VIEWS)
    model.__class__ = There
    assert np.array_equal(view_probabilities(model, NumberedClips(2), MODEL, 2, VIEWS), expected)


def test_unreadable_videos_are_an_error():
    with pytest.raises(MissingVideos) as raised:
        view_probabilities(classifier(), NumberedClips(5, broken=(1, 4)), MODEL, 2, VIEWS)
    assert list(raised.value.failed) == [1, 4]
    assert raised.value.total == 5


def test_scores_that_are_not_finite_are_an_error():
    model = classifier()
    model.head.head.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"scores of 3 of 3 videos are not finite, .*diverged"):
        view_probabilities(model, NumberedClips(3), MODEL, 2, VIEWS)


@pytest.mark.slow
def test_two_processes_give_the_same_result_as_one(tmp_path, warm):
    """Seven videos, so one process has one more. Each process reports all broken videos."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
import torch
from accelerate import PartialState
from test_multi_view import MODEL, VIEWS, MissingVideos, NumberedClips, classifier, view_probabilities
torch.set_num_threads(1)
state = PartialState(cpu=True)
assert state.num_processes == 2
got = view_probabilities(classifier(), NumberedClips(7), MODEL, 2, VIEWS)
np.save(f"{tmp_path}/{{state.process_index}}.npy", got)
try:
    view_probabilities(classifier(), NumberedClips(7, (1, 4)), MODEL, 2, VIEWS)
except MissingVideos as missing:
    np.save(f"{tmp_path}/missing-{{state.process_index}}.npy", list(missing.failed))
"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    (tmp_path / "two.py").write_text(script)
    done = subprocess.run(
        [*command, sys.executable, str(tmp_path / "two.py")], capture_output=True, text=True, timeout=240,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (np.load(tmp_path / f"{index}.npy") for index in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = view_probabilities(classifier(), NumberedClips(7), MODEL, 2, VIEWS)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(first, alone)
    assert np.array_equal(second, alone)
    assert [np.load(tmp_path / f"missing-{index}.npy").tolist() for index in range(2)] == [[1, 4]] * 2
