"""Frame sampling, compared with frames computed by hand."""

import numpy as np
import pytest
import torch

from vmae_lab.data.frame_sampling import Dense, Sparse, Stretch
from vmae_lab.data.transforms import squash


def test_sparse_frames_by_hand():
    """32 frames in segments of 8: first, middle, last and first frame of the segments."""
    assert Sparse((0.0, 0.5, 0.999, 0.0))(32) == [0, 12, 23, 24]
    assert Sparse((0.0, 0.5, 0.999, 0.0))(10) == [0, 3, 7, 7], "segments of 2.5 frames"
    assert Sparse((0.5, 0.5, 0.5, 0.5))(2) == [0, 0, 1, 1], "fewer frames than segments"
    with pytest.raises(ValueError, match="no frames"):
        Sparse((0.5,))(0)


def test_sparse_frames_cover_the_video():
    """Each frame is in its segment. Many draws select every frame of the video."""
    rng, met = np.random.default_rng(0), set()
    for _ in range(300):
        frames = Sparse(tuple(rng.random(16)))(100)
        assert all(int(i * 6.25) <= frame <= int((i + 1) * 6.25) for i, frame in enumerate(frames))
        met |= set(frames)
    assert met == set(range(100))


def test_dense_windows_by_hand():
    """Four frames with stride 2 span seven. In ten frames they start at 0 to 3, each with a quarter of the range."""
    starts = [Dense(4, 2, position)(10)[0] for position in (0.0, 0.249, 0.25, 0.5, 0.75, 0.999)]
    assert starts == [0, 0, 1, 2, 3, 3]
    assert list(Dense(4, 2, 0.999)(10)) == [3, 5, 7, 9], "the last window ends with the video"
    assert list(Dense(4, 2, 0.999)(7)) == [0, 2, 4, 6], "seven frames allow one start"


def test_a_stretch_ends_with_the_video():
    assert list(Stretch(3, 4)(20)) == [3, 4, 5, 6]
    assert list(Stretch(3, 4)(5)) == [3, 4]
    with pytest.raises(IndexError, match="the video has 3 frames, but frames from 3 on"):
        Stretch(3, 4)(3)


def test_squashing_keeps_both_ends_of_the_longer_side():
    video = torch.zeros(3, 1, 4, 16, dtype=torch.uint8)
    video[..., :4], video[..., 12:] = 100, 200
    small = squash(video, 4)
    assert small.shape == (3, 1, 4, 4)
    assert small[0, 0, 0, 0] > 50
    assert small[0, 0, 0, 3] > 100
