"""Lists of videos: all forms, all kinds of bad lines, splits and classes."""

import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from vmae_lab.data.video_lists import HoldOut, ListError, ListSettings, SourceSettings, read_list, read_pretrain, read_split


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a list and returns its path."""

    def write(text: str | bytes, name: str = "list.txt") -> Path:
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")


def rows(videos, *columns: str) -> list[tuple]:
    return list(videos.table[list(columns)].itertuples(index=False, name=None))


def test_official_lists_without_labels(write, tmp_path):
    videos = read_list(write("a b.mp4 0 -1\nframes/one\t3   120\n\n#2.mp4 0 -1\n"), tmp_path)
    assert rows(videos, "path", "start", "total", "line") == [
        ("a b.mp4", 0, -1, 1),
        ("frames/one", 3, 120, 2),
        ("#2.mp4", 0, -1, 4),
    ]
    assert set(videos.table["label"]) == {-1}
    assert videos.classes == ()
    assert videos.root == tmp_path
    assert len(videos) == 3
    assert all(videos.table[name].dtype == np.int64 for name in ("label", "start", "total", "line"))


def test_a_plain_list_of_paths(write):
    videos = read_list(write("a.mp4\nwith space 2.mp4\n"))
    assert rows(videos, "path", "start", "total") == [("a.mp4", 0, -1), ("with space 2.mp4", 0, -1)]


def test_official_lists_with_labels(write):
    videos = read_list(write("a 1 b.mp4 1\nclips/c.mp4 0\n"), labelled=True, classes=8)
    assert rows(videos, "path", "label", "total") == [("a 1 b.mp4", 1, -1), ("clips/c.mp4", 0, -1)]
    assert videos.classes == tuple("01234567")
    folders = read_list(write("frames one 40 2\nframes/two 30 0\n"), labelled=True)
    assert rows(folders, "path", "start", "total", "label") == [("frames one", 1, 40, 2), ("frames/two", 1, 30, 0)]
    assert folders.classes == ("0", "1", "2"), "the largest label gives the number"


def test_the_first_line_decides_between_equally_frequent_forms(write):
    for text, form in {"a.mp4 1\nb 9 1\n": "path label", "b 9 1\na.mp4 1\n": "path total_frames label"}.items():
        with pytest.raises(ListError, match=f"1 bad line; line 2: expected '{form}'"):
            read_list(write(text), labelled=True)
    for text, form in {"a.mp4\nb 9 1\n": "path", "b 9 1\na.mp4\n": "path start_index total_frames"}.items():
        with pytest.raises(ListError, match=f"1 bad line; line 2: expected '{form}'"):
            read_list(write(text))


@pytest.mark.parametrize("text", ["a,b.mp4,3\nc.mp4,0\n", "a,b.mp4, 3\nc.mp4, 0\n", '"a,b.mp4",3\n"c.mp4",0\n'])
def test_commas_without_a_header(write, text):
    assert rows(read_list(write(text), labelled=True), "path", "label") == [("a,b.mp4", 3), ("c.mp4", 0)]


def test_a_comma_in_a_path_is_not_a_delimiter(write):
    assert rows(read_list(write("a,2.mp4 3\nb.mp4 0\n"), labelled=True), "path", "label") == [("a,2.mp4", 3), ("b.mp4", 0)]
    assert rows(read_list(write("a,2 0 -1\n")), "path", "start", "total") == [("a,2", 0, -1)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["path", "Video", "video_path", "filename"])
def test_tables_with_a_header(write, delimiter, column):
    header = delimiter.join(["width", column, " Label", "frames", "decoder"])
    quoted = f'"say ""hi""{delimiter} 1.mp4"'
    body = "\n".join(delimiter.join(row) for row in (["320", quoted, "jump", "90", "decord"], ["", "b.mp4", "fall", "8", ""]))
    videos = read_list(write(f"# made by hand\n\n{header}\n{body}\n\n"), labelled=True)
    path = f'say "hi"{delimiter} 1.mp4'
    assert rows(videos, "path", "label", "line", "frames", "decoder", "total") == [
        (path, 1, 4, 90, "decord", -1),
        ("b.mp4", 0, 5, 8, "", -1),
    ]
    assert videos.classes == ("fall", "jump")
    assert "width" not in videos.table
    assert set(read_list(write(f"{header}\n{body}\n")).table["label"]) == {-1}, "labels are not read if they are not requested"


def test_optional_columns_of_a_table(write):
    videos = read_list(write("path,total,start\na,10,\nb.mp4,,\nc,5,0\n"))
    assert rows(videos, "path", "start", "total") == [("a", 1, 10), ("b.mp4", 0, -1), ("c", 0, 5)]
    shards = read_list(write("path,offset,size\ns.tar,512,10\ns.tar,1024,20\n"))
    assert rows(shards, "path", "offset", "size") == [("s.tar", 512, 10), ("s.tar", 1024, 20)]
    assert shards.table["offset"].dtype == np.int64


@pytest.mark.parametrize(
    ("labelled", "text", "expected"),
    [
        (
            True,
            "\"my clip.mp4\" 1\n'other clip.mp4' 0\nplain.mp4 2\n",
            [("my clip.mp4", 1), ("other clip.mp4", 0), ("plain.mp4", 2)],
        ),
        (True, "\"frames 12\" 30 1\n'f' 20 0\n", [("frames 12", 1), ("f", 0)]),
        (True, '"clip 12" 1\nclip.mp4 0\n', [("clip 12", 1), ("clip.mp4", 0)]),
        (True, "'a,b.mp4',1\n'c.mp4',0\n", [("a,b.mp4", 1), ("c.mp4", 0)]),
        (True, '"say ""hi"".mp4" 1\n\'it\'\'s.mp4\' 0\n', [('say "hi".mp4', 1), ("it's.mp4", 0)]),
        (True, "'tis.mp4 1\n5\" disk.mp4 0\n", [("'tis.mp4", 1), ('5" disk.mp4', 0)]),
        (False, "\"my clip.mp4\" 0 -1\n'f 1' 3 9\n", [("my clip.mp4", -1), ("f 1", -1)]),
        (False, "\"my clip 1.mp4\"\n'b 2'\n", [("my clip 1.mp4", -1), ("b 2", -1)]),
    ],
)
def test_quotation_marks_around_a_path_are_removed(write, labelled, text, expected):
    assert rows(read_list(write(text), labelled=labelled), "path", "label") == expected


def test_backslashes_of_windows_are_refused(write, tmp_path):
    touch(tmp_path, "run/a.mp4", "odd\\name.mp4")
    text = "path,label\nodd\\name.mp4,0\nrun\\a.mp4,1\nC:\\videos\\b.mp4,1\n"
    with pytest.raises(ListError) as caught:
        read_list(write(text), tmp_path, labelled=True)
    message = str(caught.value)
    assert "2 bad lines; line 3: " in message
    assert "use / between folders" in message
    assert "line 4: " in message


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
@pytest.mark.parametrize("header", [["file", "class"], ["clip_id", "category", "split"], ["video name", "label"]])
def test_a_header_without_a_path_is_reported_with_its_columns(write, tmp_path, name, header):
    table = pd.DataFrame([["a.mp4", 1, "x"], ["b.mp4", 0, "y"]]).iloc[:, : len(header)].set_axis(header, axis=1)
    table.to_csv(tmp_path / name, index=False) if name.endswith("csv") else table.to_parquet(tmp_path / name)
    with pytest.raises(ListError, match=rf"{name} has no column 'path'; its columns are {', '.join(header)}"):
        read_list(name, tmp_path, labelled=True)


def test_a_word_above_a_list_of_paths_is_a_header(write):
    with pytest.raises(ListError, match="its columns are filepath"):
        read_list(write("filepath\na.mp4\nb.mp4\n"))
    with pytest.raises(ListError, match="no column 'label'; its columns are path, class"):
        read_list(write("path,class\na.mp4,walk\n"), labelled=True)


@pytest.mark.parametrize("text", ["a.mp4 walk\nb.mp4 run\n", "a.mp4,walk\nb.mp4,run\n", "a.mp4\twalk\nb.mp4\trun\n"])
def test_names_as_labels_need_a_header(write, text):
    with pytest.raises(ListError, match=r"2 bad lines; line 1: .*names, use a table with a header \(path,label\); line 2: "):
        read_list(write(text), labelled=True)


def test_a_table_may_be_separated_by_spaces(write):
    text = 'path label\n"my clip.mp4" walk\nb.mp4 run\n'
    assert rows(read_list(write(text), labelled=True), "path", "label") == [("my clip.mp4", 1), ("b.mp4", 0)]
    assert rows(read_list(write("my video 1.mp4\nb.mp4\n")), "path") == [("my video 1.mp4",), ("b.mp4",)], "no header"


@pytest.mark.parametrize("text", ["path,label\ra.mp4,1\rb.mp4,0\r", "a.mp4 1\rb.mp4 0"])
def test_line_ends_of_old_macs(write, text):
    assert rows(read_list(write(text), labelled=True), "path", "label") == [("a.mp4", 1), ("b.mp4", 0)]


def test_encodings(write):
    plain = rows(read_list(write("ä/日本.mp4 0 -1\nb\u2028c.mp4 0 -1\n")), "path", "line")
    assert plain == [("ä/日本.mp4", 1), ("b\u2028c.mp4", 2)]
    assert rows(read_list(write("\ufeffä/日本.mp4 0 -1\r\nb\u2028c.mp4 0 -1\r\n")), "path", "line") == plain
    assert rows(read_list(write("\ufeffpath,label\r\n\r\nc.mp4,1\r\n"), labelled=True), "path", "label", "line") == [
        ("c.mp4", 1, 3)
    ]
    with pytest.raises(ListError, match=r"list\.txt, line 2: byte 0xe4 is not UTF-8"):
        read_list(write("a.mp4 0 -1\nä.mp4 0 -1\n".encode("latin-1")))


def test_comments_are_allowed_only_at_the_top(write):
    text = "\n# a comment\n# path label\n#1.mp4 0\nb.mp4 1\n"
    assert rows(read_list(write(text), labelled=True), "path", "line") == [("#1.mp4", 4), ("b.mp4", 5)]
    with pytest.raises(ListError, match=r"1 bad line; line 2: expected 'path label', got '# no comment'"):
        read_list(write("a.mp4 0\n# no comment\n"), labelled=True)


BAD = [  # labelled, text, faults
    (
        True,
        "a.mp4 1\nb.mp4\nc.mp4 9\nd.mp4 x\n",
        ["line 2: expected 'path label'", "line 3: label 9 is outside 0..7", "line 4: "],
    ),
    (True, "a.mp4 1\nb.mp4 -1\n", ["line 2: label -1 is outside 0..7; labels start at 0"]),
    (True, "a.mp4 1\nb.mp4 1.5\n", ["line 2: expected 'path label', got 'b.mp4 1.5'"]),
    (True, "a.mp4 1\nb.mp4 1\nc 2 1\n", ["line 3: expected 'path label'", "if a path ends in a number, use quotation marks"]),
    (True, "a 9 1\nb 8 1\nc.mp4 1\n", ["line 3: expected 'path total_frames label', got 'c.mp4 1'"]),
    (True, "a 9 1\nb 0 1\nc -2 1\n", ["line 2: total is 0", "line 3: total -2 is too small"]),
    (True, "a.mp4,1\n,1\nb.mp4,\n", ["line 2: the path is empty", "line 3: expected 'path label'"]),
    (
        True,
        "path,label\na.mp4,1\nb.mp4,x\nc.mp4,\nd.mp4,2,3\ne.mp4,2\n",
        ["3: label 'x' is not a whole", "4: the label is empty", "5: 3 fields"],
    ),
    (True, "path,label\n,1\na\0.mp4,1\n", ["line 2: the path is empty", "line 3: the path 'a\\x00.mp4' has a NUL byte"]),
    (True, "a.mp4 1\nb.mp4 1\na.mp4 2\n", ["line 3: 'a.mp4' is already in line 1 with label 1"]),
    (False, "a.mp4 0 -1\nb.mp4 0 -1\n./a.mp4 0 -1\n", ["line 3: './a.mp4' is already in line 1"]),
    (False, "a.mp4\nb//c.mp4\nx/../b/c.mp4\n", ["line 3: 'x/../b/c.mp4' is already in line 2"]),
    (False, "a.mp4 0 -1\nb.mp4 0\nc.mp4\n", ["line 2: expected 'path start_index total_frames'", "line 3: "]),
    (False, "a.mp4 0\nb.mp4 1\n", ["line 1: expected 'path start_index total_frames'", "line 2: ", "add --labelled"]),
    (False, "a.mp4\nb.mp4\nc.mp4 1\n", ["line 3: expected 'path', got 'c.mp4 1'; if the list has labels, add --labelled"]),
    (False, "a.mp4 -1 5\n", ["line 1: start -1 is too small; if the list has labels, add --labelled"]),
    (False, "a.mp4 -1 0\n", ["line 1: total is 0, so the folder has no frames; if the list has labels, add --labelled"]),
    (False, "a.mp4\nb.mp4\nc.mp4 0 -1\n", ["line 3: expected 'path', got 'c.mp4 0 -1'"]),
    (False, "a.mp4 0 -1\nb -1 9\nc 0 0\nd 0 -3\n", ["line 2: start -1 is too small", "line 3: total is 0", "line 4: total -3"]),
    (False, "a.mp4 0 -1\nb 0 99999999999999999999\n", ["line 2: expected 'path start_index"]),
    (
        False,
        "/v/a.mp4 0 -1\n../b.mp4 0 -1\nc/../../d 0 -1\n..e/f..g.mp4 0 -1\n",
        ["line 1: '/v/a.mp4' is outside", "line 2", "line 3"],
    ),
    (
        False,
        "path,frames\na,0\nb,\nc,3.0\n",
        ["line 2: frames 0 is too small", "line 3: frames '' is not a", "line 4: frames '3.0'"],
    ),
    (False, "path,start,total\na,x,5\nb,0,y\n", ["line 2: start 'x' is not a whole number", "line 3: total 'y'"]),
    (
        False,
        "path,offset,size\na,-1,5\nb,0,0\nc,,1\n",
        ["2: offset -1 is too small", "3: size 0 is too small", "4: offset '' is"],
    ),
]


@pytest.mark.parametrize(("labelled", "text", "faults"), BAD)
def test_bad_lines_are_listed_with_their_numbers(write, labelled, text, faults):
    with pytest.raises(ListError) as caught:
        read_list(write(text), "/some/root" if "/v/" in text else ".", labelled, 8 if labelled else None)
    message = str(caught.value)
    for fault in faults:
        assert fault in message
    lines = [fault for fault in faults if fault[:4] == "line" or fault[0].isdigit()]
    assert message.count("line ") - message.count("already in line ") == len(lines)


def test_the_first_ten_bad_lines_are_reported(write):
    with pytest.raises(ListError) as caught:
        read_list(write("".join(f"{i}.mp4 {i % 2 * 9}\n" for i in range(50))), labelled=True, classes=2)
    message = str(caught.value)
    assert "list.txt: 25 bad lines; line 2: label 9 is outside 0..1; line 4: " in message
    assert "line 20: " in message
    assert "line 22" not in message


def test_faults_of_a_whole_list(write, tmp_path):
    for text, message in {
        "": "list.txt: the list is empty",
        "\n# nothing\n": "the list is empty",
        "path,label\n": "the list is empty",
        "path,size\na,1\n": "one of the columns offset and size needs the other",
        "path,name\na,1\n": "has no column 'label'",
        'path,label\na,1\n"b,1\nc,1\n': r"line 3: .*quotation mark",
    }.items():
        with pytest.raises(ListError, match=message):
            read_list(write(text), labelled="size" not in text)
    with pytest.raises(ListError, match=r"there is no list file .*none\.txt"):
        read_list("none.txt", tmp_path)


def test_lists_of_absolute_paths_need_the_root_of_the_file_system(write, tmp_path):
    file = write("/data/a.mp4 0 -1\n")
    assert rows(read_list(file, "/"), "path") == [("data/a.mp4",)]
    with pytest.raises(
        ListError, match=r"'/data/a\.mp4' is outside the root /videos. For lists of absolute paths, set root: /"
    ):
        read_list(file, "/videos")
    with pytest.raises(ListError, match=r"is absolute; expected a path relative to the root /data"):
        read_list(file, "/data")


def test_the_majority_decides_whether_labels_are_numbers(write):
    named = write("path,label\na,cat\nb,dog\nc,7\n", "names.csv")
    assert read_list(named, labelled=True).classes == ("7", "cat", "dog")
    assert list(read_list(named, labelled=True, classes=["dog", "7", "cat"]).table["label"]) == [2, 0, 1]
    with pytest.raises(
        ListError, match=r"line 2: there is no class 'cat' \(did you mean 'cart'\?\); line 4: there is no class '7'$"
    ):
        read_list(named, labelled=True, classes=["cart", "dog"])
    with pytest.raises(ListError, match=r"has 3 classes, but data\.lists\.classes is 4"):
        read_list(named, labelled=True, classes=4)
    numbered = write("path,label\na,1\nb,0\n", "numbers.csv")
    assert list(read_list(numbered, labelled=True, classes=["x", "y"]).table["label"]) == [1, 0], "numbers index the names"
    by_name = read_list(numbered, labelled=True, classes=["1", "0", "12"])
    assert list(by_name.table["label"]) == [0, 1], "class names that are numbers"
    with pytest.raises(ListError, match="line 1: label 9999999999 is outside"):
        read_list(write("a 9999999999\n"), labelled=True)


def test_folders(tmp_path):
    touch(
        tmp_path,
        "data/10/b.MP4",
        "data/10/deep/a.webm",
        "data/9/c d.avi",
        "data/9/notes.txt",
        "data/9/.hidden.mp4",
        "data/.x/y.mp4",
    )
    touch(tmp_path, "elsewhere/z.mp4")
    (tmp_path / "data/9/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/9/loop").symlink_to(tmp_path / "data")
    videos = read_list("data", tmp_path, labelled=True)
    assert rows(videos, "path", "label", "line", "total") == [
        ("data/10/b.MP4", 0, 0, -1),
        ("data/10/deep/a.webm", 0, 0, -1),
        ("data/9/c d.avi", 1, 0, -1),
    ]
    assert videos.classes == ("10", "9"), "folder names stay names"
    assert videos.root == tmp_path
    assert rows(read_list(".", tmp_path / "data"), "path")[0] == ("10/b.MP4",)
    outside = read_list(tmp_path / "data", tmp_path / "elsewhere", labelled=True)
    assert (outside.root, outside.table["path"][0]) == (tmp_path / "data", "10/b.MP4")
    assert outside.classes == videos.classes
    with pytest.raises(ListError, match=r"elsewhere has 1 file that must be in a folder of a class: z\.mp4"):
        read_list("elsewhere", tmp_path, labelled=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ListError, match=r"no video files .*\.mp4.* below .*empty"):
        read_list("empty", tmp_path)


def test_globs(tmp_path):
    touch(tmp_path, "v/run/b.avi", "v/run/a.avi", "v/jump/c.avi", "v/jump/c.mp4", "v/jump/.d.avi", "v/deep/er/e.avi")
    (tmp_path / "v/jump/loop").symlink_to(tmp_path / "v")
    videos = read_list("v/*/*.avi", tmp_path, labelled=True)
    assert rows(videos, "path", "label") == [("v/jump/c.avi", 0), ("v/run/a.avi", 1), ("v/run/b.avi", 1)]
    assert videos.classes == ("jump", "run")
    everything = read_list("**/*.avi", tmp_path, labelled=True)
    assert everything.classes == ("er", "jump", "run")
    assert len(everything) == 4
    assert rows(read_list(f"{tmp_path}/v/r*/*", tmp_path / "other"), "path") == [("run/a.avi",), ("run/b.avi",)]
    touch(tmp_path, "a[1].txt")
    (tmp_path / "a[1].txt").write_text("x.mp4\n")
    assert rows(read_list("a[1].txt", tmp_path), "path") == [("x.mp4",)], "a file of that name has priority"
    with pytest.raises(ListError, match=r"no files match .*\*\.mkv"):
        read_list("*/*.mkv", tmp_path)
    with pytest.raises(ListError, match=r"a\*\*b is not a valid pattern of paths|no files match"):
        read_list("a**b", tmp_path)


def test_parquet(tmp_path):
    def write_table(**columns: list) -> None:
        pd.DataFrame(columns).to_parquet(tmp_path / "list.bin")  # detected by content, not by name

    write_table(Path=["a", "b"], label=["x", "y"], frames=[3.0, 4.0])
    videos = read_list("list.bin", tmp_path, labelled=True)
    assert rows(videos, "path", "label", "frames", "line") == [("a", 0, 3, 1), ("b", 1, 4, 2)]
    write_table(path=["a", None], label=[1, None])
    with pytest.raises(ListError, match="1 bad line; line 2: the path is empty"):
        read_list("list.bin", tmp_path, labelled=True)
    write_table(file=["a"])
    with pytest.raises(ListError, match="has no column 'path'; its columns are file"):
        read_list("list.bin", tmp_path)
    (tmp_path / "list.bin").write_bytes(b"PAR1....PAR1")
    with pytest.raises(ListError, match=r"list\.bin cannot be read as a Parquet file"):
        read_list("list.bin", tmp_path)


def test_lists_are_read_without_torch():
    """So tools that check lists start quickly."""
    code = "import sys, vmae_lab.data.video_lists; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_splits_share_the_classes_of_the_train_list(write, tmp_path):
    write("path,label\na.mp4,walk\nb.mp4,jump\nc.mp4,run\n", "train.csv")
    write("path,label\nd.mp4,walk\n", "val.csv")
    write("path,label\ne.mp4,wlak\n", "test.csv")
    settings = ListSettings(root=str(tmp_path), train="train.csv", validation="val.csv", test="test.csv")
    assert (settings.class_names, settings.class_count) == (("jump", "run", "walk"), 3)
    assert rows(read_split(settings, "validation"), "path", "label") == [("d.mp4", 2)]
    assert read_split(settings, "validation").classes == read_split(settings, "train").classes == settings.class_names
    with pytest.raises(ListError, match=r"data\.lists\.test: .*test\.csv: 1 bad line; .*'wlak' \(did you mean 'walk'\?\)"):
        read_split(settings, "test")
    with pytest.raises(ListError, match=r"data\.lists\.test is not set.*data\.lists\.hold_out"):
        read_split(ListSettings(root=str(tmp_path), train="train.csv"), "test")
    write("path,label\na.mp4,walk\nb.mp4,fly\n", "train.csv")
    assert settings.class_names == ("fly", "walk"), "a changed list is read again"
    assert settings.class_count == 2


def test_the_number_of_classes_without_a_list(tmp_path):
    given = ListSettings(root=str(tmp_path), train="later.txt", classes=3)
    assert (given.class_count, given.class_names) == (3, ("0", "1", "2"))
    with pytest.raises(ListError, match=r"there is no .*later\.txt, .*set lists\.classes"):
        _ = ListSettings(root=str(tmp_path), train="later.txt").class_count
    with pytest.raises(ListError, match=r"data\.lists\.train: there is no list file .*later\.txt"):
        read_split(given, "train")


def test_pretraining_sources(write, tmp_path):
    write("a 1 9\n", "one.txt")
    write("b 0 -1\n", "two.txt")
    write("c.mp4 1\nd.mp4 0\n", "train.txt")
    sources = {"x": {"list": "one.txt", "frame_pattern": "{:06}.png"}, "y": {"list": "two.txt", "root": "/y", "stride": 2}}
    both = ListSettings(
        root=str(tmp_path),
        pretrain=sources | {"y": {**sources["y"], "list": str(tmp_path / "two.txt")}},
        frame_pattern="f{}.jpg",
    )
    assert both.pretrain_sources == {
        "x": SourceSettings(list="one.txt", root=str(tmp_path), frame_pattern="{:06}.png"),
        "y": SourceSettings(list=str(tmp_path / "two.txt"), root="/y", stride=2, frame_pattern="f{}.jpg"),
    }
    lists = read_pretrain(both)
    assert {name: (str(videos.root), *rows(videos, "path", "total")) for name, videos in lists.items()} == {
        "x": (str(tmp_path), ("a", 9)),
        "y": ("/y", ("b", -1)),
    }
    single = ListSettings(root=str(tmp_path), pretrain="one.txt")
    assert single.pretrain_sources == {"lists": SourceSettings(list="one.txt", root=str(tmp_path))}
    train = read_pretrain(ListSettings(root=str(tmp_path), train="train.txt"))
    assert rows(train["lists"], "path", "label") == [("c.mp4", -1), ("d.mp4", -1)], "the train list without labels"
    with pytest.raises(ListError, match=r"data\.lists\.pretrain\.y: there is no list file"):
        read_pretrain(ListSettings(root=str(tmp_path), pretrain=sources | {"y": {"list": "none.txt"}}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set pretrain"),
        ({"pretrain": {}}, "set pretrain"),
        ({"train": "a", "hold_out": {}, "test": "b"}, "hold_out divides the train list"),
        ({"pretrain": "a", "hold_out": {}}, "hold_out divides the train list"),
        ({"pretrain": {"x": {"list": "a", "weight": 1}, "y": {"list": "b"}}}, "for all sources or for none; y have none"),
        ({"pretrain": {"x": {"list": "a", "weight": 0}}}, "greater than 0"),
        ({"train": "a", "classes": 1}, "greater than or equal to 2"),
        ({"train": "a", "tset": "b"}, "Extra inputs"),
        ({"train": "a", "hold_out": {"validation": 0.5, "test": 0.5}}, "leave no videos to train on"),
        ({"train": "a", "hold_out": {"group": "("}}, "is not a regular expression"),
        ({"train": "a", "frame_pattern": "image.jpg"}, "no field for the frame number"),
        ({"pretrain": {"x": {"list": "a", "frame_pattern": "{x}.jpg"}}}, "does not accept a frame number"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ListSettings(**settings)


def test_a_missing_pretrain_list_can_be_replaced_by_the_train_list(write, tmp_path):
    write("train.txt", "a.mp4 0\n")
    with pytest.raises(ListError, match=r"pretrain\.csv; .* data\.lists\.pretrain to null"):
        read_pretrain(ListSettings(root=str(tmp_path), pretrain="pretrain.csv", train="train.txt"))
    with pytest.raises(ListError, match=r"pretrain\.csv$"):
        read_pretrain(ListSettings(root=str(tmp_path), pretrain="pretrain.csv"))


def test_the_fingerprint_depends_on_the_content_of_lists(write, tmp_path):
    write("a 0\n", "train.txt")
    touch(tmp_path, "folder/x/a.mp4")

    def prints(**change):
        return ListSettings(**({"root": str(tmp_path), "train": "train.txt", "pretrain": "folder"} | change)).fingerprint

    seen = [prints()]
    assert prints() == prints(frame_pattern="{}.jpg", classes=2) == seen[0], "settings of reading are not part of it"
    write("a 1\n", "train.txt")
    seen.append(prints())
    touch(tmp_path, "folder/x/b.mp4")
    seen.append(prints())
    (tmp_path / "folder/x/b.mp4").write_bytes(b"longer")
    seen.append(prints())
    (tmp_path / "folder/notes.txt").write_text("not a video")
    assert prints() == seen[-1]
    seen += [prints(pretrain="later.txt"), prints(pretrain="sooner.txt"), prints(pretrain="*.none"), prints(test="train.txt")]
    assert len(set(seen)) == len(seen)


def held_out(write, names, **hold_out):
    write("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)), "train.txt")
    settings = ListSettings(root=str(write("", "x").parent), train="train.txt", hold_out=HoldOut(**hold_out))
    return {split: set(read_split(settings, split).table["path"]) for split in ("train", "validation", "test")}


def test_held_out_splits_do_not_change_when_the_list_grows(write):
    names = [f"{i}.mp4" for i in range(2000)]
    small, large = held_out(write, names[:1000]), held_out(write, names[::-1])
    assert sum(map(len, large.values())) == len(set.union(*large.values())) == 2000
    for split, share in {"train": 0.7, "validation": 0.15, "test": 0.15}.items():
        assert small[split] == large[split] & set(names[:1000])
        assert len(large[split]) == pytest.approx(2000 * share, abs=80)
    wider = held_out(write, names, validation=0.4)
    assert wider["test"] == large["test"], "the test set does not depend on the validation share"


def test_groups_are_not_divided(write):
    names = [f"scene{i:02d}/clip{j}.mp4" for i in range(60) for j in range(6)]
    for group in (r"(scene\d+)/", r"scene\d+", r"(scene\d+)/(clip\d)"):
        splits = held_out(write, names, group=group)
        scenes = Counter(scene for paths in splits.values() for scene in {path.split("/")[0] for path in paths})
        assert len(scenes) == 60
        assert set(scenes.values()) == {1}, "no scene is in two splits"
        assert all(len(paths) % 6 == 0 and paths for paths in splits.values())
    with pytest.raises(ListError, match=r"train\.txt: 1 bad line; line 361: 'other\.mp4' does not match hold_out\.group"):
        held_out(write, [*names, "other.mp4"], group=r"scene\d+")


def test_empty_held_out_splits_are_refused_and_missing_classes_give_a_warning(write, tmp_path):
    with pytest.raises(ListError, match=r"data\.lists\.\w+: hold_out leaves the \w+ split empty \(6 videos"):
        held_out(write, [f"scene1/{i}.mp4" for i in range(6)], group="scene1")
    with pytest.raises(ListError, match="hold_out leaves the test split empty"):
        held_out(write, [f"{i}.mp4" for i in range(100)], test=0)
    write("".join(f"{i}.mp4 {int(i == 0)}\n" for i in range(100)), "train.txt")
    settings = ListSettings(root=str(tmp_path), train="train.txt", hold_out=HoldOut())
    where = next(split for split in ("train", "validation", "test") if "0.mp4" in held_in(settings, split))
    other = "validation" if where != "validation" else "test"
    with pytest.warns(UserWarning, match=f"hold_out leaves 1 class without a video in {other}: 1"):
        read_split(settings, other)


def held_in(settings, split):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return set(read_split(settings, split).table["path"])


def test_pretraining_on_the_train_list_excludes_held_out_videos(write, tmp_path):
    held_out(write, [f"{i}.mp4" for i in range(200)])
    settings = ListSettings(root=str(tmp_path), train="train.txt", hold_out=HoldOut())
    assert list(read_pretrain(settings)["lists"].table["path"]) == list(read_split(settings, "train").table["path"])
    assert len(read_split(settings, "train")) < 200
