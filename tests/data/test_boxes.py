"""AVA's files: what is wrong with them is told with file, line and cause."""

import pytest

from vmae_lab.data.boxes import (
    read_detections,
    read_excluded,
    read_ground_truth,
    read_label_map,
    read_person_boxes,
    write_detections,
)
from vmae_lab.data.lists import ListError

GOOD = "vid,0902,0.1,0.2,0.5,0.9,12,3"


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "gt.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_what_a_file_says(written):
    table = read_ground_truth(written(f"{GOOD}\nvid,902.5,0,0,1,1,80,\n"), {12, 80})
    assert table.loc[0].tolist() == ["vid", 902.0, 0.1, 0.2, 0.5, 0.9, 12, 3]
    assert table.loc[1, ["timestamp", "person_id"]].tolist() == [902.5, -1]
    assert len(read_ground_truth(written(""))) == 0


def test_a_file_without_persons_is_read(written):
    assert read_ground_truth(written(GOOD.rsplit(",", 1)[0])).person_id.tolist() == [-1]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("vid,0902,0.1,0.2,0.5,0.9", r"6 columns; 8 are expected: video, timestamp, x1"),
        (GOOD + ",1,2", "10 columns"),
        ("", "1 columns"),
        (",0902,0.1,0.2,0.5,0.9,12,3", "the video's name is empty"),
        ("vid,soon,0.1,0.2,0.5,0.9,12,3", "timestamp 'soon' is no number"),
        ("vid,nan,0.1,0.2,0.5,0.9,12,3", "timestamp 'nan' is no number"),
        ("vid,0902,0.1,0.2,0.5,1.1,12,3", r"the box x1 0\.1, y1 0\.2, x2 0\.5, y2 1\.1 is not inside \[0, 1\]"),
        ("vid,0902,-0.1,0.2,0.5,0.9,12,3", "not inside"),
        ("vid,0902,0.5,0.2,0.1,0.9,12,3", r"has no area: x1 < x2 and y1 < y2 are expected"),
        ("vid,0902,0.1,0.2,0.5,0.9,99,3", "action_id 99 is not in the label map"),
        ("vid,0902,0.1,0.2,0.5,0.9,1.5,3", "action_id '1.5' is no whole number"),
        ("vid,0902,0.1,0.2,0.5,0.9,,3", "action_id '' is no whole number"),
    ],
)
def test_a_malformed_line_is_told_with_its_place_and_cause(written, line, cause):
    path = written(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ListError, match=rf"{path}: 1 bad line; line 2: .*{cause}"):
        read_ground_truth(path, {12})


def test_detections_are_read_as_they_stand(written):
    """A model may say boxes that leave the frame or have no area: the evaluation knows what to do with them."""
    table = read_detections(written("vid,0902,-0.1,0.5,1.2,0.2,12,0.9"))
    assert table.loc[0, ["x1", "y2", "score"]].tolist() == [-0.1, 0.2, 0.9]
    with pytest.raises(ListError, match="line 1: score 'high' is no number"):
        read_detections(written("vid,0902,0.1,0.2,0.5,0.9,12,high"))


def test_times_are_the_same_when_written_and_read_again(written, tmp_path):
    """4/3 s is endless: what stands in the file, to the microsecond, is what it is compared by."""
    truth = read_ground_truth(written("vid,1.3333333333333333,0.1,0.2,0.5,0.9,12,3\nvid,0902,0.1,0.2,0.5,0.9,12,3\n"))
    said = truth.assign(score=0.5, timestamp=[4 / 3, 902.0])
    write_detections(tmp_path / "said.csv", said)
    assert [line.split(",")[1] for line in (tmp_path / "said.csv").read_text().splitlines()] == ["1.333333", "902"]
    assert read_detections(tmp_path / "said.csv").timestamp.tolist() == truth.timestamp.tolist()
    write_detections(tmp_path / "said.csv", said.assign(timestamp=[-1e-9, 1234567.8900001]))
    assert read_detections(tmp_path / "said.csv").timestamp.tolist() == [0.0, 1234567.89]


