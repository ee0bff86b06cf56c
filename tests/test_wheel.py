"""The wheel contains the complete package, and nothing else. Installed in an empty environment, its commands run."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from itertools import chain
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from made_videos import write_video

from vmae_lab.cli.init import FILES
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.utils.seeding import seeded

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vmae_lab"
PIP_OPTIONS = ("--no-deps", "--no-index", "--disable-pip-version-check")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built like pip does, offline, from a copy, because a build folder of an earlier version would be packed too."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for folder in ("vmae_lab", "params", "notebooks", ".jupyter"):  # in vmae_lab/project are links to the others
        copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", *PIP_OPTIONS, "--no-build-isolation", "--wheel-dir", wheels, source)
    [built] = wheels.glob("vmae_lab-*.whl")
    return built


def run(*command: str | Path, folder: Path | None = None, status: int = 0, environment: dict[str, str] | None = None) -> str:
    """Run a command. Returns what it prints."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def project_files(root: Path) -> dict[str, bytes]:
    """Return the files that `vmae-lab init` copies, by path."""
    paths = chain.from_iterable(root.glob(pattern) for pattern in FILES)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_the_wheel_contains_every_module_and_all_files_of_init(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.jinja"), PACKAGE / "py.typed"]
    copied = {f"vmae_lab/project/{path}" for path in project_files(ROOT)}
    assert len(copied) > 50
    assert packed == {path.relative_to(ROOT).as_posix() for path in files} | copied


def test_an_installed_wheel_runs_commands_in_a_folder_of_init(wheel, tmp_path):
    """Without a checkout. The environment has the wheel, and finds its dependencies in that of the tests: no downloads."""
    environment, lab = tmp_path / "environment", tmp_path / "lab"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    run(sys.executable, "-m", "pip", "--python", environment, "install", *PIP_OPTIONS, wheel)
    [site] = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VMAE_LAB_PROJECT")}

    def command(*words: str, status: int = 0) -> str:
        folder = lab if lab.is_dir() else tmp_path
        return run(environment / "bin" / "vmae-lab", *words, folder=folder, status=status, environment=variables)

    assert f"cd {lab}\n" in command("init", str(lab))
    assert project_files(lab) == project_files(ROOT)
    assert "left to run" in command("plan", "notebooks/ablation_decoder_mask.ipynb", "--scale", "smoke")

    (lab / "videos").mkdir()
    write_video(lab / "videos" / "a.mp4")
    assert "1 ok, 0 damaged" in command("data", "check", ".", "--root", "videos")
    settings = ModelSettings(size="micro", frames=4, side=16, patch=4)
    with seeded(0, "classifier"):
        VideoClassifier(settings.dimensions, settings.clip, 3).save_pretrained(lab / "model")
    assert "a.mp4" in command("predict", "model", "videos/a.mp4")
    command("features", ".", "--root", "videos", "--model", "model")
    assert (lab / "videos.features" / "a.mp4.npy").is_file()
