"""File names of any bytes in any locale: listed, checked, packed, read back, decoded, reported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_videos import write_video

from vmae_lab.cli import main
from vmae_lab.data.check import CHECKED, FAILURES, REPORT
from vmae_lab.data.corrupt_videos import CorruptVideos
from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.decoding import VideoError, VideoSettings
from vmae_lab.data.frame_sampling import Everything
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import ListError, ListSettings, read_list
from vmae_lab.evaluation.features import FeatureSettings, extract_features
from vmae_lab.models.sizes import SIZES, ClipShape
from vmae_lab.models.vit import VideoEncoder

LATIN = os.fsdecode(b"caf\xe9 1\\xe9.mp4")  # a Latin-1 name as in old archives, with a real backslash
NAMES = [LATIN, "日本.mp4", "e\u0301.mp4", "two\nlines.mp4", "one\rline.mp4", "a,b \"c\" 'd'.mp4", "#1.mp4", " space .mp4"]
LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii output": {"PYTHONIOENCODING": "ascii"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    video = write_video(folder / "made.mp4", 6).read_bytes()
    for number, name in enumerate(NAMES):
        (folder / "videos" / "xy"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "videos" / "xy"[number % 2] / name).write_bytes(video)
    return folder / "videos"


def names_in(videos) -> set[str]:
    return {os.path.basename(path) for path in videos.table["path"]}


def test_every_name_is_checked_and_read_back(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", ".", "--root", str(root), "--labelled", "--processes", "1", "--out", "out"]) == 0
    assert f"{len(NAMES)} ok" in capsys.readouterr().out
    checked = read_list(tmp_path / "out" / CHECKED, root, labelled=True)
    assert names_in(checked) == set(NAMES)
    clips = load_clips(DataSettings(lists=ListSettings(root=str(root), train=str(tmp_path / "out" / CHECKED))), "train")
    assert {clips.video(row, Everything()).shape[1] for row in range(len(clips))} == {6}
    table = pd.read_csv(tmp_path / "out" / CHECKED)
    assert set(table["path"][table["path_escaped"] == 1]) == {r"x/caf\xe9 1\\xe9.mp4"}, "escaped paths are marked"


def test_every_name_is_packed_and_read_back(root, tmp_path):
    assert main(["data", "pack", ".", str(tmp_path / "shards"), "--root", str(root)]) == 0
    packed = clips_of({"packed": (read_list("videos.csv", tmp_path / "shards"), "")}, VideoSettings())
    assert {packed.video(row, Everything()).shape[1] for row in range(len(NAMES))} == {6}


def test_names_of_clips_are_kept_and_shown_as_text(root):
    clips = clips_of({"names": (read_list("x", root), "")}, VideoSettings())
    assert {os.path.basename(clips.file(row).path) for row in range(len(clips))} == set(NAMES[::2])
    shown = [clips.name(row) for row in range(len(clips))]
    pd.DataFrame({"path": shown}).to_parquet(root.parent / "predictions.parquet")
    assert r"caf\xe9 1\xe9.mp4" in {os.path.basename(name) for name in shown}
    assert len(clips.subset([1])) == 1


def test_features_of_every_name(root, tmp_path):
    encoder = VideoEncoder(SIZES["micro"], ClipShape(frames=4, side=16, tubelet=2, patch=8))
    clips = clips_of({"names": (read_list(".", root), "")}, VideoSettings())
    for _ in range(2):
        done = extract_features(encoder, clips, tmp_path / "features", FeatureSettings(), progress=False)
        assert not done.failed
    windows = pd.read_csv(tmp_path / "features" / "windows.csv")
    assert windows["path"].nunique() == windows["file"].nunique() == len(NAMES)
    for file in windows["file"]:
        assert np.load(tmp_path / "features" / file).ndim == 2


def test_broken_files_are_reported_by_name(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / LATIN).write_bytes(b"<html>")
    assert main(["data", "check", "videos", "--root", str(tmp_path), "--processes", "1", "--out", str(tmp_path / "out")]) == 1
    for name in (FAILURES, REPORT):
        assert r"caf\xe9" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    assert names_in(read_list(tmp_path / "out" / FAILURES, tmp_path)) == {LATIN}
    corrupt_videos = CorruptVideos(tmp_path / "quarantine.csv")
    corrupt_videos.add(0, VideoError(f"/{LATIN}", "broken"))
    assert pd.read_csv(tmp_path / "quarantine.csv").path.tolist() == [r"/caf\xe9 1\xe9.mp4"]
    str(VideoError(LATIN, LATIN)).encode()
    with pytest.raises(ListError) as caught:
        read_list(LATIN.replace(".mp4", ".txt"), tmp_path)
    assert r"caf\xe9" in str(caught.value).encode().decode()


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES)
def test_names_are_the_same_in_every_locale(root, tmp_path, locale):
    """Lists are UTF-8 in every locale, and file system calls get the same bytes."""
    (tmp_path / "list.txt").write_text("y/日本.mp4\nx/e\u0301.mp4\n", encoding="utf-8")
    listed = {str(tmp_path / "list.txt"): 2, "y/日本.mp4": 1, ".": len(NAMES)}
    code = "import sys; from vmae_lab.cli import main; sys.exit([main(x.split('|')) for x in sys.argv[1:]] != [0, 0, 0, 2])"
    calls = [f"data|check|{folder}|--root|{root}|--processes|1|--out|{tmp_path}/ö{count}" for folder, count in listed.items()]
    done = subprocess.run(
        [sys.executable, "-c", code, *calls, "data|check|nö.txt"], env={**os.environ, **LOCALES[locale]},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    for count in listed.values():
        assert f"{count} ok".encode() in done.stdout
        checked = read_list(tmp_path / f"ö{count}" / CHECKED, root)
        assert len(checked) == count
        assert names_in(checked) <= set(NAMES)
