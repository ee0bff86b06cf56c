"""`vmae-lab info`: stages and sizes, also of many stages."""

import time

import pytest
import torch

from vmae_lab.cli import main


def test_stages_and_sizes_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VMAE_LAB_PROJECT", str(tmp_path / "project"))
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path / "home"))
    assert main(["info"]) == 0
    assert "0 finished stages, 0 unfinished, 0.0 MB" in capsys.readouterr().out
    for stage, files in {"a": ("result.json", "model.safetensors"), "b": ("checkpoint.pt",)}.items():
        folder = tmp_path / "project" / "runs" / stage
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_bytes(bytes(1_500_000))
    assert main(["info"]) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["runs"].strip().startswith("1 finished stage, 1 unfinished, 4.5 MB: ")
    assert shown["torch"].strip() == torch.__version__.split("+")[0]
    assert "av" in shown["decoders"]


@pytest.mark.slow
def test_ten_thousand_stages_are_counted_quickly(tmp_path, monkeypatch, capsys):
    """A cost that is quadratic in the number of stages would take minutes."""
    monkeypatch.setenv("VMAE_LAB_PROJECT", str(tmp_path))
    for number in range(10_000):
        (tmp_path / "runs" / f"probe-{number:012x}").mkdir(parents=True)
        (tmp_path / "runs" / f"probe-{number:012x}" / "result.json").touch()
    started = time.perf_counter()
    assert main(["info"]) == 0
    print(f"{time.perf_counter() - started:.2f} s")
    assert "10000 finished stages, 0 unfinished" in capsys.readouterr().out
