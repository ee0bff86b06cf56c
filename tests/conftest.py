"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def parity() -> Path:
    """Reference tensors of the official code, which only the project's own developers have beside the checkout."""
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip("no reference tensors: ../shared/parity is not part of a clone")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Facts and files that only the project's own developers have beside the checkout, real and broken videos among them."""
    if not (SHARED / "videos").is_dir():
        pytest.skip("no real videos: ../shared/videos is not part of a clone")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory) -> Path:
    """One cache of embedded data for all tests, away from the user's own, also for tests that do not ask for it."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMAE_LAB_HOME", str(folder))
        yield folder


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project for runs and reports."""
    monkeypatch.setenv("VMAE_LAB_PROJECT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def smoke() -> dict:
    """The parameters of params/smoke.yaml."""
    import yaml

    return yaml.safe_load((Path(__file__).parents[1] / "params" / "smoke.yaml").read_text())
