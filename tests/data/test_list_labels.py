"""Labels as numbers or names, round trips of written lists, and classes without a video."""

import time
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_videos import write_video

from vmae_lab.data.check import CHECKED, check_list
from vmae_lab.data.decoding import VideoSettings
from vmae_lab.data.shards import pack
from vmae_lab.data.video_lists import ListError, ListSettings, read_list, read_split

# Names that could be mistaken for numbers, missing values, several columns, or each other.
NAMES = [
    "2019", "2020", "007", "01", "1", "1e3", "+1", "-2", " 1", "cat ", "True", "nan", "NA", "None", "a,b", 'say "hi"', "#1",
    "two\nlines", "one\rline", "'q'", "日本", "2.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 4).read_bytes()


@pytest.fixture
def folders(tmp_path, clip):
    """Create a folder of class folders with a video each."""

    def make(*names: str) -> Path:
        for number, name in enumerate(names):
            (tmp_path / "videos" / name).mkdir(parents=True)
            (tmp_path / "videos" / name / f"{number}.mp4").write_bytes(clip)
        return tmp_path / "videos"

    return make


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "list.csv") -> Path:
        (tmp_path / name).write_bytes(text.encode())
        return tmp_path / name

    return write


def labels_of(videos) -> dict[str, str]:
    return {path: videos.classes[label] for path, label in zip(videos.table["path"], videos.table["label"], strict=True)}


def test_written_lists_read_back_with_the_same_classes(folders, tmp_path):
    root = folders(*NAMES)
    listed = read_list(".", root, labelled=True)
    assert listed.classes == tuple(sorted(NAMES))
    check_list(listed, VideoSettings(), tmp_path / "check")
    checked = read_list(tmp_path / "check" / CHECKED, root, labelled=True)
    assert (checked.classes, labels_of(checked)) == (listed.classes, labels_of(listed))
    packed = read_list(pack(listed, tmp_path / "shards"), tmp_path / "shards", labelled=True)
    assert packed.classes == listed.classes
    assert sorted(packed.table["label"]) == list(range(len(NAMES)))


def test_written_lists_are_readable_with_pandas(folders, tmp_path):
    root = folders("2020", "2019")
    check_list(read_list(".", root, labelled=True), VideoSettings(), tmp_path / "check")
    table = pd.read_csv(tmp_path / "check" / CHECKED)
    assert table[["path", "label", "class_index"]].to_numpy().tolist() == [["2019/1.mp4", 2019, 0], ["2020/0.mp4", 2020, 1]]


def test_a_class_without_readable_videos_keeps_its_number(folders, tmp_path, capsys):
    root = folders("a", "b", "c", "d")
    for name, number in (("b", 1), ("d", 3)):
        (root / name / f"{number}.mp4").write_text("<html>")
    check_list(read_list(".", root, labelled=True), VideoSettings(), tmp_path / "check")
    assert "2 of 4 classes" in capsys.readouterr().out
    assert "b, d" in (tmp_path / "check" / "README.md").read_text()
    with pytest.warns(UserWarning, match="2 of 4 classes without a video: b, d"):
        checked = read_list(tmp_path / "check" / CHECKED, root, labelled=True)
    assert checked.classes == ("a", "b", "c", "d")
    assert list(checked.table["label"]) == [0, 2]


def test_a_missing_class_number_is_a_class(write):
    text = "path,label,class_index\na,x,0\nb,y,2\n"
    with pytest.warns(UserWarning, match="1 of 3 classes without a video: class 1"):
        assert read_list(write(text), labelled=True).classes == ("x", "class 1", "y")
    with pytest.warns(UserWarning, match="class 1, class 3"):
        assert len(read_list(write(text), labelled=True, classes=4).classes) == 4
    for cell in ("z", "[1]", '"{""x"": ""z""}"'):
        with pytest.raises(ListError, match="lost_classes"):
            read_list(write(f"path,label,class_index,lost_classes\na,x,0,{cell}\nb,y,2,\n"), labelled=True)


@pytest.mark.parametrize("kind", ["float32", "Int64", "Float64", "category", "object", "bool", "uint8"])
def test_labels_of_all_types_that_pandas_writes(tmp_path, kind):
    numbers = [0, 1] * 6 if kind == "bool" else [10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8, 11]
    column = pd.Series(numbers).astype(kind)
    table = pd.DataFrame({"path": [f"{i}.mp4" for i in range(12)], "label": column})
    table.to_parquet(tmp_path / "list.parquet")
    table.to_csv(tmp_path / "list.csv", index=False)
    for name in ("list.parquet", "list.csv"):
        videos = read_list(name, tmp_path, labelled=True)
        assert list(videos.table["label"]) == numbers
        assert videos.classes == (("False", "True") if kind == "bool" else tuple(map(str, range(12))))


