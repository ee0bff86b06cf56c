"""The stages of every committed report keep their names. A renamed stage would run again, and its report lose its trace."""

import json
from pathlib import Path

import pytest

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments import EXPERIMENTS, plan_notebook
from vmae_lab.lab.scales import read_scale

ROOT = Path(__file__).parents[1]
SCALES = ("demo", "gpu", "study", "study20")
MANIFESTS = sorted(path for scale in SCALES for path in (ROOT / "reports" / scale).glob("*/manifest.json"))


def keys(notebook: str, parameters: dict) -> set[str]:
    return {stage.key for stage in plan_notebook(notebook, build_recipe(parameters)).stages}


def test_there_are_reports():
    assert len(MANIFESTS) >= len(EXPERIMENTS)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_keys_of_a_committed_report(path):
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert keys(manifest["notebook"], manifest["recipe"]) == set(manifest["stages"])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_a_scale_still_makes_the_stages_of_its_committed_report(path):
    manifest = json.loads(path.read_text(encoding="utf-8"))
    parameters = read_scale(manifest["scale"], [ROOT / "params"])
    arms = list(EXPERIMENTS[manifest["notebook"]].arms)
    assert keys(manifest["notebook"], {"arms": arms, **parameters}) == set(manifest["stages"])
