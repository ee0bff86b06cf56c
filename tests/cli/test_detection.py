"""`vmae-lab detect` and `vmae-lab persons` at the smoke scale."""

from pathlib import Path

import pytest
import torch
import yaml

from vmae_lab.cli import main
from vmae_lab.data.ava import read_person_boxes
from vmae_lab.data.motionworld.scenes import SceneWorldSettings, open_scene_world
from vmae_lab.detection import person_detector

SMOKE = Path(__file__).parents[2] / "params" / "smoke.yaml"
SMALL = ["--seed", "0", "-p", "pretrain.steps", "3", "-p", "detect.steps", "2"]


@pytest.mark.slow
def test_an_action_detector_is_trained_and_evaluated(project, capsys):
    for start, kinds in ((["--encoder", "scratch"], {"detect"}), ([], {"detect", "pretrain"})):
        assert main(["detect", str(SMOKE), *SMALL, *start]) == 0
        *_, score, folder = capsys.readouterr().out.splitlines()
        assert score.startswith("seed 0: frame mAP ")
        assert score.endswith("% with true boxes; 4 test key frames")
        assert (Path(folder) / "detections.csv").exists()
        assert {path.name.split("-")[0] for path in (project / "runs").glob("[a-z]*-*")} == kinds


def test_a_recipe_without_scenes_is_refused(project, tmp_path, capsys):
    path = tmp_path / "bare.yaml"
    path.write_text(
        yaml.safe_dump({name: value for name, value in yaml.safe_load(SMOKE.read_text()).items() if name != "detect"})
    )
    for command in (["detect", str(path)], ["persons", str(path), "--out", str(tmp_path / "persons.csv")]):
        assert main(command) == 2
        assert "detect: this section is missing; see params/paper/ava.yaml" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["train", "test"])
def test_wrong_lists_are_reported_before_anything_is_trained(project, tmp_path, capsys, home, wrong):
    """The pre-training that a detector starts from may take days."""
    root = open_scene_world(SceneWorldSettings(side=32, train=2, validation=3, test=1))
    split = {name: {"boxes": f"{name}.csv"} for name in ("train", "validation", "test")}
    split[wrong] = {"boxes": str(tmp_path / "none.csv")}
    recipe = yaml.safe_load(SMOKE.read_text())
    recipe["detect"]["scenes"] = {"lists": {"root": str(root), "actions": "actions.pbtxt", **split}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["detect", str(tmp_path / "own.yaml"), *SMALL]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert not list((project / "runs").glob("[a-z]*-*"))


@pytest.fixture
def sees_one(monkeypatch):
    """Replace torchvision's detector by one that finds a person in the middle of every frame."""

    class Fake:
        def __init__(self, weights, device):
            self.weights = weights

        def __call__(self, frames):
            return [(torch.tensor([[8.0, 8.0, 24.0, 24.0]]), torch.tensor([0.9])) for _ in frames]

    monkeypatch.setattr(person_detector, "TorchvisionDetector", Fake)


def test_boxes_are_written_to_the_file_that_the_recipe_reads(project, tmp_path, capsys, sees_one):
    out = tmp_path / "new" / "folder" / "persons.csv"
    assert main(["persons", str(SMOKE), "--split", "test", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == ["4 boxes in 4 key frames", str(out)]
    assert read_person_boxes(out)[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [[0.25, 0.25, 0.75, 0.75]] * 4


def test_a_file_that_cannot_be_written_is_reported_before_detection(project, tmp_path, capsys, monkeypatch, sees_one):
    monkeypatch.setattr(person_detector, "detect_people", lambda *_: pytest.fail("the work is done for nothing"))
    (tmp_path / "file").touch()
    assert main(["persons", str(SMOKE), "--out", str(tmp_path / "file" / "persons.csv")]) == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


@pytest.mark.slow
def test_lists_may_name_the_file_that_the_command_writes(project, tmp_path, capsys, sees_one, home):
    """AVA's recipe names the file of the person detector. The command that writes it must not require it."""
    root = open_scene_world(SceneWorldSettings(side=32, train=2, validation=3, test=1))
    split = {name: {"boxes": f"{name}.csv", "persons": str(tmp_path / f"{name}_new.csv")} for name in ("train", "validation")}
    recipe = yaml.safe_load(SMOKE.read_text())
    recipe["detect"]["scenes"] = {"lists": {"root": str(root), "actions": "actions.pbtxt", **split}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "validation_new.csv"
    assert main(["persons", str(tmp_path / "own.yaml"), "--out", str(out)]) == 0
    assert len(read_person_boxes(out)) == 3
    assert main(["persons", str(tmp_path / "own.yaml"), "--split", "test", "--out", str(out)]) == 2
    assert "there is no test split" in capsys.readouterr().err
