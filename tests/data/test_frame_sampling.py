"""Which frames are taken, by hand."""

import numpy as np
import pytest
import torch

from vmae_lab.data.frame_sampling import Sparse, Stretch, dense_window
from vmae_lab.data.transforms import squash


def test_sparse_frames_by_hand():
    """32 frames in segments of 8: the first, the middle, the last and the first of their segment."""
    assert Sparse((0.0, 0.5, 0.999, 0.0))(32) == [0, 12, 23, 24]
    assert Sparse((0.0, 0.5, 0.999, 0.0))(10) == [0, 3, 7, 7], "segments of 2.5 frames"
    assert Sparse((0.5, 0.5, 0.5, 0.5))(2) == [0, 0, 1, 1], "fewer frames than segments"
    with pytest.raises(ValueError, match="no frames"):
        Sparse((0.5,))(0)


def test_sparse_frames_come_from_every_part_of_the_video_and_can_be_any():
    """Each frame lies in its segment; over many draws every frame of the video is met."""
    rng, met = np.random.default_rng(0), set()
    for _ in range(300):
        frames = Sparse(tuple(rng.random(16)))(100)
        assert all(int(i * 6.25) <= frame <= int((i + 1) * 6.25) for i, frame in enumerate(frames))
        met |= set(frames)
    assert met == set(range(100))


def test_dense_windows_by_hand():
    """Four frames, two apart, span seven: of ten frames they begin at 0 to 3, a quarter of all places each."""
    begins = [dense_window(10, 4, 2, place)[0] for place in (0.0, 0.249, 0.25, 0.5, 0.75, 0.999)]
    assert begins == [0, 0, 1, 2, 3, 3]
    assert list(dense_window(10, 4, 2, 0.999)) == [3, 5, 7, 9], "the last one ends with the video"
    assert list(dense_window(7, 4, 2, 0.999)) == [0, 2, 4, 6], "seven frames have room for one"


def test_a_stretch_ends_with_the_video():
    assert list(Stretch(3, 4)(20)) == [3, 4, 5, 6]
    assert list(Stretch(3, 4)(5)) == [3, 4]
    with pytest.raises(IndexError, match="there are 3 frames, but frames from 3 on"):
        Stretch(3, 4)(3)


def test_a_squashed_frame_keeps_both_ends_of_the_longer_side():
    video = torch.zeros(3, 1, 4, 16, dtype=torch.uint8)
    video[..., :4], video[..., 12:] = 100, 200
    small = squash(video, 4)
    assert small.shape == (3, 1, 4, 4)
    assert small[0, 0, 0, 0] > 50
    assert small[0, 0, 0, 3] > 100
