"""Datasets: decoded clips, list files, windows, crops and sources."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from made_videos import write_video

from vmae_lab.data import memmap_dataset
from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.decoding import VideoError, read_frames
from vmae_lab.data.frame_sampling import Dense, Everything, Exactly
from vmae_lab.data.motionworld import ACTIONS, MotionworldSettings, open_motionworld
from vmae_lab.data.transforms import centre_crop, multi_scale_crop
from vmae_lab.data.video_lists import ListSettings
from vmae_lab.utils.seeding import numpy_generator

WORLD = MotionworldSettings(sources=("digits", "sticks"), side=32, frames=6, train=2, validation=1, test=1)


@pytest.mark.slow
def test_decoded_clips_equal_their_files(home):
    data = DataSettings(motionworld=WORLD, resident_side=32)
    folder, _ = open_motionworld(WORLD)
    for sources in ((), ("sticks",)):
        clips = load_clips(data, "train", sources)
        assert len(clips) == 16 * len(sources or (1, 2))
        for index in (0, len(clips) - 1):
            expected = read_frames(folder / clips.records[index].path, [1, 3, 5])
            video = clips.video(index, Exactly((1, 3, 5)))
            assert video.dtype == torch.uint8
            assert torch.equal(video, torch.from_numpy(expected).permute(3, 0, 1, 2))
            assert torch.equal(clips.video(index, Dense(3, 2, 0.5)), video)


@pytest.mark.slow
def test_decoded_clips_are_copies_with_colors_innermost(home):
    clips = load_clips(DataSettings(motionworld=WORLD, resident_side=32), "train", ("sticks",))
    for choose in (Dense(3, 2, 0.5), Everything(), Exactly((1, 3, 5))):
        video = clips.video(0, choose)
        assert video.stride(0) == 1  # the layout that `_resize` handles faster
        expected = video.clone()
        video.zero_()  # would crash with a view of the read-only mapping
        assert torch.equal(clips.video(0, choose), expected)


def test_a_spawned_process_maps_the_file(home):
    """Data loader processes are spawned on macOS. A copy of the pixels per process would be too large."""
    clips = load_clips(DataSettings(motionworld=WORLD, resident_side=32), "train", ("sticks",))
    sent = pickle.dumps(clips)
    assert len(sent) < clips.frames.nbytes / 20
    got = pickle.loads(sent)
    assert got.records == clips.records
    assert isinstance(got.frames, np.memmap)
    assert all(torch.equal(got.video(index, Everything()), clips.video(index, Everything())) for index in range(len(clips)))


def test_limits_keep_the_first_clips_of_a_source_and_action_in_pretraining(home):
    """Limits select the same clips in every run, and do not change evaluation and labeled clips."""
    limited = DataSettings(motionworld=WORLD, resident_side=32, pretrain_limits={"digits": 1})
    everything = DataSettings(motionworld=WORLD, resident_side=32)
    clips = load_clips(limited, "pretrain")
    # The number of a file counts the clips of its source and action; both clips of sticks are kept.
    kept = {(r.source, r.action, r.path.rsplit("/")[-1]) for r in clips.records}
    assert kept == {
        (source, action, f"{number:05d}.mp4")
        for source, count in (("digits", 1), ("sticks", 2))
        for action in ACTIONS
        for number in range(count)
    }
    assert len(clips) == len(kept) == limited.pretrain_clips
    assert Counter(clips.sources) == {"digits": len(ACTIONS), "sticks": 2 * len(ACTIONS)}
    for split in ("train", "validation", "test"):
        assert load_clips(limited, split).records == load_clips(everything, split).records
    assert load_clips(everything, "pretrain").records == load_clips(everything, "train").records
    assert {r.source for r in load_clips(limited, "pretrain", ("digits",)).records} == {"digits"}


def test_limited_clips_have_the_pixels_of_their_files(home):
    """Rows index one array of all clips, so an offset would combine wrong pixels with a label."""
    clips = load_clips(DataSettings(motionworld=WORLD, resident_side=32, pretrain_limits={"digits": 1}), "pretrain", ())
    folder, _ = open_motionworld(WORLD)
    for index, record in list(enumerate(clips.records))[::5]:
        assert torch.equal(
            clips.video(index, Everything()), torch.from_numpy(read_frames(folder / record.path)).permute(3, 0, 1, 2)
        )
    assert clips.length == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrain_limits": {"digits": 3}}, "pretrain_limits: digits .* got 3"),
        ({"pretrain_limits": {"sticks": 0}}, "pretrain_limits: sticks .* got 0"),
        ({"pretrain_limits": {"camera": 1}}, r"\['camera'\] are not in data.motionworld.sources: digits, sticks"),
        ({"pretrain_sources": ["sprites"]}, r"\['sprites'\] are not in data.motionworld.sources: digits, sticks"),
        ({"mixing": 1.5}, "less than or equal to 1"),
    ],
)
def test_invalid_sources_and_limits_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(motionworld=WORLD, resident_side=32, **change)


def test_official_lists_give_the_same_videos(home, tmp_path):
    folder, records = open_motionworld(WORLD)
    labelled = "".join(f"{r.path} {r.label}\n" for r in records if r.split == "train")
    (tmp_path / "labelled.txt").write_text(labelled)
    (tmp_path / "pretrain.txt").write_text("".join(line.rsplit(" ", 1)[0] + " 0 -1\n" for line in labelled.splitlines()))
    names = {"train": "labelled.txt", "validation": "labelled.txt", "test": "labelled.txt", "pretrain": "pretrain.txt"}
    lists = ListSettings(root=str(folder), classes=8, **{k: str(tmp_path / v) for k, v in names.items()})
    listed = load_clips(DataSettings(lists=lists), "train")
    resident = load_clips(DataSettings(motionworld=WORLD, resident_side=32), "train")
    assert np.array_equal(listed.labels, resident.labels)
    assert torch.equal(listed.video(3, Dense(4, 1, 0.0)), resident.video(3, Dense(4, 1, 0.0)))
    assert len(load_clips(DataSettings(lists=lists), "pretrain")) == len(listed)


def test_files_that_are_not_videos_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4: not a video but text"):
        read_frames(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match=r"none\.mp4: there is no such file"):
        read_frames(tmp_path / "none.mp4")


def test_frames_outside_a_file_are_refused(home):
    folder, records = open_motionworld(WORLD)
    with pytest.raises(VideoError, match="frames 4 to 8"):
        read_frames(folder / records[0].path, [4, 8])


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_windows_stay_inside(place):
    window = Dense(8, 2, place)(24)
    assert len(window) == 8
    assert window[0] >= 0
    assert window[-1] <= 23


def test_a_short_video_repeats_its_last_frame():
    assert list(Dense(8, 2, 0.9)(14)) == [0, 2, 4, 6, 8, 10, 12, 12]
    assert list(Dense(8, 2, 0.9)(15)) == list(range(0, 15, 2))
    assert list(Dense(4, 3, 0.0)(1)) == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="no frames"):
        Dense(8, 2, 0.0)(0)


def test_a_crop_is_the_same_for_all_frames():
    ramp = torch.arange(40, dtype=torch.uint8).expand(3, 4, 40, 40)
    for seed in range(8):
        crop = multi_scale_crop(ramp, 24, numpy_generator(seed, "crop"), (1.0, 0.9, 0.6))
        assert crop.shape == (3, 4, 24, 24)
        assert (crop == crop[:1, :1]).all()
    assert centre_crop(ramp[..., :20], 20).shape == (3, 4, 20, 20)


def test_files_of_different_lengths_are_refused(tmp_path):
    """A data set that another version has partly written is refused."""
    paths = [write_video(tmp_path / f"{count}.mp4", count) for count in (8, 9)]
    with pytest.raises(VideoError, match=r"8\.mp4: .*lengths \[8, 9\]"):
        memmap_dataset._decode(paths, 16)
