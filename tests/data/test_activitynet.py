"""Annotated untrimmed videos: splits, rates, videos and features that are not there or do not fit."""

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
    with pytest.raises(ListError, match=r"annotations\.json: .*one has 12 frames a second, not 25"):
        wrong.check_rates(wrong.clips())


def test_a_split_without_a_segment_is_refused(lists):
    with pytest.raises(ListError, match=r"no segment is annotated in the test split \(empty\)"):
        open_untrimmed(lists(test=["empty"]), "test")


def test_one_of_videos_and_features(lists):
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


def test_what_a_file_says(database):
    """Numbers of classes have gaps and are not in the order of names; other keys are passed over."""
    first = annotation(3, 4.5, "run", label_id=5) | {"segment(frames)": [90, 135]}
    path = database(
        b=video(first, annotation(0, 2, "walk", label_id=1), fps=30, frame=300),
        a=video(annotation(7, 10.05, "jump", label_id=3), subset="Validation", duration=10, fps=None),
        c={"subset": "test", "duration": 4.0},
    )
    found = read_annotations(path)
    assert found.classes == ("walk", "jump", "run")
    assert found.videos.columns.tolist() == ["video", "subset", "duration", "fps"]
    assert found.videos.video.tolist() == ["b", "a", "c"], "in the order of the file, and one without annotations"
    assert found.videos.duration.tolist() == [10.0, 10.0, 4.0]
    assert found.videos.fps[0] == 30.0
    assert found.videos.fps[1:].isna().all()
    assert found.segments.values.tolist() == [["b", 3.0, 4.5, "run"], ["b", 0.0, 2.0, "walk"], ["a", 7.0, 10.05, "jump"]]
    assert found.segments.dtypes[["start", "end"]].tolist() == [float, float]


def test_classes_are_in_the_order_of_names_unless_every_annotation_has_a_number(database):
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
    with pytest.raises(ListError, match=r"no video is of the subset 'val'; the annotations have: Validation, test, training"):
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
def test_a_malformed_video_is_told_with_its_name_and_cause(database, entry, cause):
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
def test_a_malformed_annotation_is_told_with_its_number_and_cause(database, wrong, cause):
    path = database(a=video(annotation()), b=video(annotation(), annotation(), wrong))
    for beyond in ("refuse", "keep"):
        with pytest.raises(ListError, match=rf"^{path}: 1 fault; video 'b', annotation 3: {cause}"):
            read_annotations(path, beyond)


@pytest.mark.parametrize(("start", "end", "how"), [(8, 10.06, "ends"), (12, 13, "starts"), (10, 10.04, "starts")])
def test_a_segment_beyond_its_video_is_refused_or_kept_as_annotated(database, start, end, how):
    path = database(a=video(annotation(start, end)))
    words = rf'annotation 1: segment \[{start}, {end}\] {how} after the video.* 10 s.* beyond="keep"'
    with pytest.raises(ListError, match=words):
        read_annotations(path)
    assert read_annotations(path, beyond="keep").segments.values.tolist() == [["a", start, end, "jump"]]
    with pytest.raises(ValueError, match="beyond is 'clip'"):
        read_annotations(path, beyond="clip")


