"""Annotated untrimmed videos: splits, frame rates, and missing or wrong videos and features."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vmae_lab.data.activitynet import (
    PREDICTIONS,
    UntrimmedSettings,
    open_untrimmed,
    read_annotations,
    read_predictions,
    write_predictions,
)
from vmae_lab.data.motionworld.writer import encode_mp4
from vmae_lab.data.video_lists.formats import ListError

REFERENCES = Path(__file__).parents[3] / "shared" / "eval_refs" / "tad"
CASES = sorted(REFERENCES.glob("[0-9]*")) if REFERENCES.is_dir() else []
needs_references = pytest.mark.skipif(not CASES, reason="no official cases: ../shared/eval_refs is not part of a clone")
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
    with pytest.raises(ListError, match=r"no fps of 1 video: three; set videos\.lists\.rate"):
        open_untrimmed(lists(rate=None), "train")
    with pytest.raises(ListError, match=r"videos\.lists\.validation"):
        open_untrimmed(lists(), "validation")


def test_missing_videos_are_named(lists, tmp_path):
    (tmp_path / "videos" / "three.mp4").unlink()
    with pytest.raises(ListError, match=r"missing or ambiguous in .*videos: 1 of 2 videos of the train split: three"):
        open_untrimmed(lists(), "train").clips()
    (tmp_path / "videos" / "three.mkv").write_bytes(b"one")
    open_untrimmed(lists(), "train").check()
    (tmp_path / "videos" / "three.webm").write_bytes(b"and another")
    with pytest.raises(ListError, match=r"three\.mkv or three\.webm"):
        open_untrimmed(lists(), "train").check()
    with pytest.raises(ListError, match=r"there is no folder .*elsewhere"):
        open_untrimmed(lists(videos="elsewhere"), "train").clips()


def test_features_of_the_wrong_length_give_a_warning(lists, tmp_path, recwarn):
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
    with pytest.warns(UserWarning, match=r"features of 1 of 2 videos .*stride.*one \(9 windows for 10\.7 s of 4\.0 s\)"):
        wrong.check_lengths(wrong.features())
    with pytest.raises(ListError, match=r"no folder .*nowhere"):
        open_untrimmed(lists(videos=None, features={**folder, "folder": "nowhere"}), "train").features()


def test_the_fingerprint_depends_on_the_content(lists, tmp_path):
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


def test_the_hash_of_videos_does_not_depend_on_segments(lists, tmp_path):
    """Correcting a segment must not repeat the extraction of features, which takes days with a large model."""
    before = lists().films("train"), lists().fingerprint
    corrected = {**DATABASE["one"], "annotations": [{"segment": [1, 2.5], "label": "run"}]}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {**DATABASE, "one": corrected}}))
    assert lists().films("train") == before[0]
    assert lists().fingerprint != before[1]
    (tmp_path / "videos" / "two.mp4").write_bytes(b"of another split")
    assert lists().films("train") == before[0] != lists().films("test")
    (tmp_path / "videos" / "one.mp4").write_bytes(b"another")
    assert lists().films("train") != before[0]


def test_a_wrong_frame_rate_is_refused(lists, tmp_path):
    right = open_untrimmed(lists(), "train")
    right.check_rates(right.clips())
    entry = {**DATABASE["one"], "fps": 25.0}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {**DATABASE, "one": entry}}))
    wrong = open_untrimmed(lists(), "train")
    with pytest.raises(ListError, match=r"annotations\.json: .*one has 12 fps, not 25"):
        wrong.check_rates(wrong.clips())


def test_a_split_without_a_segment_is_refused(lists):
    with pytest.raises(ListError, match=r"the test split \(empty\) has no segments"):
        open_untrimmed(lists(test=["empty"]), "test")


def test_videos_or_features_are_required(lists):
    with pytest.raises(ValueError, match="one of videos"):
        lists(videos=None)


# ---------------------------------------------------------------------------------------------------------------------
# JSON files
# ---------------------------------------------------------------------------------------------------------------------


def annotation(start=1.0, end=2.0, label="jump", **more) -> dict:
    return {"segment": [start, end], "label": label, **more}


def video(*annotations, **more) -> dict:
    return {"subset": "test", "duration": 10.0, "annotations": list(annotations), **more}


@pytest.fixture
def written(tmp_path):
    def write(value, name: str = "gt.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


@pytest.fixture
def database(written):
    return lambda **videos: written({"version": "1", "database": videos})


def test_annotations_are_read(database):
    """Class numbers have gaps and are not in alphabetical order. Other keys are ignored."""
    first = annotation(3, 4.5, "run", label_id=5) | {"segment(frames)": [90, 135]}
    path = database(
        b=video(first, annotation(0, 2, "walk", label_id=1), fps=30, frame=300),
        a=video(annotation(7, 10.05, "jump", label_id=3), subset="Validation", duration=10, fps=None),
        c={"subset": "test", "duration": 4.0},
    )
    found = read_annotations(path)
    assert found.classes == ("walk", "jump", "run")
    assert found.videos.columns.tolist() == ["video", "subset", "duration", "fps"]
    assert found.videos.video.tolist() == ["b", "a", "c"], "order of the file, including the video without annotations"
    assert found.videos.duration.tolist() == [10.0, 10.0, 4.0]
    assert found.videos.fps[0] == 30.0
    assert found.videos.fps[1:].isna().all()
    assert found.segments.values.tolist() == [["b", 3.0, 4.5, "run"], ["b", 0.0, 2.0, "walk"], ["a", 7.0, 10.05, "jump"]]
    assert found.segments.dtypes[["start", "end"]].tolist() == [float, float]


def test_classes_are_sorted_by_name_unless_every_annotation_has_a_number(database):
    numbered, plain = annotation(label="run", label_id=0), annotation(label="jump")
    assert read_annotations(database(a=video(numbered, plain))).classes == ("jump", "run")
    assert read_annotations(database(a=video(numbered, annotation(label="jump", label_id=7)))).classes == ("run", "jump")
    assert read_annotations(database(a=video())).classes == ()


def test_a_subset_keeps_all_classes(database):
    path = database(
        a=video(annotation(label="run")), b=video(annotation(label="jump"), subset="Validation"), c=video(subset="training")
    )
    found = read_annotations(path)
    part = found.subset("validation")
    assert part.videos.video.tolist() == part.segments.video.tolist() == ["b"]
    assert part.videos.index.tolist() == part.segments.index.tolist() == [0]
    assert part.classes == ("jump", "run")
    assert found.subset("TEST", "Training").videos.video.tolist() == ["a", "c"]
    with pytest.raises(ListError, match=r"subset 'val'; subsets of the annotations: Validation, test, training"):
        found.subset("test", "val")


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ([], r"\[\] is not an object"),
        ({"duration": 1.0}, "subset: Field required"),
        (video(subset=""), "subset '': "),
        (video(subset=3), "subset 3: "),
        ({"subset": "test"}, "duration: Field required"),
        (video(duration=0), "duration 0: "),
        (video(duration=-1.5), r"duration -1\.5: "),
        (video(duration="9"), "duration '9': "),
        (video(duration=True), "duration True: "),
        (video(duration=float("inf")), "duration inf: "),
        (video(duration=float("nan")), "duration nan: "),
        (video(fps=0), "fps 0: "),
        (video(fps="30"), "fps '30': "),
        (video(annotations={}), r"annotations \{\}: "),
    ],
)
def test_a_malformed_video_is_reported_with_its_name_and_cause(database, entry, cause):
    path = database(a=video(annotation()), b=entry)
    with pytest.raises(ListError, match=rf"^{path}: 1 fault; video 'b': {cause}"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ("jump", "'jump' is not an object"),
        ({"label": "jump"}, "segment: Field required"),
        ({"segment": [1, 2, 3], "label": "jump"}, r"segment \[1, 2, 3\]: "),
        (annotation("1", 2), r"segment.0 '1': "),
        (annotation(1, None), r"segment.1 None: "),
        (annotation(False, 2), r"segment.0 False: "),
        (annotation(float("nan"), 2), r"segment.0 nan: "),
        (annotation(1, 10**400), r"segment.1 10+: "),
        (annotation(-0.5, 2), r"segment \[-0\.5, 2\] starts before the video"),
        (annotation(2, 2), r"segment \[2, 2\] does not end after it starts"),
        (annotation(3, 2), r"segment \[3, 2\] does not end after it starts"),
        ({"segment": [1, 2]}, "label: Field required"),
        (annotation(label=""), "label '': "),
        (annotation(label=4), "label 4: "),
        (annotation(label_id="4"), "label_id '4': "),
        (annotation(label_id=1.5), r"label_id 1\.5: "),
    ],
)
def test_a_malformed_annotation_is_reported_with_its_number_and_cause(database, wrong, cause):
    path = database(a=video(annotation()), b=video(annotation(), annotation(), wrong))
    for beyond in ("refuse", "keep"):
        with pytest.raises(ListError, match=rf"^{path}: 1 fault; video 'b', annotation 3: {cause}"):
            read_annotations(path, beyond)


@pytest.mark.parametrize(("start", "end", "how"), [(8, 10.06, "ends"), (12, 13, "starts"), (10, 10.04, "starts")])
def test_a_segment_after_the_end_of_its_video_is_refused_or_kept(database, start, end, how):
    path = database(a=video(annotation(start, end)))
    message = rf'annotation 1: segment \[{start}, {end}\] {how} after the end of the video.*10 s.* beyond="keep"'
    with pytest.raises(ListError, match=message):
        read_annotations(path)
    assert read_annotations(path, beyond="keep").segments.values.tolist() == [["a", start, end, "jump"]]
    with pytest.raises(ValueError, match="beyond is 'clip'"):
        read_annotations(path, beyond="clip")


@pytest.mark.parametrize(
    ("label", "number", "cause"),
    [
        ("run", 1, "label_id 1 is 'run'.* 'jump' before"),
        ("jump", 2, "'jump' has label_id 2.* 1 before"),
    ],
)
def test_class_numbers_must_be_unique(database, label, number, cause):
    path = database(a=video(annotation(label_id=1)), b=video(annotation(), annotation(label=label, label_id=number)))
    with pytest.raises(ListError, match=f"video 'b', annotation 2: {cause}"):
        read_annotations(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_accepted(tmp_path, encoding):
    database = {"v": {"subset": "test", "duration": 3.0, "annotations": [{"segment": [1, 2], "label": "é"}]}}
    (tmp_path / "a.json").write_bytes(json.dumps({"database": database}, ensure_ascii=False).encode(encoding))
    assert read_annotations(tmp_path / "a.json").classes == ("é",)
    predictions = {"v": [{"segment": [1, 2], "label": "é", "score": 0.5}]}
    (tmp_path / "p.json").write_bytes(json.dumps({"results": predictions}, ensure_ascii=False).encode(encoding))
    assert read_predictions(tmp_path / "p.json").label.tolist() == ["é"]


def test_the_first_ten_faults_are_reported(database):
    path = database(a=video(*[annotation(3, 2)] * 7, annotation()), b=video(*[annotation(label=None)] * 6), c=video(duration=0))
    with pytest.raises(ListError) as refused:
        read_annotations(path)
    faults = str(refused.value).split("; ")
    assert faults[0] == f"{path}: 14 faults"
    assert faults[7].startswith("video 'a', annotation 7: ")
    assert faults[8].startswith("video 'b', annotation 1: ")
    assert faults[11:] == ["and 4 more"]


@pytest.mark.parametrize(("read", "key"), [(read_annotations, "database"), (read_predictions, "results")])
def test_files_of_other_kinds_are_refused(written, tmp_path, read, key):
    with pytest.raises(ListError, match=r"gt\.json is not JSON: .* line 1 column 2"):
        read(written("{nothing"))
    for other in ({"version": 1}, [], {key: []}):
        with pytest.raises(ListError, match=rf'gt\.json has no "{key}" by video'):
            read(written(other))
    with pytest.raises(ListError, match=r"cannot read .*none\.json: No such file"):
        read(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"\xe9": 1}')
    with pytest.raises(ListError, match=r"cannot read .*latin\.json: .*utf-8"):
        read(tmp_path / "latin.json")


def test_predictions_are_not_changed_when_read(written):
    """Predicted segments may end before they start or be outside the video. The evaluation handles them."""
    predictions = {"b": [annotation(5, 4, score=0.5), annotation(-1, 99, "run", score=2, label_id=3)], "a": []}
    table = read_predictions(written({"results": predictions}))
    assert table.columns.tolist() == PREDICTIONS
    assert table.values.tolist() == [["b", 5.0, 4.0, "jump", 0.5], ["b", -1.0, 99.0, "run", 2.0]]
    assert table.dtypes[["start", "end", "score"]].tolist() == [float] * 3


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ([1, 2], r"\[1, 2\] is not an object"),
        (annotation(1, None, score=1), r"segment.1 None: "),
        (annotation(label=3, score=1), "label 3: "),
        (annotation(), "score: Field required"),
        (annotation(score="high"), "score 'high': "),
        (annotation(score=float("nan")), "score nan: "),
    ],
)
def test_a_malformed_prediction_is_reported(written, wrong, cause):
    path = written({"results": {"a": [annotation(score=1), wrong], "b": []}})
    with pytest.raises(ListError, match=rf"^{path}: 1 fault; video 'a', prediction 2: {cause}"):
        read_predictions(path)


def test_predictions_must_be_a_list(written):
    with pytest.raises(ListError, match="video 'a': expected a list of predictions"):
        read_predictions(written({"results": {"a": annotation(score=1)}}))


def test_no_predictions_give_an_empty_table(written, tmp_path):
    empty = read_predictions(written({"results": {}}))
    filled = read_predictions(written({"results": {"a": [annotation(score=1)]}}))
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == filled.dtypes.to_dict()
    write_predictions(tmp_path / "none.json", empty)
    assert json.loads((tmp_path / "none.json").read_text())["results"] == {}


def test_written_predictions_are_read_back_bit_for_bit(tmp_path):
    """The file also has the keys that ActivityNet's script requires."""
    rng = np.random.default_rng(0)
    predictions = pd.DataFrame(
        {
            "video": list("bbba"),
            "start": rng.random(4),
            "end": rng.random(4),
            "label": ["z", "ü", "z", "a"],
            "score": rng.random(4).astype(np.float32),
        }
    )
    write_predictions(tmp_path / "predictions.json", predictions)
    found = read_predictions(tmp_path / "predictions.json")
    assert found.values.tolist() == predictions.values.tolist()
    assert set(json.loads((tmp_path / "predictions.json").read_text())) == {"version", "external_data", "results"}


def test_nan_is_not_written(tmp_path):
    path = tmp_path / "predictions.json"
    path.write_text("before")
    predictions = pd.DataFrame([("a", 1.0, 2.0, "run", 0.5), ("a", 1.0, 2.0, "run", np.nan)], columns=PREDICTIONS)
    with pytest.raises(ListError, match=r"cannot write .*predictions\.json: prediction 2 .*'run'.*nan"):
        write_predictions(path, predictions)
    assert path.read_text() == "before"


@needs_references
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_official_cases_are_read_and_written_completely(case, tmp_path):
    raw = json.loads((case / "gt.json").read_text())["database"]
    found, predictions = read_annotations(case / "gt.json"), read_predictions(case / "pred.json")
    rows = [[name, *item["segment"], item["label"]] for name, entry in raw.items() for item in entry["annotations"]]
    assert found.segments.values.tolist() == rows
    assert found.videos.video.tolist() == list(raw)
    numbers = {item["label"]: item["label_id"] for entry in raw.values() for item in entry["annotations"]}
    assert list(found.classes) == sorted(numbers, key=numbers.get)
    write_predictions(tmp_path / "pred.json", predictions)
    assert read_predictions(tmp_path / "pred.json").equals(predictions)