def test_marks_and_blank_lines_of_editors_are_no_rows(written):
    assert len(read_ground_truth(written(f"\ufeff{GOOD}\r\n{GOOD}\r\n\r\n \n"))) == 2
    assert read_ground_truth(written(f"\ufeff{GOOD}")).video.tolist() == ["vid"]
    name = "one\u2028name"  # a line's end to Python, not to a file
    assert read_ground_truth(written(GOOD.replace("vid", name))).video.tolist() == [name]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("vid,0902,0.1,0.2,0.5,1.002,,0.9", r"the box .* y2 1\.002 is not inside \[0, 1\]"),
        ("vid,0902,-0.1,0.2,0.5,0.9,,0.9", "is not inside"),
        ("vid,0902,10,20,50,90,,0.9", "is not inside"),
        ("vid,0902,0.1,0.2,0.5,0.9,,99", "score 99 is not between 0 and 1"),
        ("vid,0902,0.1,0.2,0.5,0.9,,-0.5", "score -0.5 is not between 0 and 1"),
        ("vid,0902,0.1,0.2,0.5,0.9,,inf", "score 'inf' is no number"),
        ("vid,0902,1.0002,0.2,1.0004,0.9,,0.9", "has no area"),
    ],
)
def test_person_boxes_that_cannot_be_parts_of_a_frame_are_refused(written, line, cause):
    with pytest.raises(ListError, match=rf"1 bad line; line 2: .*{cause}"):
        read_person_boxes(written(f"vid,0902,0.1,0.2,0.5,0.9,,0.9\n{line}\n"))


def test_what_a_detectors_rounding_adds_is_cut(written):
    table = read_person_boxes(written("vid,0902,-0.0005,0.2,0.5,1.0004,,1.0001"))
    assert table.loc[0, ["x1", "y1", "x2", "y2", "score"]].tolist() == [0, 0.2, 0.5, 1, 1]
    assert read_detections(written("vid,0902,0.1,0.2,0.5,0.9,12,-7.5")).score.tolist() == [-7.5], "any finite score ranks"


def test_person_boxes_have_no_action(written):
    table = read_person_boxes(written("vid,0902,0.1,0.2,0.5,0.9,,0.99"))
    assert table.columns.tolist() == ["video", "timestamp", "x1", "y1", "x2", "y2", "score"]
    with pytest.raises(ListError, match=r"line 1: the box .* has no area"):
        read_person_boxes(written("vid,0902,0.5,0.2,0.5,0.9,,0.99"))


def test_excluded_key_frames(written):
    assert read_excluded(written("vid,0903\n")).values.tolist() == [["vid", 903.0]]
    with pytest.raises(ListError, match="line 1: 1 columns; 2 are expected"):
        read_excluded(written("vid\n"))


def test_label_maps(written):
    pbtxt = 'item {\n  name: "bend/bow (at the waist)"\n  id: 1\n}\nitem {\n  name: "sit"\n  id: 11\n}\n'
    assert read_label_map(written(pbtxt, "map.pbtxt")) == {1: "bend/bow (at the waist)", 11: "sit"}
    assert read_label_map(written("id,name\n1,bend, bow\n2,sit\n", "map.csv")) == {1: "bend, bow", 2: "sit"}
    for text, name, cause in [
        ("item { id: 1 }", "map.pbtxt", "item 1 has no id or no name"),
        ("", "map.pbtxt", "names no action"),
        ("1,a\n1,b", "map.csv", "one number to several"),
        ("1,a\nb", "map.csv", "entry 2 'b' is not a number and a name"),
    ]:
        with pytest.raises(ListError, match=cause):
            read_label_map(written(text, name))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ListError, match=r"cannot read .*none\.csv: No such file"):
        read_ground_truth(tmp_path / "none.csv")
