"""Fixtures shared by all tests."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import warm_python

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"
# A pytest-xdist worker runs a whole file. The slowest files come first: if a slow file started last, the other workers would
# wait for it.
SLOWEST = (
    "slurm/test_slurm.py",
    "notebooks/test_notebooks.py",
    "training/test_process_lifetime.py",
    "notebooks/test_reports.py",
    "training/test_checkpoint.py",
    "training/test_validation.py",
    "test_first_gpu.py",
    "lab/test_executors.py",
    "lab/test_own_videos.py",
    "training/test_broken_videos.py",
    "data/test_motionworld.py",
    "data/test_transcode.py",
    "training/test_distributed.py",
    "test_wheel.py",
    "lab/test_launcher.py",
    "lab/test_doctor.py",
    "training/test_dataloader.py",
    "data/test_real_videos.py",
    "cli/test_predict_command.py",
    "test_docs.py",
    "data/test_decoder_pool.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files of SLOWEST first. The sort is stable, so all other tests keep their order."""
    order = {TESTS / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def parity() -> Path:
    """Reference tensors of the official code, which only the project's own developers have next to the checkout."""
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip("no reference tensors: ../shared/parity is not part of a clone")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Files that only the project's own developers have next to the checkout, for example real and broken videos."""
    if not (SHARED / "videos").is_dir():
        pytest.skip("no real videos: ../shared/videos is not part of a clone")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory) -> Path:
    """One cache of embedded data for all tests and all pytest-xdist workers, separate from the user's own."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the workers' folders are next to each other
    folder = folder / "home"
    folder.mkdir(exist_ok=True)
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

    return yaml.safe_load((TESTS.parent / "params" / "smoke.yaml").read_text())


@pytest.fixture(scope="session")
def warm_interpreter(tmp_path_factory) -> Iterator[str]:
    """The path of a `python` that starts in milliseconds: see warm_python.py."""
    folder = tmp_path_factory.mktemp("warm")
    address, program = folder / "server", folder / "python"
    # -S and -E skip the site packages and the environment's settings of Python, which the client does not need.
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{warm_python.__file__}" client "{address}" "$@"\n')
    program.chmod(0o755)
    command = [sys.executable, warm_python.__file__, "server", str(address), str(program)]
    with subprocess.Popen(command, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        yield str(program)


@pytest.fixture
def warm(warm_interpreter, monkeypatch) -> None:
    """Start processes warm: kernels, papermill, launched trainings and spawned workers have the package imported."""
    resource_tracker.ensure_running()  # started now, it is a child of this process and not of the server
    monkeypatch.setattr(sys, "executable", warm_interpreter)
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(warm_interpreter))
