"""Lists of folders, globs and single files: links, loops, and files that are not videos."""

import errno
import os
from pathlib import Path

import pytest
from made_videos import write_video

from vmae_lab.cli import main
from vmae_lab.data.check import CHECKED
from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.frame_sampling import Everything
from vmae_lab.data.video_lists import ListError, ListSettings, read_list, read_pretrain, read_split
from vmae_lab.data.video_lists.splits import read_all


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")


def paths(videos) -> list[str]:
    return list(videos.table["path"])


@pytest.fixture
def linked(tmp_path) -> Path:
    """Classes `run` and `walk`. `walk` is a link to a folder outside the root."""
    touch(tmp_path, "videos/run/a.mp4", "disk/walk/b.mp4", "disk/walk/deep/c.mp4")
    (tmp_path / "videos/walk").symlink_to(tmp_path / "disk/walk")
    return tmp_path / "videos"


@pytest.mark.parametrize("pattern", [".", "**/*.mp4"])
def test_a_linked_class_is_reported_or_listed(linked, pattern):
    with pytest.warns(UserWarning, match="1 link skipped: walk; .*follow_links"):
        assert read_list(pattern, linked, labelled=True).classes == ("run",)
    videos = read_list(pattern, linked, labelled=True, follow_links=True)
    assert paths(videos) == ["run/a.mp4", "walk/b.mp4", "walk/deep/c.mp4"]
    assert videos.classes == (("run", "walk") if pattern == "." else ("deep", "run", "walk"))


def test_settings_follow_links_in_every_split(linked):
    """The setting applies to classes, fingerprint and videos."""
    bare = ListSettings(root=str(linked), train=".", validation=".", pretrain=".")
    with pytest.warns(UserWarning, match="link skipped: walk"):
        assert bare.class_names == ("run",)
    follow = ListSettings(**{**bare.model_dump(), "decoding": {"follow_links": True}})
    assert follow.class_names == ("run", "walk")
    assert follow.fingerprint != bare.fingerprint
    lists = [*(read_split(follow, split) for split in ("train", "validation")), *read_pretrain(follow).values()]
    assert {len(videos) for videos in (*lists, *(videos for videos, _ in read_all(follow).values()))} == {3}
    before = follow.fingerprint
    touch(linked.parent, "disk/walk/new.mp4")
    assert follow.fingerprint != before


