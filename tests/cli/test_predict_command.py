"""`vmae-lab predict`: tables, files, and mistakes as one message each."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_videos import drawn, write_video
from PIL import Image

from vmae_lab.cli import main
from vmae_lab.data.decoding import VideoFile, VideoSettings
from vmae_lab.data.decoding.pool import Decoders
from vmae_lab.data.frame_sampling import Exactly
from vmae_lab.data.transforms import squash
from vmae_lab.evaluation.multi_view import cut_views, mean_probabilities
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import PREDICTIONS, finetune_stage, views_stage
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.seeding import seeded

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
NAMES = ("wave", "clap, twice", "100")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, two videos, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("made")
    with seeded(0, "classifier"):
        model = VideoClassifier(MODEL.dimensions, MODEL.clip, 3, init_scale=1.0)
    model.class_names, model.stride = NAMES, 2
    model.save_pretrained(folder / "model")
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "a.mp4", 60)
    write_video(folder / "videos" / "b.avi", 23, codec="mpeg4")
    (folder / "bad.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(400))
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """An empty current folder with links to what was made."""
    for entry in made.iterdir():
        (shutil.copytree if entry.is_dir() else shutil.copy)(entry, tmp_path / entry.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_on_the_screen_and_a_file(here, capsys):
    assert main(["predict", "model", "videos", "--clips", "2", "--top", "2", "--out", "out/results.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["video", "rank", "class", "probability"]
    assert lines[2].split()[:2] == ["videos/a.mp4", "1"]
    table = pd.read_csv("out/results.csv", dtype={"class": str, "probability": str})
    assert table.columns.tolist() == ["video", "rank", "label", "class", "probability"]
    assert table.video.tolist() == ["videos/a.mp4"] * 2 + ["videos/b.avi"] * 2
    assert [NAMES[label] for label in table.label] == table["class"].tolist()
    assert main(["predict", "model", "videos", "--clips", "2", "--top", "2", "--out", "results.json"]) == 0
    results = json.loads(Path("results.json").read_text())
    assert [result["video"] for result in results] == ["videos/a.mp4", "videos/b.avi"]
    found = [prediction["probability"] for result in results for prediction in result["predictions"]]
    assert found == table.probability.map(float).tolist(), "to the last bit"


def test_unreadable_and_missing_videos_are_named_and_the_others_predicted(here, capsys):
    Path("half.mp4").write_bytes(Path("videos/a.mp4").read_bytes()[:900])
    videos = ["bad.mp4", "videos/a.mp4", "missing.mp4", "half.mp4"]
    words = ["predict", "model", *videos, "--clips", "1", "--out", "results.json"]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "videos/a.mp4" in shown.out
    errors = [line for line in shown.err.splitlines() if line.startswith("vmae-lab")]  # without the progress
    assert [line.startswith("vmae-lab: cannot read ") for line in errors] == [True, True, True]
    assert "bad.mp4" in errors[0]
    assert "missing.mp4: there is no such file" in errors[1]
    assert "half.mp4: it is incomplete" in errors[2]
    results = json.loads(Path("results.json").read_text())
    assert [(result["video"], "error" in result) for result in results] == [
        ("videos/a.mp4", False),
        ("bad.mp4", True),
        ("missing.mp4", True),
        ("half.mp4", True),
    ]


def test_names_of_a_file_replace_those_of_the_model(here, capsys):
    Path("names.txt").write_text("eins\nzwei\ndrei\n")
    assert main(["predict", "model", "videos/a.mp4", "--names", "names.txt", "--clips", "1"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("eins", "zwei", "drei"))
    assert "wave" not in shown


def test_a_list_of_videos_with_labels(here, capsys):
    Path("list.csv").write_text("path,label\nvideos/a.mp4,clap\nvideos/b.avi,wave\n")
    assert main(["predict", "model", "list.csv", "--clips", "1", "--top", "1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["videos/a.mp4", "videos/b.avi"]


def test_the_same_path_can_be_several_videos(here, capsys):
    """Two parts of a folder of frames."""
    Path("frames").mkdir()
    for number in range(1, 13):
        Image.fromarray(drawn(number)).save(f"frames/img_{number:05d}.jpg")
    Path("list.txt").write_text("frames 1 8\nframes 5 8\n")
    assert main(["predict", "model", "list.txt", "--clips", "1", "--top", "1", "--out", "results.csv"]) == 0
    assert pd.read_csv("results.csv").video.tolist() == ["frames", "frames"]
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_timeline_is_a_table_and_a_figure(here, capsys):
    assert main(["predict", "model", "videos/a.mp4", "--along", "0.4", "--crops", "1", "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "videos/a.mp4: 6 windows"
    assert lines[1].split() == ["start", "end", "class", "mean", "probability"]
    table = pd.read_csv("timeline.csv")
    assert table.start_s.tolist() == pytest.approx([0.4 * window for window in range(6)])
    assert table.end_s.tolist() == pytest.approx([0.4 * window + 7 / 25 for window in range(6)])
    assert Path("timeline.png").read_bytes()[:4] == b"\x89PNG"


def test_files_that_are_replaced_are_named(here, capsys):
    """The table and the figure of an earlier video have the same names."""
    words = ["--along", "1", "--crops", "1"]
    note = " (replaces the earlier file; --out sets another name)"
    for video, expected in (("videos/a.mp4", ""), ("videos/b.avi", note)):
        assert main(["predict", "model", video, *words]) == 0
        assert capsys.readouterr().out.splitlines()[-2:] == [
            f"figure: timeline.png{expected}",
            f"results: timeline.csv{expected}",
        ]


def test_each_of_several_timelines_has_its_figure(here, capsys):
    assert main(["predict", "model", "videos", "bad.mp4", "--along", "0.5", "--crops", "1", "--out", "out/t.json"]) == 1
    assert "cannot read" in capsys.readouterr().err
    results = json.loads(Path("out/t.json").read_text())
    assert [len(result.get("windows", ())) for result in results] == [5, 2, 0]
    assert results[0]["windows"][1]["predictions"][0]["class"] in NAMES
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["t-1-a.png", "t-2-b.png"]


@pytest.mark.parametrize(("command", "suffixes"), [("predict", (".csv", ".json")), ("reconstruct", (".gif", ".mp4"))])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "videos/a.mp4"], "there is no checkpoint nowhere"),
        (["model", "https://example.org/a.mp4"], "https://example.org/a.mp4: it is a web address"),
        (["model", "videos/a.mp4", "--device", "gpu"], "device 'gpu' cannot be used here"),
        (["model", "videos/a.mp4", "--out", "taken{0}"], "taken{0} is a folder"),
        (["model", "videos/a.mp4", "--out", "bad.mp4/results{0}"], "bad.mp4: there is a file of that name"),
        (["model", "videos/a.mp4", "--out", "results.xlsx"], "results.xlsx must end in {0} or {1}"),
    ],
)
def test_a_mistake_with_each_command_is_one_message(command, suffixes, words, message, here, capsys):
    Path(f"taken{suffixes[0]}").mkdir()
    if command == "reconstruct":
        VideoMAE(MODEL.dimensions, MODEL.clip).save_pretrained("model")
    before = sorted(Path().rglob("*"))
    assert main([command, *(word.format(*suffixes) for word in words)]) == 2
    shown = capsys.readouterr()
    assert message.format(*suffixes) in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out
    assert sorted(Path().rglob("*")) == before, "no file is written"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pre-trained", "videos"], "pre-trained has no class head"),
        (["model", "no_folder"], "there is no list file or folder"),
        (["model", "videos", "--names", "two.txt"], "two.txt has 2 lines, but model has a head for 3 classes"),
        (["model", "videos", "--names", "none.txt"], "none.txt: No such file"),
        (["model", "videos", "--names", "videos"], "videos: Is a directory"),
        (["model", "videos", "--top", "0"], "--top"),
        (["model", "videos", "--along", "0"], "--along"),
        (["model", "videos", "--along", "inf"], "--along"),
        (["model", "videos", "--device", "meta"], "device 'meta' cannot be used here"),
        (["model", "https://example.org/watch?v=a"], "it is a web address"),
        (["model", "empty"], "no video files"),
        (["model", "videos", "--frames", "3"], "a clip of 3 frames x 16"),
        (["flat", "videos", "--side", "32"], "(readout 'flat'), not for 128"),
        (["gray", "videos"], "gray has channels 1; this package supports only 3"),
        (["detector", "videos"], "detector is an action detector"),
        (["empty", "videos"], "empty must have one weights file"),
        (["videos/a.mp4", "videos"], "a.mp4 is not a weights file"),
        (["model", "videos", "--along", "1", "--sampling", "sparse"], "add --sampling dense"),
    ],
)
def test_a_mistake_is_one_message(words, message, here, capsys):
    Path("two.txt").write_text("one\ntwo\n")
    Path("empty").mkdir()
    VideoMAE(MODEL.dimensions, MODEL.clip).save_pretrained("pre-trained")
    VideoClassifier(MODEL.dimensions, MODEL.clip, 3, "flat").save_pretrained("flat")
    VideoClassifier(MODEL.dimensions, replace(MODEL.clip, channels=1), 3).save_pretrained("gray")
    ActionDetector(MODEL.dimensions, MODEL.clip, 3).save_pretrained("detector")
    assert main(["predict", *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out


@pytest.mark.slow
def test_predictions_are_those_of_the_views_stage_bit_for_bit(project, smoke, monkeypatch):
    """A classifier that was trained on own videos, evaluated by the stage, and by the command on each bare file."""
    root = project / "own"
    for split, count in (("train", 2), ("test", 2)):
        for number in range(count):
            for label, name in enumerate(("one", "two")):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                write_video(root / split / name / f"{number}.mp4", 30 + 3 * number + 5 * label)
    parameters = {**smoke, "arms": ["recipe"], "data": {"lists": {"root": str(root), "train": "train", "test": "test"}}}
    override = {"evaluate.sources": [], "evaluate.finetune.steps": 2, "evaluate.finetune_labels": None, "data.stride": 3}
    recipe = build_recipe(parameters).with_overrides({**override, "evaluate.probe.labels": None, "evaluate.split": "test"})
    classifier = finetune_stage(recipe, None, 0)
    views = views_stage(recipe, classifier, 0)
    store = RunStore(project / "runs")
    store.complete_all([views], recipe.compute)
    table = pd.read_parquet(store.folder(views) / PREDICTIONS)
    folder = store.folder(classifier)
    assert VideoClassifier.from_pretrained(folder).class_names == ("one", "two")
    monkeypatch.chdir(project)
    settings = recipe.evaluate.views
    words = ["--clips", str(settings.clips), "--crops", str(settings.crops), "--top", "2", "--out", "results.json"]
    assert main(["predict", str(folder), *table.video, *words]) == 0
    results = json.loads(Path("results.json").read_text())
    for row, result in zip(table.itertuples(), results, strict=True):
        probabilities = np.zeros(2)
        for prediction in result["predictions"]:
            probabilities[prediction["label"]] = prediction["probability"]
        assert probabilities.tolist() == list(row.probabilities)


@pytest.fixture(scope="module")
def ten_minutes(made):
    """15,000 frames of 320 x 240: all in memory would take 3.5 GB."""
    part = write_video(made.parent / f"{made.name}-part.mp4", 150, size=(320, 240))
    video = part.with_name(f"{made.name}-long.mp4")
    _repeated(part, video, 100)
    return video


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="memory is read from /proc")
def test_predictions_along_ten_minutes_take_bounded_memory_and_equal_those_of_read_windows(made, ten_minutes, tmp_path):
    words = ["predict", str(made / "model"), str(ten_minutes), "--along", "10", "--crops", "1", "--out", "out.csv"]
    assert _peak_memory(words, tmp_path) < 1.5 * (1 << 20)
    table = pd.read_csv(tmp_path / "out.csv", float_precision="round_trip")
    assert table.start_s.nunique() == 60
    model, decoders = VideoClassifier.from_pretrained(made / "model"), Decoders(VideoSettings(decoder="pyav"))
    for window in (0, 31, 59):
        frames = range(250 * window, 250 * window + 8, 2)  # with the stride of the model
        read = decoders.read(VideoFile(str(ten_minutes)), Exactly(tuple(frames)), 16).frames
        clips = cut_views(torch.from_numpy(read).permute(3, 0, 1, 2), 4, 16, 1)
        expected = sorted(mean_probabilities(model, clips), reverse=True)
        assert table.probability[table.start_s == 10 * window].tolist() == expected
    decoders.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="memory is read from /proc")
def test_features_of_ten_minutes_take_bounded_memory_and_equal_those_of_read_windows(
    made, ten_minutes, tmp_path
):  # fmt: skip
    words = ["features", str(ten_minutes), "--model", str(made / "model"), "--stride", "25", "--out", "out"]
    assert _peak_memory(words, tmp_path) < 1.5 * (1 << 20)
    [file] = (tmp_path / "out").glob("*.npy")
    found = np.load(file)
    assert len(found) == 600
    model = VideoClassifier.from_pretrained(made / "model")
    decoders = Decoders(VideoSettings(decoder="pyav"))
    for window in (0, 40, 300, 599):  # 40 is the first of the second chunk
        frames = range(25 * window, 25 * window + 4)
        read = decoders.read(VideoFile(str(ten_minutes)), Exactly(tuple(frames)), 16).frames
        clip = squash(torch.from_numpy(read).permute(3, 0, 1, 2), 16)[None]
        with torch.no_grad():
            expected = model.head.fc_norm(model.encoder(clip).mean(1))[0]
        np.testing.assert_allclose(found[window], expected.numpy(), atol=1e-5)
    decoders.close()


def _peak_memory(words: list[str], folder: Path) -> int:
    """Run a command and return the largest memory of its process and its decoder together, in KiB."""
    code = f"""
from pathlib import Path
from vmae_lab.cli import main
from vmae_lab.data.decoding.pool import DecoderProcess

def peak(process):  # in KiB. The usage of children would count the fork of this process, before it becomes a decoder
    lines = Path(f"/proc/{{process}}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def close(decoder, closed=DecoderProcess.close):
    peaks.extend([peak(decoder.pid)] if decoder.pid else [])
    closed(decoder)

peaks = []
DecoderProcess.close = close
status = main({words})
print(status, peak("self"), *peaks)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    status, *peaks = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0
    assert len(peaks) == 2, "this process and its decoder"
    print(f"{words[0]}: peak {[peak // 1024 for peak in peaks]} MiB")
    return sum(peaks)


def _repeated(source: Path, target: Path, times: int) -> None:
    """The packets of a video, several times after one another."""
    import av

    with av.open(str(target), "w") as output:
        stream, shift = None, 0
        for _ in range(times):
            with av.open(str(source)) as video:
                if stream is None:
                    stream = output.add_stream_from_template(video.streams.video[0])
                end = 0
                for packet in video.demux(video=0):
                    if packet.size:
                        end = max(end, packet.pts + packet.duration)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        output.mux(packet)
                shift += end
