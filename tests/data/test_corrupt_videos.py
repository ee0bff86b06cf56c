"""Broken videos in training: recorded once, not read again, and replaced evenly by the others."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.stats import chisquare

from vmae_lab.data.corrupt_videos import COLUMNS, CorruptVideos, read_or_replace
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.samplers import EpochOrder, MixtureOrder, sample_order

SIZE, BROKEN = 40, frozenset(range(0, 40, 3))  # a third


def read(index: int) -> int:
    if index in BROKEN:
        raise VideoError(f"{index}.mp4", "broken, in two\nlines", "h264")
    return index


def draw(order, positions, corrupt_videos: CorruptVideos) -> list[int]:
    drawn = [read_or_replace(order, position, read, corrupt_videos) for position in positions]
    assert all(index == value for index, value in drawn)
    return [index for index, _ in drawn]


def test_readable_videos_are_used_equally_often():
    """A readable video is used once per epoch, and as a replacement with equal probability."""
    epochs, corrupt_videos = 300, CorruptVideos()
    drawn = draw(EpochOrder(SIZE, seed=0), range(epochs * SIZE), corrupt_videos)
    seen = Counter(drawn)
    sound = sorted(set(range(SIZE)) - BROKEN)
    assert set(seen) == set(sound)
    assert len(corrupt_videos.errors) == len(BROKEN)
    extra = np.array([seen[index] - epochs for index in sound])
    assert extra.sum() == epochs * len(BROKEN)
    assert chisquare(extra).pvalue > 0.01, "replacements are at least as even as random draws (fixed seed)"
    for epoch in range(0, epochs, 50):
        assert set(drawn[epoch * SIZE : (epoch + 1) * SIZE]) == set(sound)


def test_replacements_do_not_depend_on_the_process(tmp_path):
    """The stream is the same from the start, from the middle, and in a process without records."""
    order = EpochOrder(SIZE, seed=3)
    whole = draw(order, range(4 * SIZE), CorruptVideos())
    assert draw(EpochOrder(SIZE, seed=3), range(2 * SIZE, 4 * SIZE), CorruptVideos()) == whole[2 * SIZE :]
    shared = CorruptVideos(tmp_path / "quarantine.csv")
    even = draw(order, range(0, 4 * SIZE, 2), shared)
    odd = draw(EpochOrder(SIZE, seed=3), range(1, 4 * SIZE, 2), CorruptVideos(tmp_path / "quarantine.csv"))
    assert [even, odd] == [whole[::2], whole[1::2]]


def test_a_replacement_is_of_the_same_source():
    """Otherwise, the mixture would shift to sources with fewer broken files."""
    sources = ["web"] * 30 + ["film"] * 10
    for order in (sample_order(sources, 0.0, seed=1), MixtureOrder(sources, 1.0, seed=1, weights={"web": 1, "film": 3})):
        for position in range(200):
            assert sources[order.stand_in(position, 1)] == sources[order[position]]


def test_a_broken_video_is_read_once_per_run(tmp_path):
    tried = Counter()

    def counting(index: int) -> int:
        tried[index] += 1
        return read(index)

    file = tmp_path / "quarantine.csv"
    for start in (0, SIZE, 2 * SIZE):  # a run that is killed and resumed twice
        corrupt_videos = CorruptVideos(file)
        for position in range(start, start + SIZE):
            read_or_replace(EpochOrder(SIZE, seed=0), position, counting, corrupt_videos)
    assert {tried[index] for index in BROKEN} == {1}
    lines = file.read_text().splitlines()
    assert lines[0].split(",") == list(COLUMNS)
    assert sorted(int(line.split(",")[0]) for line in lines[1:]) == sorted(BROKEN)
    assert lines[1].endswith('.mp4,h264,"broken, in two lines"')


def test_processes_share_the_file(tmp_path):
    file = tmp_path / "quarantine.csv"
    ours, theirs = CorruptVideos(file), CorruptVideos(file)
    assert 5 not in ours.errors
    theirs.add(5, VideoError("ä\ud800.mp4", "x"))
    assert 5 in ours.errors
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda one: CorruptVideos(file).add(7, VideoError("7.mp4", str(one))), range(20)))
    assert len(ours.errors) == 2
    with open(file, "a") as half:
        half.write("8,8.mp4")  # an incomplete line: another process is writing
    assert 8 not in ours.errors


def test_an_error_is_raised_if_no_video_is_readable():
    def never(index: int) -> int:
        raise VideoError(f"{index}.mp4", "gone")

    with pytest.raises(VideoError, match=r"gone.*100 draws in a row"):
        read_or_replace(EpochOrder(1000, seed=0), 0, never, CorruptVideos())
    with pytest.raises(VideoError, match="100 draws in a row"):
        read_or_replace(EpochOrder(2, seed=0), 0, never, CorruptVideos())


def test_every_process_raises_the_same_error(tmp_path):
    def never(index: int) -> int:
        raise VideoError(f"{index}.mp4", "gone", "h264")

    def error(position: int, corrupt_videos: CorruptVideos) -> str:
        with pytest.raises(VideoError) as caught:
            read_or_replace(EpochOrder(3, seed=0), position, never, corrupt_videos)
        return str(caught.value)

    alone = error(0, CorruptVideos(tmp_path / "alone.csv"))
    assert f"{EpochOrder(3, seed=0)[0]}.mp4 (h264): gone" in alone
    shared = CorruptVideos(tmp_path / "shared.csv")
    error(1, CorruptVideos(tmp_path / "shared.csv"))
    assert error(0, shared) == alone
