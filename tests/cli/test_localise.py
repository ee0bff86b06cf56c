"""`vmae-lab localise` at the smoke scale, and on pre-extracted features."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from vmae_lab.cli import main

SMOKE = Path(__file__).parents[2] / "params" / "smoke.yaml"


@pytest.fixture
def own(tmp_path) -> Path:
    """A recipe with annotated videos and pre-extracted features."""
    database = {}
    (tmp_path / "features").mkdir()
    for number in range(4):
        name = f"v{number}"
        np.save(tmp_path / "features" / f"{name}.npy", np.random.default_rng(number).normal(size=(20, 6)).astype(np.float32))
        rows = [{"segment": [0.5, 1.5], "label": "run"}, {"segment": [2.0, 2.5], "label": "jump"}]
        subset = "Test" if number == 3 else "Validation"
        database[name] = {"subset": subset, "duration": 92 / 30, "fps": 30.0, "annotations": rows}
    (tmp_path / "labels.json").write_text(json.dumps({"database": database}))
    recipe = yaml.safe_load(SMOKE.read_text())
    recipe["localise"]["videos"] = {
        "lists": {
            "root": str(tmp_path), "annotations": "labels.json", "features": {"folder": "features"}, "train": ["validation"],
            "test": ["test"],
        }
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.mark.slow
def test_features_are_extracted_and_a_detector_is_evaluated(project, capsys):
    small = ["--seed", "0", "-p", "localise.steps", "2", "-p", "localise.videos.motionworld.train", "1"]
    assert main(["localise", str(SMOKE), *small, "--encoder", "scratch"]) == 0
    *_, score, folder = capsys.readouterr().out.splitlines()
    assert score.startswith("seed 0: mAP ")
    assert "% at IoU 0.3, " in score
    assert score.endswith("2 test videos")
    assert (Path(folder) / "segments.json").exists()
    assert {path.name.split("-")[0] for path in (project / "runs").glob("[a-z]*-*")} == {"initial", "features", "localise"}


def test_pre_extracted_features_need_no_encoder(project, own, capsys):
    assert main(["localise", str(own / "own.yaml"), "--seed", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].endswith("1 test video")
    assert {path.name.split("-")[0] for path in (project / "runs").glob("[a-z]*-*")} == {"localise"}


def change(own: Path, video: str, **values) -> None:
    whole = json.loads((own / "labels.json").read_text())
    whole["database"][video].update(values)
    (own / "labels.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"annotations": [{"segment": [5, 2], "label": "run"}]}, "video 'v1', annotation 1"), ({"duration": 0}, "video 'v1'")],
)
def test_malformed_annotations_are_reported_before_anything_runs(project, own, capsys, values, message):
    change(own, "v1", **values)
    assert main(["localise", str(own / "own.yaml"), "--seed", "0"]) == 2
    told = capsys.readouterr().err
    assert "labels.json" in told
    assert message in told
    assert not list(project.glob("runs/*-*"))


def test_videos_of_unused_subsets_may_be_incomplete(project, own):
    change(own, "v1", subset="Elsewhere", fps=None)
    assert main(["localise", str(own / "own.yaml"), "--seed", "0"]) == 0


def test_a_recipe_without_the_section_is_refused(project, tmp_path, capsys):
    recipe = {name: value for name, value in yaml.safe_load(SMOKE.read_text()).items() if name != "localise"}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["localise", str(tmp_path / "bare.yaml")]) == 2
    assert "localise: this section is missing; see params/paper/thumos14.yaml" in capsys.readouterr().err