@pytest.mark.parametrize(
    ("label", "number", "cause"),
    [
        ("run", 1, "label_id 1 is of 'run'.* 'jump' before"),
        ("jump", 2, "'jump' has label_id 2.* 1 before"),
    ],
)
def test_a_number_names_one_class_and_a_class_has_one_number(database, label, number, cause):
    path = database(a=video(annotation(label_id=1)), b=video(annotation(), annotation(label=label, label_id=number)))
    with pytest.raises(ListError, match=f"video 'b', annotation 2: {cause}"):
        read_annotations(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_marks_of_editors_are_no_fault(tmp_path, encoding):
    database = {"v": {"subset": "test", "duration": 3.0, "annotations": [{"segment": [1, 2], "label": "é"}]}}
    (tmp_path / "a.json").write_bytes(json.dumps({"database": database}, ensure_ascii=False).encode(encoding))
    assert read_annotations(tmp_path / "a.json").classes == ("é",)
    predictions = {"v": [{"segment": [1, 2], "label": "é", "score": 0.5}]}
    (tmp_path / "p.json").write_bytes(json.dumps({"results": predictions}, ensure_ascii=False).encode(encoding))
    assert read_predictions(tmp_path / "p.json").label.tolist() == ["é"]


def test_many_faults_are_told_up_to_ten(database):
    path = database(a=video(*[annotation(3, 2)] * 7, annotation()), b=video(*[annotation(label=None)] * 6), c=video(duration=0))
    with pytest.raises(ListError) as refused:
        read_annotations(path)
    told = str(refused.value).split("; ")
    assert told[0] == f"{path}: 14 faults"
    assert told[7].startswith("video 'a', annotation 7: ")
    assert told[8].startswith("video 'b', annotation 1: ")
    assert told[11:] == ["and 4 more"]


@pytest.mark.parametrize(("read", "key"), [(read_annotations, "database"), (read_predictions, "results")])
def test_a_file_of_another_kind_is_told(written, tmp_path, read, key):
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


def test_predictions_are_read_as_they_stand(written):
    """A model may say segments that end before they start or leave the video: the evaluation knows what to do with them."""
    said = {"b": [annotation(5, 4, score=0.5), annotation(-1, 99, "run", score=2, label_id=3)], "a": []}
    table = read_predictions(written({"results": said}))
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
def test_a_malformed_prediction_is_told(written, wrong, cause):
    path = written({"results": {"a": [annotation(score=1), wrong], "b": []}})
    with pytest.raises(ListError, match=rf"^{path}: 1 fault; video 'a', prediction 2: {cause}"):
        read_predictions(path)


def test_predictions_that_are_no_list_are_told(written):
    with pytest.raises(ListError, match="video 'a': a list of predictions is expected"):
        read_predictions(written({"results": {"a": annotation(score=1)}}))


def test_no_prediction_is_a_table_too(written, tmp_path):
    empty = read_predictions(written({"results": {}}))
    some = read_predictions(written({"results": {"a": [annotation(score=1)]}}))
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == some.dtypes.to_dict()
    write_predictions(tmp_path / "none.json", empty)
    assert json.loads((tmp_path / "none.json").read_text())["results"] == {}


def test_predictions_are_the_same_after_writing(tmp_path):
    """To the last bit, in the order of the table, and with what ActivityNet's script asks of a file."""
    rng = np.random.default_rng(0)
    said = pd.DataFrame(
        {
            "video": list("bbba"),
            "start": rng.random(4),
            "end": rng.random(4),
            "label": ["z", "ü", "z", "a"],
            "score": rng.random(4).astype(np.float32),
        }
    )
    write_predictions(tmp_path / "said.json", said)
    found = read_predictions(tmp_path / "said.json")
    assert found.values.tolist() == said.values.tolist()
    assert set(json.loads((tmp_path / "said.json").read_text())) == {"version", "external_data", "results"}


def test_what_is_no_number_is_not_written(tmp_path):
    path = tmp_path / "said.json"
    path.write_text("before")
    said = pd.DataFrame([("a", 1.0, 2.0, "run", 0.5), ("a", 1.0, 2.0, "run", np.nan)], columns=PREDICTIONS)
    with pytest.raises(ListError, match=r"cannot write .*said\.json: prediction 2 .*'run'.*nan"):
        write_predictions(path, said)
    assert path.read_text() == "before"


@needs_references
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_official_cases_are_read_completely_and_predictions_written_again(case, tmp_path):
    raw = json.loads((case / "gt.json").read_text())["database"]
    found, said = read_annotations(case / "gt.json"), read_predictions(case / "pred.json")
    rows = [[name, *one["segment"], one["label"]] for name, entry in raw.items() for one in entry["annotations"]]
    assert found.segments.values.tolist() == rows
    assert found.videos.video.tolist() == list(raw)
    numbers = {one["label"]: one["label_id"] for entry in raw.values() for one in entry["annotations"]}
    assert list(found.classes) == sorted(numbers, key=numbers.get)
    write_predictions(tmp_path / "pred.json", said)
    assert read_predictions(tmp_path / "pred.json").equals(said)