def test_commands_follow_links(linked, tmp_path, monkeypatch, capsys):
    for name in ("videos/run/a.mp4", "disk/walk/b.mp4", "disk/walk/deep/c.mp4"):
        write_video(tmp_path / name, 4)
    touch(linked, "run/notes.txt", "run/a.srt", "run/b.srt")
    monkeypatch.chdir(tmp_path)
    options = ["--root", "videos", "--labelled", "--follow-links"]
    assert main(["data", "check", ".", *options, "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "3 ok" in printed
    assert "3 files without a video suffix (.srt 2, .txt 1)" in printed
    checked = ListSettings(root="videos", train=str(tmp_path / "videos.check" / CHECKED), decoding={"follow_links": True})
    assert checked.class_names == ("run", "walk")
    clips = load_clips(DataSettings(lists=checked), "train")
    assert clips.video(2, Everything()).shape[1] == 4
    assert main(["data", "pack", ".", "shards", *options]) == 0
    assert read_list("videos.csv", "shards", labelled=True).classes == ("run", "walk")


def test_loops_of_links_end_and_list_each_video_once(tmp_path):
    touch(tmp_path, "v/b/a.mp4", "v/b/c/d.mp4")
    for path, target in {"v/b/loop": "v", "v/a": "v/b", "v/b/c/up": "v/b/c", "v/z": "v/b/c", "v/itself": "v/itself"}.items():
        (tmp_path / path).symlink_to(tmp_path / target)
    (tmp_path / "v/gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "v/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.warns(UserWarning, match="6 links skipped: a, b/c/up, b/loop, gone, itself, z; they are broken, or"):
        videos = read_list("v", tmp_path, follow_links=True)
    assert paths(videos) == ["v/b/a.mp4", "v/b/c/d.mp4", "v/gone.mp4"], (
        "a broken link to a video is listed, and the check reports it"
    )
    with pytest.warns(UserWarning, match="6 links skipped: a, "):
        assert paths(read_list("v", tmp_path)) == paths(videos)


def test_a_linked_parent_adds_new_videos(tmp_path):
    touch(tmp_path, "all/v/a.mp4", "all/w/b.mp4")
    (tmp_path / "all/v/up").symlink_to("..")
    with pytest.warns(UserWarning, match="1 link skipped: up/v"):
        videos = read_list("all/v", tmp_path, follow_links=True)
    assert paths(videos) == ["all/v/a.mp4", "all/v/up/w/b.mp4"]


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "v/a/b.mp4", "v/secret/c.mp4")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for pattern in ("v", "v/**/*.mp4"):
        with pytest.raises(ListError, match=r"cannot read .*v/secret: Permission denied"):
            read_list(pattern, tmp_path)


def test_an_empty_folder_is_reported_with_skipped_files(tmp_path):
    touch(tmp_path, "v/a.mxf", "v/b.mxf", "v/README", "d/x.mp4")
    (tmp_path / "v/link").symlink_to(tmp_path / "d")
    with pytest.raises(ListError, match=r"no video files .* below .*1 link skipped: link; .*3 files .*\(.mxf 2, no suffix 1\)"):
        read_list("v", tmp_path)


def test_glob_patterns_of_any_depth(tmp_path):
    touch(tmp_path, "a.avi", "x/b.avi", "x/y/c.avi", "x/y/d.mp4", "x/.h/e.avi", "z/y/f[1].avi")
    assert paths(read_list("**/*.avi", tmp_path)) == ["a.avi", "x/b.avi", "x/y/c.avi", "z/y/f[1].avi"]
    assert paths(read_list("x/**/*.avi", tmp_path)) == ["x/b.avi", "x/y/c.avi"]
    assert paths(read_list("**/y/*", tmp_path)) == ["x/y/c.avi", "x/y/d.mp4", "z/y/f[1].avi"]
    assert paths(read_list("**/y/f[[]1].avi", tmp_path)) == ["z/y/f[1].avi"]
    for pattern in ("**/*.mkv", "none/**/*.avi"):
        with pytest.raises(ListError, match="no files match"):
            read_list(pattern, tmp_path)


@pytest.mark.parametrize("name", ["one.mp4", "one.MKV", "one"])
def test_a_single_video_is_a_list(tmp_path, name, monkeypatch):
    write_video(tmp_path / "made.mp4", 5)
    (tmp_path / "made.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for location, root in ((name, "."), (name, tmp_path), (tmp_path / name, "/nowhere")):
        videos = read_list(location, root)
        assert (videos.root, paths(videos), set(videos.table["total"])) == (tmp_path, [name], {-1})
    with pytest.raises(ListError, match=f"{name} is a single video without a label; .*path and label"):
        read_list(name, labelled=True)
    clips = load_clips(DataSettings(lists=ListSettings(root=str(tmp_path), pretrain=name, classes=2)), "pretrain")
    assert clips.video(0, Everything()).shape[1] == 5
    assert main(["data", "check", name, "--processes", "1"]) == 0
    assert len(read_list(f"{name}.check/{CHECKED}")) == 1
    assert main(["data", "pack", name, "shards"]) == 0
    assert len(read_list("videos.csv", "shards")) == 1


def test_files_that_are_neither_list_nor_video_are_named(tmp_path):
    for content, message in {
        b"PK\x03\x04\x14\0\0\0\xff": "zip archive",
        b"\x1f\x8b\x08\xff\xff": "gzip archive",
        b"\x00\x01\x02\xff\xfe": "is not a list",
        "a.mp4 0\n".encode("utf-16"): "UTF-16",
        "a.mp4 0\n".encode("utf-16-le"): "UTF-16",
        "a.mp4 0\n".encode("utf-16-be"): "UTF-16",
    }.items():
        (tmp_path / "list.xlsx").write_bytes(content)
        with pytest.raises(ListError, match=rf"list\.xlsx.*{message}"):
            read_list("list.xlsx", tmp_path)
