"""The wheel contains the complete package, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vmae_lab"


@pytest.mark.slow
def test_the_wheel_contains_every_module_and_py_typed(tmp_path):
    """Built like pip does, offline, from a copy, because a build folder of an earlier version would be packed too."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    copytree(PACKAGE, source / "vmae_lab", ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        wheels,
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = wheels.glob("vmae_lab-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.jinja"), PACKAGE / "py.typed"]
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