def test_a_missing_number_is_the_only_bad_line(tmp_path):
    """pandas writes such a column as floats. 2.0 must not be sorted as text after 10.0."""
    table = pd.DataFrame({"path": ["a", "b", "c", "d"], "label": [2, 0, np.nan, 1], "total": [9, 8, 7, np.nan]})
    for name, save in {"list.csv": table.to_csv, "list.parquet": table.to_parquet}.items():
        save(tmp_path / name, index=False)
        with pytest.raises(ListError, match=r"1 bad line; line \d: the label is empty$"):
            read_list(name, tmp_path, labelled=True)
    table.assign(label=[2.0, 0.0, 3.0, 1.0]).to_csv(tmp_path / "list.csv", index=False)
    videos = read_list("list.csv", tmp_path, labelled=True)
    assert list(videos.table["label"]) == [2, 0, 3, 1]
    assert list(videos.table["total"]) == [9, 8, 7, -1]


@pytest.mark.parametrize("text", ["a.mp4 2.0\nb.mp4 0.0\nc.mp4 1.0\n", "a.mp4,2.0\nb.mp4,0.0\nc.mp4,1.0\n"])
def test_floats_without_a_header(write, text):
    videos = read_list(write(text), labelled=True)
    assert list(videos.table["path"]) == ["a.mp4", "b.mp4", "c.mp4"]
    assert list(videos.table["label"]) == [2, 0, 1]


@pytest.mark.parametrize(
    ("text", "line", "label"),
    [
        ("path,label\na,0\nb,1.5\nc,1\n", 3, "1.5"),
        ("path,label\na,0.1\nb,0.2\n", 2, "0.1"),
        ("path,label\na,1e3\nb,2e3\n", 2, "1e3"),
        ("path,label\na,0\nb,nan\nc,1\n", 3, "nan"),
        ("path,label\na,0\nb,1\nc,01\n", 4, "01"),
        ("path,label\na,0\nb,99999999999999999999\nc,1\n", 3, "99999999999999999999"),
        ("path,label\na,0\nb,-1\nc,1\n", 3, "-1"),
        ("path,label\na,zero\nb,\n", 3, "empty"),
        ("path,label,class_index\na,x,0\nb,y,\n", 3, "class_index"),
        ("path,label,class_index\na,x,0\nb,y,1\nc,y,2\n", 4, "y"),
        ("path,label,class_index\na,x,0\nb,y,1\nc,z,1\n", 4, "z"),
        ("path,label,class_index\na,x,0\nb,y,-1\n", 3, "-1"),
        ("path,label,class_index\na,x,0\nb,y,1000000\n", 3, "1000000"),
    ],
)
def test_invalid_labels_are_named_with_their_line(write, text, line, label):
    with pytest.raises(ListError) as caught:
        read_list(write(text), labelled=True)
    assert f"line {line}: " in str(caught.value)
    assert label in str(caught.value)


def test_labels_that_are_lists_are_refused(tmp_path):
    pd.DataFrame({"path": ["a"], "label": [[0, 1]]}).to_parquet(tmp_path / "list.parquet")
    with pytest.raises(ListError, match=r"list\.parquet.*'label'"):
        read_list("list.parquet", tmp_path, labelled=True)


@pytest.mark.parametrize("form", ["{} {}\n", "{},{}\n", "{} 30 {}\n"])
def test_labels_that_start_at_one_are_refused(write, form):
    file = write("".join(form.format(f"{i}.mp4", i % 3 + 1) for i in range(6)), "list.txt")
    with pytest.raises(ListError, match=r"list\.txt: labels start at 1 \(first in line 1\).*lists\.classes"):
        read_list(file, labelled=True)
    with pytest.raises(ListError, match=r"2 bad lines; line 3: label 3 is outside 0\.\.2; labels start at 0"):
        read_list(file, labelled=True, classes=3)
    with pytest.warns(UserWarning, match="1 of 4 classes without a video: 0"):
        assert read_list(file, labelled=True, classes=4).classes == ("0", "1", "2", "3")
    with pytest.raises(ListError, match=r"line 3: label 3 is outside 0\.\.2"):
        read_list(file, labelled=True, classes=["x", "y", "z"])


