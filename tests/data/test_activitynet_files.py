"""ActivityNet's files: what they say, what is wrong with them, and that what is written is read again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vmae_lab.data.activitynet_files import (
    PREDICTIONS,
    SEGMENTS,
    Annotations,
    read_annotations,
    read_predictions,
    write_annotations,
    write_predictions,
)
from vmae_lab.data.video_lists import ListError

REFERENCES = Path(__file__).parents[3] / "shared" / "eval_refs" / "tad"
CASES = sorted(REFERENCES.glob("[0-9]*")) if REFERENCES.is_dir() else []
needs_references = pytest.mark.skipif(not CASES, reason="no official cases: ../shared/eval_refs is not part of a clone")


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
        ([], "an object with subset, duration and annotations is expected"),
        ({"duration": 1.0}, "subset is missing: a name"),
        (video(subset=""), "subset '': a name"),
        (video(subset=3), "subset 3: a name"),
        ({"subset": "test"}, "duration is missing: the video's seconds, above 0"),
        (video(duration=0), "duration 0: the video's seconds"),
        (video(duration=-1.5), r"duration -1\.5: the video's seconds"),
        (video(duration="9"), "duration '9': the video's seconds"),
        (video(duration=True), "duration True: the video's seconds"),
        (video(duration=float("inf")), "duration inf: the video's seconds"),
        (video(duration=float("nan")), "duration nan: the video's seconds"),
        (video(fps=0), "fps 0: frames a second"),
        (video(fps="30"), "fps '30': frames a second"),
        (video(annotations={}), r"annotations \{\}: a list is expected"),
    ],
)
def test_a_malformed_video_is_told_with_its_name_and_cause(database, entry, cause):
    path = database(a=video(annotation()), b=entry)
    with pytest.raises(ListError, match=rf"^{path}: 1 fault; video 'b': {cause}"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ("jump", "an object with segment and label is expected"),
        ({"label": "jump"}, "segment is missing: two finite numbers"),
        ({"segment": [1, 2, 3], "label": "jump"}, r"segment \[1, 2, 3\]: two finite numbers"),
        (annotation("1", 2), r"segment \['1', 2\]: two finite numbers"),
        (annotation(1, None), r"segment \[1, None\]: two finite numbers"),
        (annotation(False, 2), r"segment \[False, 2\]: two finite numbers"),
        (annotation(float("nan"), 2), r"segment \[nan, 2\]: two finite numbers"),
        (annotation(1, 10**400), r"segment \[1, 10+: two finite numbers"),
        (annotation(-0.5, 2), r"segment \[-0\.5, 2\] starts before the video"),
        (annotation(2, 2), r"segment \[2, 2\] does not end after it starts"),
        (annotation(3, 2), r"segment \[3, 2\] does not end after it starts"),
        ({"segment": [1, 2]}, "label is missing: the name of a class"),
        (annotation(label=""), "label '': the name of a class"),
        (annotation(label=4), "label 4: the name of a class"),
        (annotation(label_id="4"), "label_id '4': a whole number"),
        (annotation(label_id=1.5), r"label_id 1\.5: a whole number"),
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
    words = rf'annotation 1: segment \[{start}, {end}\] {how} after the video, of 10 s: .* beyond="keep"'
    with pytest.raises(ListError, match=words):
        read_annotations(path)
    assert read_annotations(path, beyond="keep").segments.values.tolist() == [["a", start, end, "jump"]]
    with pytest.raises(ValueError, match="beyond is 'clip'"):
        read_annotations(path, beyond="clip")


@pytest.mark.parametrize(
    ("label", "number", "cause"),
    [
        ("run", 1, "label_id 1 is of 'run' here, and of 'jump' before"),
        ("jump", 2, "'jump' has label_id 2 here, and 1 before"),
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
        ([1, 2], "an object with segment and label is expected"),
        (annotation(1, None, score=1), r"segment \[1, None\]: two finite"),
        (annotation(label=3, score=1), "label 3: the name of a class"),
        (annotation(), "score is missing: a finite number"),
        (annotation(score="high"), "score 'high': a finite number"),
        (annotation(score=float("nan")), "score nan: a finite number"),
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
    with pytest.raises(ListError, match=r"cannot write .*said\.json: prediction 2, 'run' in 'a', .* score nan"):
        write_predictions(path, said)
    assert path.read_text() == "before"


def test_annotations_are_the_same_after_writing(tmp_path):
    videos = pd.DataFrame(
        [("b", "training", 9.7, 25.0), ("a", "test", 0.1 + 0.2, np.nan)], columns=["video", "subset", "duration", "fps"]
    )
    segments = pd.DataFrame([("b", 0.1, 1 / 3, "run"), ("b", 4.0, 9.7, "jump"), ("a", 0.0, 0.2, "run")], columns=SEGMENTS)
    said = Annotations(videos, segments, ("run", "jump"))
    write_annotations(tmp_path / "gt.json", said)
    found = read_annotations(tmp_path / "gt.json")
    pd.testing.assert_frame_equal(found.videos, videos, check_dtype=False)
    pd.testing.assert_frame_equal(found.segments, segments, check_dtype=False)
    assert found.classes == said.classes
    entries = json.loads((tmp_path / "gt.json").read_text())["database"]
    assert [one["label_id"] for one in entries["b"]["annotations"]] == [0, 1]
    assert "fps" not in entries["a"]


@pytest.mark.parametrize(("video_name", "label"), [("c", "run"), ("a", "swim")])
def test_a_segment_of_no_video_or_class_is_not_written(tmp_path, video_name, label):
    videos = pd.DataFrame([("a", "test", 9.0, 25.0)], columns=["video", "subset", "duration", "fps"])
    segments = pd.DataFrame([(video_name, 0.0, 1.0, label)], columns=SEGMENTS)
    with pytest.raises(ListError, match=rf"cannot write .*'{label}' in '{video_name}' is of a video or class"):
        write_annotations(tmp_path / "gt.json", Annotations(videos, segments, ("run",)))
    assert not list(tmp_path.iterdir())


@needs_references
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_official_cases_are_read_whole_and_written_again(case, tmp_path):
    raw = json.loads((case / "gt.json").read_text())["database"]
    found, said = read_annotations(case / "gt.json"), read_predictions(case / "pred.json")
    rows = [[name, *one["segment"], one["label"]] for name, entry in raw.items() for one in entry["annotations"]]
    assert found.segments.values.tolist() == rows
    assert found.videos.video.tolist() == list(raw)
    numbers = {one["label"]: one["label_id"] for entry in raw.values() for one in entry["annotations"]}
    assert list(found.classes) == sorted(numbers, key=numbers.get)
    write_annotations(tmp_path / "gt.json", found)
    write_predictions(tmp_path / "pred.json", said)
    again = read_annotations(tmp_path / "gt.json")
    assert again.segments.equals(found.segments)
    assert again.classes == found.classes
    assert read_predictions(tmp_path / "pred.json").equals(said)
