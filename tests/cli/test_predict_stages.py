"""`vmae-lab predict` with finished detection stages: the segments and boxes of the stage, on bare videos."""

import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made_videos import write_video

from vmae_lab.cli import main
from vmae_lab.cli.predict import OPTIONS_OF, predict
from vmae_lab.data.activitynet import read_predictions
from vmae_lab.data.ava import CORNERS, read_detections, write_person_boxes
from vmae_lab.detection import person_detector
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments.downstream_spatial_detection import ARMS as SPATIAL
from vmae_lab.lab.experiments.downstream_temporal_detection import ARMS as TEMPORAL
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import DETECTIONS, SEGMENTS, detect_stage, initial_stage, localise_stage
from vmae_lab.lab.stages.inputs import load_scenes, load_untrimmed
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.actionformer import ActionFormer, ActionFormerShape
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.models.videomae import VideoMAE

MODEL = ModelSettings(size="micro", frames=8, side=24, patch=4)
SHAPE = ActionFormerShape(width=32, heads=2, embed_layers=1, stem_layers=1, levels=2, head_layers=1, window=5)


def stage(folder: Path, kind: str, settings: dict, **result) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump({"stage": kind, **settings}))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def localiser(smoke, tmp_path, monkeypatch):
    """A current folder with a temporal detector of random weights, its encoder and a video."""
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe({**smoke, "arms": list(TEMPORAL)}, TEMPORAL)
    settings = {"localise": recipe.localise.model_dump(mode="json")}
    torch.manual_seed(0)
    VideoMAE(MODEL.dimensions, MODEL.clip).save_pretrained("runs/initial-0")
    ActionFormer(SHAPE, MODEL.dimensions.width, ["wave", "clap"]).save(Path("runs/localise-0"))
    write_video(Path("a.mp4"), 100)
    return stage(Path("runs/localise-0"), "localise", settings, encoder="initial-0")


@pytest.fixture
def detector(smoke, tmp_path, monkeypatch):
    """A current folder with an action detector of random weights, a video and boxes of people."""
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe({**smoke, "arms": list(SPATIAL)}, SPATIAL)
    settings = {"detect": recipe.detect.model_dump(mode="json"), "model": MODEL.model_dump(mode="json")}
    torch.manual_seed(0)
    model = ActionDetector(MODEL.dimensions, MODEL.clip, 3, init_scale=1.0)
    model.class_names = ("stand", "sit", "run")
    model.save_pretrained("detect-0")
    write_video(Path("a.mp4"), 60)
    boxes = [("a", 1.0, 0.1, 0.1, 0.5, 0.9, 0.95), ("a", 1.0, 0.5, 0.2, 0.9, 0.8, 0.9), ("a", 2.0, 0.2, 0.2, 0.8, 0.8, 0.99)]
    write_person_boxes(Path("persons.csv"), pd.DataFrame(boxes, columns=["video", "timestamp", *CORNERS, "score"]))
    return stage(Path("detect-0"), "detect", settings)


def test_segments_are_printed_and_written(localiser, capsys):
    Path("bad.mp4").write_text("no video")
    assert main(["predict", str(localiser), "a.mp4", "bad.mp4", "--out", "out.json"]) == 1
    shown = capsys.readouterr()
    assert "bad.mp4: not a video but text" in shown.err
    found, failed = json.loads(Path("out.json").read_text())
    assert (found["video"], failed["video"]) == ("a.mp4", "bad.mp4")
    assert f"a.mp4: {len(found['segments'])} segments" in shown.out
    first = found["segments"][0]
    assert 0 <= first["start_s"] < first["end_s"] <= 4
    assert {segment["class"] for segment in found["segments"]} <= {"wave", "clap"}


