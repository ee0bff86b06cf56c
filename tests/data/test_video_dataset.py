"""Datasets of listed videos: several sources in one stream, checked lists, and tar shards."""

import json
import tarfile
from pathlib import Path

import av
import made_videos
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from vmae_lab.cli import main
from vmae_lab.data import check
from vmae_lab.data.check import CHECKED, FAILURES, JOURNAL, REPORT, check_list
from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.decoding import VideoError, VideoSettings, pool
from vmae_lab.data.frame_sampling import Dense, Everything
from vmae_lab.data.shards import pack
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import ListError, ListSettings, read_list
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments import plan_notebook
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)


def write_video(path: Path, frames: int, level: int = 0) -> None:
    """Write a video whose frame t is gray of level `level + 4 t`, so that a frame shows its video and number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for t in range(frames):
            picture = np.full((32, 48, 3), level + 4 * t, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def videos(tmp_path) -> Path:
    """Two classes of three videos, one of them broken, and a folder of frames."""
    root = tmp_path / "videos"
    for number, name in enumerate(("run/a.mp4", "run/b.mp4", "walk/c.mkv", "walk/d.mp4", "walk/e.mp4")):
        write_video(root / name, 12, 20 * number)
    (root / "run" / "broken.mp4").write_text("<html>not found</html>")
    (root / "frames").mkdir()
    for number in range(1, 9):
        Image.fromarray(np.full((32, 48, 3), 20 * number, dtype=np.uint8)).save(root / "frames" / f"img_{number:05d}.jpg")
    return root


def levels(video: torch.Tensor) -> list[int]:
    """Return the gray level of each frame, rounded to a multiple of four."""
    return [round(float(frame.float().mean()) / 4) * 4 for frame in video.transpose(0, 1)]


def test_sources_of_several_kinds_are_one_stream(videos):
    (videos / "frames.txt").write_text("frames 1 8\n")
    (videos / "files.txt").write_text("".join(f"walk/{name} 0 -1\n" for name in ("c.mkv", "d.mp4", "e.mp4")))
    sources = {"pictures": {"list": "frames.txt", "stride": 2, "weight": 3}, "files": {"list": "files.txt", "weight": 1}}
    data = DataSettings(lists=ListSettings(root=str(videos), pretrain=sources, classes=2), stride=3, crop_scales=[1.0])
    clips = load_clips(data, "pretrain")
    assert list(clips.sources) == ["pictures", "files", "files", "files"]
    assert levels(clips.video(0, Dense(4, 2, 0.0))) == [20, 60, 100, 140]
    assert levels(clips.video(3, Dense(4, 3, 0.0))) == [80, 92, 104, 116]
    settings = PretrainSettings(steps=10, batch_size=4, lr=1e-3)
    task = PretrainTask(MODEL, MaskSettings(encoder_ratio=0.75), settings, data, clips, seed=0)
    assert task.samples_by_source() == {"pictures": 30, "files": 10}, "weights are shares"
    for step in range(3):
        for video in task.batch(step, range(4))["video"]:
            gap = np.diff([float(frame.float().mean()) for frame in video.transpose(0, 1)]).mean()
            assert min(abs(gap - 40), abs(gap - 12)) < 2, "each source has its stride"
    alone = load_clips(data.model_copy(update={"pretrain_sources": ("files",)}), "pretrain", ("files",))
    assert len(alone) == 3
    with pytest.raises(ValueError, match=r"\['web'\] are not in data.lists.pretrain: pictures, files"):
        DataSettings(lists=data.lists, pretrain_sources=["web"])


def test_a_check_finds_broken_videos_and_is_not_repeated(videos, tmp_path, monkeypatch, capsys):
    listed = read_list(".", videos, labelled=True)
    out = tmp_path / "check"
    table = check_list(listed, VideoSettings(), out, processes=2)
    status = dict(zip(table.path, table.status, strict=True))
    assert status == {path: "failed" if "broken" in path else "ok" for path in status}
    assert len(status) == 6
    assert set(table.frames) == {12, 0}
    assert "a web page" in (out / FAILURES).read_text()
    assert "5 ok, 0 damaged, 1 unreadable" in (out / REPORT).read_text()
    checked = read_list(out / CHECKED, videos, labelled=True)
    assert len(checked) == 5
    assert checked.classes == ("run", "walk")
    assert dict(zip(checked.table.path, checked.table.label, strict=True))["walk/c.mkv"] == 1
    files = [clips_of({"again": (checked, "")}, VideoSettings()).file(row) for row in range(5)]
    assert [(file.decoder, file.frames) for file in files] == list(
        zip(checked.table.decoder, checked.table.frames, strict=True)
    )
    assert {file.frames for file in files} == {12}
    assert all(file.bytes == Path(file.path).stat().st_size for file in files), (
        "the size shows whether the check is still valid"
    )
    write_video(videos / "run" / "broken.mp4", 5)  # repaired: only this file is checked again
    (journal,) = out.glob(f"*-{JOURNAL}")
    journal.write_text(journal.read_text() + '{"key": "cut sho')
    repaired = check_list(listed, VideoSettings(), out)
    assert "5 already checked" in capsys.readouterr().out
    assert set(repaired.status) == {"ok"}
    monkeypatch.setattr(pool, "CHILD", "no.such.module")
    assert set(check_list(listed, VideoSettings(), out).status) == {"ok"}, "all files are valid"


@pytest.mark.slow
def test_fragmented_videos_are_read_from_checked_lists_and_shards(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    made_videos.write_video(root / "decord.mp4", mux={"movflags": "frag_keyframe"}, options={"x264-params": "bframes=0"})
    made_videos.write_video(root / "pyav.mp4", codec="mpeg4", options={"bf": "2"}, mux={"movflags": "frag_keyframe"})
    made_videos.write_video(root / "ten_bit.mp4", pix_fmt="yuv420p10le", mux={"movflags": "dash"})
    listed = read_list(".", root)
    table = check_list(listed, VideoSettings(), tmp_path / "check")
    assert table.set_index("path").decoder.to_dict() == {
        "decord.mp4": "decord",
        "pyav.mp4": "pyav_seek",
        "ten_bit.mp4": "pyav_seek",
    }
    shards = tmp_path / "shards"
    for videos in (
        listed,
        read_list(tmp_path / "check" / CHECKED, root),
        read_list(pack(listed, shards), shards),
    ):
        clips = clips_of({"all": (videos, "")}, VideoSettings())
        for row in range(3):
            frames = clips.video(row, Everything()).permute(1, 2, 3, 0).numpy()
            assert made_videos.shown(frames) == list(range(40)), clips.name(row)


def test_checks_of_an_earlier_version_are_repeated(videos, tmp_path, monkeypatch, capsys):
    listed, out = read_list(".", videos, labelled=True), tmp_path / "check"
    for version, seen in ((check.VERSION - 1, 0), (check.VERSION, 0), (check.VERSION, 6)):
        monkeypatch.setattr(check, "VERSION", version)
        check_list(listed, VideoSettings(), out)
        assert f"{seen} already checked" in capsys.readouterr().out


def test_the_exit_status_of_the_check_command(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", ".", "--root", str(videos), "--labelled", "--processes", "1"]) == 1
    assert "5 ok, 0 damaged, 1 failed" in capsys.readouterr().out
    assert len(read_list(tmp_path / "videos.check" / CHECKED, videos)) == 5, "the name is that of the checked folder"
    capsys.readouterr()
    assert main(["data", "check", ".", "--root", str(videos), "--labelled", "--processes", "1", "--max-pixels", "1000"]) == 1
    assert "0 ok, 0 damaged, 6 failed" in capsys.readouterr().out, "other limits give another result"
    assert main(["data", "check", ".", "--root", str(videos), "--labelled", "--processes", "1"]) == 1
    printed = capsys.readouterr().out
    assert "6 already checked" in printed
    assert "5 ok, 0 damaged, 1 failed" in printed
    assert main(["data", "check", "nowhere.txt"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err


@pytest.mark.slow
def test_shards_give_the_same_samples_as_the_files(videos, tmp_path):
    (videos / "run" / "broken.mp4").unlink()
    listed, out = read_list("*/*.m*", videos, labelled=True), tmp_path / "shards"
    index = pack(listed, out, shard_mib=1)
    assert index.name == "videos.csv"
    packed = read_list(index, out, labelled=True)
    assert packed.classes == listed.classes
    table = pd.read_csv(index).set_index("source")
    files = DataSettings(lists=ListSettings(root=str(videos), train="*/*.m*"))
    shards = DataSettings(lists=ListSettings(root=str(out), train=str(index)))
    from_files, from_shards = load_clips(files, "train"), load_clips(shards, "train")
    for row, source in enumerate(table.index):
        twin = list(listed.table.path).index(source)
        assert torch.equal(from_shards.video(row, Everything()), from_files.video(twin, Everything()))
        assert from_shards.labels[row] == from_files.labels[twin]


def test_shards_are_webdataset_tars_and_are_not_written_again(videos, tmp_path):
    (videos / "run" / "broken.mp4").unlink()
    listed, out = read_list(".", videos, labelled=True), tmp_path / "shards"
    pack(listed, out)
    (shard,) = sorted(out.glob("*.tar"))
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        about = json.load(tar.extractfile(names[1]))
    assert sorted({name.split(".")[0] for name in names}) == [f"{i:09d}" for i in range(5)]
    assert about["class"] in about["source"]
    written = shard.stat().st_mtime_ns, shard.read_bytes()
    pack(listed, out)
    assert (shard.stat().st_mtime_ns, shard.read_bytes()) == written
    (videos / "walk" / "d.mp4").unlink()
    with pytest.raises(VideoError, match="packed from another list"):
        pack(read_list(".", videos, labelled=True), out)
    (videos / "frames.txt").write_text("frames 1 8\n")
    with pytest.raises(ListError, match="folders of frames"):
        pack(read_list("frames.txt", videos), tmp_path / "none")


def test_packing_reports_all_missing_files_at_once(tmp_path, capsys):
    write_video(tmp_path / "3.mp4", 4)
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(12)))
    assert main(["data", "pack", "list.csv", str(tmp_path / "out"), "--root", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "list.csv: 11 bad lines; line 2: " in message
    assert f"line 12: {tmp_path / '10.mp4'}: there is no such file; and 1 more. Set --root to " in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["a.mp4 walk", "a.mp4,walk", "a.mp4, walk"])
def test_a_missing_file_whose_line_ends_with_a_label(tmp_path, line, capsys):
    write_video(tmp_path / "a.mp4", 4)
    (tmp_path / "list.txt").write_text(f"{line}\n")
    words = ["data", "check", "list.txt", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--processes", "1"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert f"  {line}: there is no such file, but there is a.mp4; if 'walk' is its label, add --labelled" in shown
    (tmp_path / "a.mp4").unlink()
    assert main([*words, "--out", str(tmp_path / "again")]) == 1
    assert "label" not in capsys.readouterr().out


def test_a_check_prints_the_first_unreadable_videos(tmp_path, capsys):
    for number in range(12):
        (tmp_path / f"{number:02d}.mp4").write_text("no video")
    assert main(["data", "check", ".", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--processes", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("  ")] == [
        f"  {number:02d}.mp4: not a video but text" for number in range(10)
    ]
    assert "and 2 more" in lines


def test_shards_of_another_list_are_refused(tmp_path):
    """Swapped lines, a changed label and a replaced video do not change the number of videos."""
    for name, frames in (("black.mp4", 4), ("white.mp4", 5)):
        write_video(tmp_path / name, frames, 4 * frames)
    (tmp_path / "list.csv").write_text("path,label\nblack.mp4,dark\nwhite.mp4,bright\n")
    out = tmp_path / "shards"

    def packed() -> pd.DataFrame:
        return pd.read_csv(pack(read_list("list.csv", tmp_path, labelled=True), out)).set_index("source")

    assert packed().label.to_dict() == {"black.mp4": "dark", "white.mp4": "bright"}
    for content in ("white.mp4,bright\nblack.mp4,dark", "black.mp4,bright\nwhite.mp4,dark"):
        (tmp_path / "list.csv").write_text(f"path,label\n{content}\n")
        with pytest.raises(VideoError, match=f"^{out}: .*packed from another list.*use another folder"):
            packed()
    (tmp_path / "list.csv").write_text("path,label\nblack.mp4,dark\nwhite.mp4,bright\n")
    assert len(packed()) == 2
    write_video(tmp_path / "white.mp4", 9, 20)
    with pytest.raises(VideoError, match="or videos have changed since"):
        packed()


def test_additional_shards_of_a_longer_list_are_refused(tmp_path):
    """The index would not have them, but WebDataset readers would stream them."""
    write_video(tmp_path / "a.mp4", 4)
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    out = tmp_path / "shards"
    out.mkdir()
    for number in range(2):
        (out / f"shard-{number:06d}-of-000002.tar").touch()
    with pytest.raises(VideoError, match=r"shard-000000-of-000002.tar, shard-000001-of-000002.tar\); .*or delete them"):
        pack(read_list("list.csv", tmp_path), out)
    assert len(list(out.iterdir())) == 2, "no file was written"


def test_the_template_for_own_videos_is_valid(tmp_path):
    """Folders are the classes. No video is opened to read the settings."""
    for name in ("run", "walk"):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.mp4").touch()
    template = yaml.safe_load((Path(__file__).parents[2] / "params" / "own.yaml").read_text())
    template["data"]["lists"]["root"] = str(tmp_path)
    recipe = build_recipe({**template, "arms": ["scratch", "running_cell_50"]})
    assert recipe.data.classes == 2
    plan_notebook("ablation_decoder_mask", recipe)