def test_classes_without_a_video_give_a_warning_in_every_split(write, tmp_path):
    write("path,label\na,walk\nb,run\nc,jump\n", "train.csv")
    write("path,label\nd,walk\n", "val.csv")
    write("a 0\nb 3\n", "numbers.txt")
    settings = ListSettings(root=str(tmp_path), train="train.csv", validation="val.csv")
    with pytest.warns(UserWarning, match=r"val\.csv: 2 of 3 classes without a video: jump, run$"):
        read_split(settings, "validation")
    with pytest.warns(UserWarning, match=r"numbers\.txt: 2 of 4 classes without a video: 1, 2"):
        read_list("numbers.txt", tmp_path, labelled=True)
    with pytest.warns(UserWarning, match=r"2019 of 2021 classes .*and 2009 more \(.*class_index"):
        read_list(write("path,label\na,2019\nb,2020\n"), labelled=True)


def test_a_folder_without_a_video_is_not_a_class(folders):
    root = folders("run", "walk")
    (root / "sit").mkdir()
    (root / "sit" / "a.mxf").write_bytes(b"x")
    with pytest.warns(UserWarning, match="1 folder without a video, not used as classes: sit"):
        videos = read_list(".", root, labelled=True)
    assert videos.classes == ("run", "walk")
    assert "1 file" in videos.skipped
    assert ".mxf 1" in videos.skipped


@pytest.mark.parametrize("classes", [["2019", "2020"], ["007", "01"], ["0", "1", "10", "2"]])
def test_class_names_that_are_numbers_are_looked_up_by_name(write, tmp_path, classes, folders):
    """The other list may have another form: pandas writes 007 as 7, and as 7.0 if there are gaps."""
    folders(*classes)
    for written in (classes, [str(int(name)) for name in classes], [f"{int(name)}.0" for name in classes]):
        write("path,label\n" + "".join(f"{i}.mp4,{name}\n" for i, name in enumerate(written)), "val.csv")
        settings = ListSettings(root=str(tmp_path), train="videos", validation=str(tmp_path / "val.csv"))
        assert list(read_split(settings, "validation").table["label"]) == list(range(len(classes)))
    write("path,label\na.mp4,3\n", "val.csv")
    with pytest.raises(ListError, match="there is no class '3'"):
        read_split(settings, "validation")


def test_lists_of_different_forms_agree_on_class_names(write, tmp_path, folders):
    """A checked validation list has its own class numbers. Its names are used, not the numbers."""
    folders("jump", "run", "walk")
    settings = ListSettings(root=str(tmp_path), train="videos", validation="val.csv")
    write("path,label,class_index\na.mp4,run,0\nb.mp4,walk,1\n", "val.csv")
    with pytest.warns(UserWarning, match="jump"):
        assert list(read_split(settings, "validation").table["label"]) == [1, 2]
    write("path,label,class_index\na.mp4,0,0\nb.mp4,1,1\nc.mp4,2,2\n", "val.csv")
    assert list(read_split(settings, "validation").table["label"]) == [0, 1, 2], "numbers index the classes of the train list"
    write("path,label,class_index\na.mp4,fly,0\n", "val.csv")
    with pytest.raises(ListError, match="there is no class 'fly'"):
        read_split(settings, "validation")
    write("path,label\na.mp4,0\nb.mp4,1\nc.mp4,2\n", "numbers.csv")
    write("path,label\na.mp4,run\n", "val.csv")
    by_number = ListSettings(root=str(tmp_path), train="numbers.csv", validation="val.csv")
    with pytest.raises(ListError, match="there is no class 'run'"):
        read_split(by_number, "validation")


def test_two_unicode_forms_of_a_name_are_one_class(write, folders):
    composed, split = (unicodedata.normalize(form, "école") for form in ("NFC", "NFD"))
    root = folders(composed, split, "run")
    videos = read_list(".", root, labelled=True)
    assert videos.classes == ("run", composed)
    assert list(read_list(write(f"path,label\na,{split}\nb,run\n"), root, True, classes=videos.classes).table["label"]) == [
        1,
        0,
    ]


def test_a_class_name_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "videos" / "caf\udce9").mkdir(parents=True)
    (tmp_path / "videos" / "caf\udce9" / "a.mp4").write_bytes(b"x")
    with pytest.raises(ListError, match=r"not UTF-8: caf\\xe9"):
        read_list("videos", tmp_path, labelled=True)
    assert len(read_list("videos", tmp_path)) == 1


@pytest.mark.slow
def test_distinct_labels_of_a_long_list_are_parsed_once(write):
    file = write("path,label,class_index\n" + "".join(f"{i}.mp4,c{i % 700},{i % 700}\n" for i in range(300_000)))
    start = time.process_time()
    assert len(read_list(file, labelled=True).classes) == 700
    assert time.process_time() - start < 10
