"""Annotated untrimmed videos: splits, rates, videos and features that are not there or do not fit."""

import json

import numpy as np
import pytest

from vmae_lab.data.activitynet import UntrimmedSettings, open_untrimmed
from vmae_lab.data.motionworld.dataset import encode_mp4
from vmae_lab.data.video_lists.formats import ListError

DATABASE = {
    "one": {"subset": "Validation", "duration": 4.0, "fps": 12.0, "annotations": [{"segment": [1, 2], "label": "run"}]},
    "two": {"subset": "Test", "duration": 3.0, "fps": 12.0, "annotations": [{"segment": [1, 2], "label": "run"}]},
    "four": {"subset": "Empty", "duration": 3.0, "fps": 12.0, "annotations": []},
    "three": {"subset": "Validation", "duration": 2.0, "annotations": [{"segment": [0.5, 1], "label": "jump"}]},
}


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "videos").mkdir()
    for name, entry in DATABASE.items():
        encode_mp4(np.zeros((int(entry["duration"] * 12), 16, 16, 3), np.uint8), tmp_path / "videos" / f"{name}.mp4")
    (tmp_path / "annotations.json").write_text(json.dumps({"database": DATABASE}))

    def settings(**changes) -> UntrimmedSettings:
        base = {
            "root": str(tmp_path), "annotations": "annotations.json", "videos": "videos", "train": ["validation"],
            "test": ["test"], "rate": 12.0,
        }  # fmt: skip
        return UntrimmedSettings(lists={**base, **changes})

    return settings


def test_splits_share_their_classes_and_have_rates(lists):
    train, test = open_untrimmed(lists(), "train"), open_untrimmed(lists(), "test")
    assert train.names == ["one", "three"]
    assert train.annotations.classes == test.annotations.classes == ("jump", "run")
    assert train.annotations.videos.fps.tolist() == [12.0, 12.0]
    assert [clip.split("/")[-1] for clip in map(train.clips().name, range(2))] == ["one.mp4", "three.mp4"]
    with pytest.raises(ListError, match=r"1 videos have no fps, three the first; set videos\.lists\.rate"):
        open_untrimmed(lists(rate=None), "train")
    with pytest.raises(ListError, match="no validation split"):
        open_untrimmed(lists(), "validation")


def test_videos_that_are_not_there_are_named(lists, tmp_path):
    (tmp_path / "videos" / "three.mp4").unlink()
    with pytest.raises(ListError, match=r"1 of 2 videos of the train split are not in .*videos, or there twice: three"):
        open_untrimmed(lists(), "train").clips()
    (tmp_path / "videos" / "three.mkv").write_bytes(b"one")
    open_untrimmed(lists(), "train").check()
    (tmp_path / "videos" / "three.webm").write_bytes(b"and another")
    with pytest.raises(ListError, match=r"or there twice: three\.mkv or three\.webm"):
        open_untrimmed(lists(), "train").check()
    with pytest.raises(ListError, match=r"there is no folder .*elsewhere"):
        open_untrimmed(lists(videos="elsewhere"), "train").clips()


def test_features_of_another_length_are_warned_of(lists, tmp_path, recwarn):
    (tmp_path / "features").mkdir()
    for name, windows in (("one", 9), ("three", 3)):  # 8 frames, one every 5: 4 s are 9 windows, 2 s are 4
        np.save(tmp_path / "features" / f"{name}.npy", np.zeros((windows, 3), np.float32))
    folder = {"folder": "features", "stride": 5, "frames": 8}
    videos = open_untrimmed(lists(videos=None, features=folder), "train")
    features = videos.features()
    assert features.lengths == {"one": 9, "three": 3}
    videos.check_lengths(features)
    assert not recwarn.list
    wrong = open_untrimmed(lists(videos=None, features={**folder, "stride": 15}), "train")
    with pytest.warns(UserWarning, match=r"features of 1 of 2 videos .*stride.*one \(9 windows are 10\.7 s of 4\.0 s\)"):
        wrong.check_lengths(wrong.features())
    with pytest.raises(ListError, match=r"no folder .*nowhere"):
        open_untrimmed(lists(videos=None, features={**folder, "folder": "nowhere"}), "train").features()


def test_content_names_the_data(lists, tmp_path):
    before = lists().fingerprint
    assert lists(test=["validation"]).fingerprint != before
    entry = {**DATABASE["two"], "duration": 2.9}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {**DATABASE, "two": entry}}))
    assert lists().fingerprint != before
    made = lists(videos=None, features={"folder": "features"})
    before = made.fingerprint
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "one.npy", np.zeros((9, 3), np.float32))
    after = made.fingerprint
    assert after != before
    np.save(tmp_path / "features" / "one.npy", np.zeros((8, 3), np.float32))
    assert made.fingerprint != after


def test_the_features_of_videos_are_theirs_whatever_is_annotated(lists, tmp_path):
    """What a giant model took days for is not done again because a segment was mended."""
    before = lists().films("train"), lists().fingerprint
    mended = {**DATABASE["one"], "annotations": [{"segment": [1, 2.5], "label": "run"}]}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {**DATABASE, "one": mended}}))
    assert lists().films("train") == before[0]
    assert lists().fingerprint != before[1]
    (tmp_path / "videos" / "two.mp4").write_bytes(b"of another split")
    assert lists().films("train") == before[0] != lists().films("test")
    (tmp_path / "videos" / "one.mp4").write_bytes(b"another")
    assert lists().films("train") != before[0]


def test_a_rate_that_is_not_the_videos_is_refused(lists, tmp_path):
    right = open_untrimmed(lists(), "train")
    right.check_rates(right.clips())
    entry = {**DATABASE["one"], "fps": 25.0}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {**DATABASE, "one": entry}}))
    wrong = open_untrimmed(lists(), "train")
    with pytest.raises(ListError, match="fps of 1 videos is not theirs: one has 12 frames a second, not 25"):
        wrong.check_rates(wrong.clips())


def test_a_split_without_a_segment_is_refused(lists):
    with pytest.raises(ListError, match=r"no segment is annotated in the test split \(empty\)"):
        open_untrimmed(lists(test=["empty"]), "test")


def test_one_of_videos_and_features(lists):
    with pytest.raises(ValueError, match="one of videos"):
        lists(videos=None)