def test_the_encoder_of_a_detector_that_was_moved_is_asked_for(localiser, capsys):
    Path("runs/initial-0").rename("encoder")
    assert main(["predict", str(localiser), "a.mp4"]) == 2
    assert "add --encoder" in capsys.readouterr().err
    assert main(["predict", str(localiser), "a.mp4", "--encoder", "encoder"]) == 0
    assert pd.read_csv("segments.csv").columns.tolist() == ["video", "start_s", "end_s", "class", "score"]
    other = ModelSettings(size="tiny", frames=8, side=24, patch=4)
    VideoMAE(other.dimensions, other.clip).save_pretrained("other")
    assert main(["predict", str(localiser), "a.mp4", "--encoder", "other"]) == 2
    assert "takes features of width 64, but those of the encoder have 96" in capsys.readouterr().err
    for command in (["features", "a.mp4", "--model"], ["reconstruct"]):
        words = [*command, str(localiser), *(["a.mp4"] if command == ["reconstruct"] else [])]
        assert main(words) == 2
        assert "is a temporal detector" in capsys.readouterr().err
    (localiser / "result.json").unlink()
    assert main(["predict", str(localiser), "a.mp4"]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_the_actions_of_given_people(detector, capsys):
    assert main(["predict", str(detector), "a.mp4", "--persons", "persons.csv", "--top", "2"]) == 0
    table = pd.read_csv("detections.csv")
    assert table.time_s.tolist() == [1, 1, 1, 1, 2, 2]
    assert table.person.tolist() == [1, 1, 2, 2, 1, 1]
    assert [("stand", "sit", "run")[label] for label in table.label] == table["class"].tolist()
    assert (table.score.to_numpy().reshape(3, 2) @ [1, -1] >= 0).all(), "the best class of a person first"
    assert table[CORNERS].iloc[0].tolist() == [0.1, 0.1, 0.5, 0.9], "boxes are not enlarged"
    assert "a.mp4: 6 detections" in capsys.readouterr().out


def test_videos_without_boxes_in_the_file_of_people(detector, capsys):
    """All of them: an error. Some of them: a warning, because the person detector may have found nobody."""
    file = Path("persons.csv")
    write_video(Path("b.mp4"), 30)
    with pytest.warns(UserWarning, match=r"persons\.csv has no boxes for 'b'; names in it: a\."):
        assert main(["predict", str(detector), "a.mp4", "b.mp4", "--persons", str(file)]) == 0
    assert "b.mp4: 0 detections" in capsys.readouterr().out
    file.write_text(file.read_text().replace("a,", "a.mp4,"))
    assert main(["predict", str(detector), "a.mp4", "--persons", str(file)]) == 2
    assert "persons.csv has no boxes for 'a'; names in it: a.mp4. " in capsys.readouterr().err
    file.write_text("")
    assert main(["predict", str(detector), "a.mp4", "--persons", str(file)]) == 2


@pytest.mark.parametrize("option", ["--persons", "--person-weights"])
def test_a_missing_file_is_one_message(detector, option, capsys):
    assert main(["predict", str(detector), "a.mp4", option, "missing"]) == 2
    assert "missing: No such file" in capsys.readouterr().err


VALUES = {"names": "names.txt", "sampling": "dense", "side": "32", "positions": "recompute", "encoder": "x"}
VALUES |= {"persons": "persons.csv", "person_weights": "weights.pth"}


@pytest.mark.parametrize("kind", ["localise", "detect", "finetune"])
@pytest.mark.parametrize("option", sorted({option for options in OPTIONS_OF.values() for option in options}))
def test_an_option_without_effect_for_the_kind_of_model_is_an_error(kind, option, tmp_path, capsys):
    """Before the model is read: the folder has none."""
    folder, flag = stage(tmp_path / "stage", kind, {}), f"--{option.replace('_', '-')}"
    known = {"localise": {"encoder"}, "detect": {"top", "along", "persons", "person_weights"}}
    others = known["localise"] | known["detect"] - {"top", "along"}
    allowed = option in known[kind] if kind in known else option not in others
    if not allowed:
        assert main(["predict", str(folder), "a.mp4", flag, VALUES.get(option, "1")]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert f"{flag} has no effect here: it is for " in message
        assert message.endswith("a classifier" if kind == "finetune" else f"the folder of a {kind} stage")


def test_every_option_of_the_model_is_in_the_table_of_kinds():
    """So a new option needs a decision for each kind of model."""
    of_all = {"context", "model", "videos", "out", "root", "labelled", "follow_links", "frame_pattern", "device"}
    assert set(inspect.signature(predict).parameters) - of_all == {name for names in OPTIONS_OF.values() for name in names}


@pytest.mark.parametrize(("useless", "value"), [("--along", "1"), ("--person-weights", "w.pth")])
def test_options_of_the_person_detector_are_refused_if_boxes_are_given(detector, useless, value, capsys):
    assert main(["predict", str(detector), "a.mp4", "--persons", "persons.csv", useless, value]) == 2
    assert f"{useless} has no effect with --persons" in " ".join(capsys.readouterr().err.split())


def test_people_are_detected_at_equal_times(detector, monkeypatch, capsys):
    class Everybody:
        def __init__(self, weights, device):
            pass

        def __call__(self, frames):
            return [(torch.tensor([[0.0, 0.0, frame.shape[2] / 2, frame.shape[1]]]), torch.tensor([0.9])) for frame in frames]

    monkeypatch.setattr(person_detector, "TorchvisionDetector", Everybody)
    Path("bad.mp4").write_text("no video")
    assert main(["predict", str(detector), "a.mp4", "bad.mp4", "--along", "0.5", "--top", "1"]) == 1
    assert "bad.mp4: not a video but text" in capsys.readouterr().err
    table = pd.read_csv("detections.csv")
    assert table.time_s.tolist() == [0, 0.5, 1, 1.5, 2], "2.4 seconds"
    assert table.x2.tolist() == [0.5] * 5


@pytest.mark.slow
def test_segments_are_those_of_the_stage(smoke, project, monkeypatch):
    recipe = build_recipe({**smoke, "arms": list(TEMPORAL)}, TEMPORAL)
    store, trained = RunStore(project / "runs"), localise_stage(recipe, initial_stage(recipe, 0), 0)
    store.complete_all([trained], recipe.compute)
    videos = load_untrimmed(recipe.localise.videos, "test", recipe.compute)
    clips = videos.clips()
    monkeypatch.chdir(project)
    files = [clips.name(row) for row in range(len(clips))]
    assert main(["predict", str(store.folder(trained)), *files, "--out", "out.json"]) == 0
    expected = read_predictions(store.folder(trained) / SEGMENTS)
    for result in json.loads(Path("out.json").read_text()):
        found, theirs = pd.DataFrame(result["segments"]), expected[expected.video == Path(result["video"]).stem]
        assert len(found) == len(theirs)
        for ours, name in (("start_s", "start"), ("end_s", "end"), ("score", "score")):
            np.testing.assert_allclose(found[ours], theirs[name], atol=1e-4)
        assert found["class"].tolist() == theirs.label.tolist()


@pytest.mark.slow
def test_detections_are_those_of_the_stage(smoke, project, monkeypatch):
    recipe = build_recipe({**smoke, "arms": list(SPATIAL)}, SPATIAL)
    store, trained = RunStore(project / "runs"), detect_stage(recipe, None, 0)
    store.complete(trained, recipe.compute, progress=False)
    scenes = load_scenes(recipe.detect.scenes, "test", recipe.compute)
    assert ActionDetector.from_pretrained(store.folder(trained)).class_names == tuple(scenes.actions.values())
    monkeypatch.chdir(project)
    write_person_boxes(Path("persons.csv"), scenes.persons)
    files = [video.file.path for video in scenes.videos.values()]
    words = ["--persons", "persons.csv", "--top", str(len(scenes.actions)), "--out", "out.csv"]
    assert main(["predict", str(store.folder(trained)), *files, *words]) == 0
    found, expected = pd.read_csv("out.csv"), read_detections(store.folder(trained) / DETECTIONS)
    key = ["video", "timestamp", *CORNERS, "action_id"]
    names = dict(zip(scenes.actions.values(), scenes.actions, strict=True))
    found = found.assign(video=found.video.map(lambda path: Path(path).stem), timestamp=found.time_s)
    found = found.assign(action_id=found["class"].map(names)).round(dict.fromkeys(CORNERS, 6))
    both = found.merge(expected, on=key, suffixes=("", "_stage"))
    assert len(both) == len(found) == len(expected)
    np.testing.assert_allclose(both.score, both.score_stage, atol=1e-5)
