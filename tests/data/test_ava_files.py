"""AVA's files: what is wrong with them is told with file, line and cause."""

import pytest

from vmae_lab.data.ava_files import (
    read_detections,
    read_excluded,
    read_ground_truth,
    read_label_map,
    read_person_boxes,
    write_detections,
)
from vmae_lab.data.video_lists import ListError

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


SAID = r'"say \"{hi}\" # loud"'


@pytest.mark.parametrize(
    "text",
    [
        f'item {{ name: "sit" id: 1 }} item {{ id: 2 name: {SAID} }}',
        f"# item {{ id: 5 }}\nitem {{\n  name: 'sit'  # {{ id: 3 }}\n  id: 1\n}}\nitem: <id: 2, name: {SAID}>\n",
        '\ufefflabel_map: {\r\n label {\r\n name: "sit"; label_id: 1\r\n label_type: PERSON_MOVEMENT }\r\n'
        f'label {{ label_id:2 name:{SAID} keypoints {{ id: 7 name: "k" }} }} }}',
        f'item {{ name: "sit" id: 1 display_name: "Sit" }} item {{ id: 2 display_name: {SAID} }}',
    ],
)
def test_label_maps_in_every_form_of_pbtxt(written, text):
    assert read_label_map(written(text, "map.pbtxt")) == {1: "sit", 2: 'say "{hi}" # loud'}


@pytest.mark.parametrize(
    ("text", "name", "causes"),
    [
        (
            'item {\n id: 1 name: "a"\n}\nitem {\n name: "b" }\nitem { id: 3 }',
            "map.pbtxt",
            ["2 faults", "line 4: item 2", "line 6: item 3"],
        ),
        (
            'item { id: 1 name: "a" }\nitem { id: 2\n name: "b" }\nitem { id: 1 name: "c" }',
            "map.pbtxt",
            ["number to several", "lines 1, 4"],
        ),
        ('item {\n id: 1 name: "a"\n', "map.pbtxt", ["line 1: item is not closed"]),
        ('item { id: 1 name: "a }\n', "map.pbtxt", ['line 1: " has no other']),
        ('item { id: 1 name: "a" }\n}\n', "map.pbtxt", ["line 2: } has no other"]),
        ("# id,name\n\n1,a\n# 1,b\n2\nx,c\n", "map.csv", ["2 faults", "line 5: ", "line 6: "]),
    ],
)
def test_label_maps_with_faults_name_their_lines(written, text, name, causes):
    with pytest.raises(ListError) as caught:
        read_label_map(written(text, name))
    assert all(cause in str(caught.value) for cause in causes), caught.value


def test_comments_are_no_rows_and_lines_are_still_counted(written):
    assert read_excluded(written("# ignored\nvid,0903\n#vid,0904\n")).values.tolist() == [["vid", 903.0]]
    table = read_ground_truth(written(f"# video,timestamp\n{GOOD}\n"))
    assert len(table) == 1
    with pytest.raises(ListError, match=r"1 bad line; line 3: .*action_id 'x'"):
        read_ground_truth(written(f"# video,timestamp\n{GOOD}\nvid,0902,0.1,0.2,0.5,0.9,x,3\n"))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ListError, match=r"cannot read .*none\.csv: No such file"):
        read_ground_truth(tmp_path / "none.csv")
