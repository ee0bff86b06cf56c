"""benchmarks/first_gpu.sh: all parts at tiny size, and a part that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "first_gpu.sh"


def run(folder: Path | None, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = ["bash", str(SCRIPT), *([str(folder)] if folder else [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)


def results(folder: Path) -> dict[str, str]:
    """The result of each part, from the table."""
    rows = [line.split("|")[1:3] for line in (folder / "first_gpu.md").read_text().splitlines() if line.startswith("| ")]
    return {part.strip(): result.strip() for part, result in rows[1:]}


@pytest.mark.slow
def test_all_parts_pass_at_tiny_size(tmp_path):
    done = run(tmp_path / "out", TINY="1", PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "out") == dict.fromkeys(("tests", "steps", "resume", "ablation", "shares"), "passed")
    files = {path.name.replace("-gpu", "-cpu") for path in (tmp_path / "out").iterdir()}
    tables = {f"{name}-cpu.{suffix}" for name in ("pretrain_step", "stage_seconds") for suffix in ("csv", "md")}
    assert files == {"first_gpu.md", *tables}
    summary = (tmp_path / "out" / "first_gpu.md").read_text()
    assert "resumed from step" in summary
    assert "torch " in summary
    assert str(ROOT) not in summary, "the table can be committed"


def test_a_failing_part_does_not_stop_the_others(tmp_path):
    """With a Python that fails in the second part, and in the third one, which finds no training."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *pretrain_step.py*) echo broken; exit 3;; esac\n')
    python.chmod(0o755)
    done = run(tmp_path / "out", TINY="1", PYTHON=str(python))
    assert done.returncode == 1
    expected = {"tests": "passed", "steps": "failed (3)", "resume": "failed (1)", "ablation": "passed", "shares": "passed"}
    assert results(tmp_path / "out") == expected
    logs = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.log")}
    assert logs.keys() == {"first_gpu-steps.log", "first_gpu-resume.log"}
    assert logs["first_gpu-steps.log"] == "broken\n"


def test_without_a_gpu_the_message_names_the_variable(tmp_path):
    done = run(tmp_path / "out", PYTHON="/bin/false", TINY="")
    assert done.returncode == 2
    assert "TINY=1" in done.stderr
    assert run(None, TINY="1").returncode == 2, "tiny tables must not replace those in reports/"
