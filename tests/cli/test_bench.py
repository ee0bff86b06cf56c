"""`vmae-lab bench`: list the benchmarks, and run one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.autograd import DeviceType

from vmae_lab.cli import main

ROOT = Path(__file__).parents[2]


def benchmark_of(name: str, monkeypatch) -> ModuleType:
    """Import a script of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def scripts(project):
    (project / "benchmarks").mkdir()
    (project / "benchmarks" / "fast.py").write_text('"""How fast.\n\nMore."""\n\nimport sys\n\nsys.exit(len(sys.argv))\n')
    (project / "benchmarks" / "small.py").write_text('"""How small."""\n')


def test_benchmarks_are_listed_with_their_first_line(scripts, capsys):
    assert main(["bench"]) == 0
    assert capsys.readouterr().out.splitlines() == ["fast   How fast.", "small  How small."]


def test_a_benchmark_gets_its_arguments_and_returns_its_status(scripts):
    assert main(["bench", "small"]) == 0
    assert main(["bench", "fast", "--help", "x", "-p"]) == 4


def test_the_message_about_an_unknown_benchmark_lists_the_benchmarks(scripts, capsys):
    assert main(["bench", "slow"]) == 2
    assert "fast, small" in capsys.readouterr().err


def test_outside_a_project_the_message_names_the_variable(project, capsys):
    for words in (["bench"], ["bench", "growth"], ["pretrain", "smoke"]):
        assert main(words) == 2
        assert "set VMAE_LAB_PROJECT" in capsys.readouterr().err


@pytest.mark.slow
def test_the_sharded_step_prints_how_to_start_it(monkeypatch, capfd):
    monkeypatch.setenv("VMAE_LAB_PROJECT", str(ROOT))
    monkeypatch.delenv("RANK", raising=False)
    assert main(["bench", "sharded_step"]) == 2
    assert "torchrun --standalone --nproc_per_node 2 benchmarks/sharded_step.py" in capfd.readouterr().err


def test_growth_skips_measurements_that_do_not_fit_the_memory(monkeypatch, capsys):
    growth = benchmark_of("growth", monkeypatch)

    def measured(model, masks, batch, steps):
        return {"fits": True, "seconds_per_step": 0.5 * batch} if batch <= 4 else {"fits": False}

    monkeypatch.setattr(growth, "measure_step", measured)
    points = growth.step_points("clips per step", 1)
    assert [point["value"] for point in points] == [1, 2, 4]
    assert growth.fitted("clips per step", points)["exponent"] == pytest.approx(1)
    assert "clips per step 8: does not fit in memory" in capsys.readouterr().out


def test_a_profile_counts_a_kernel_once(monkeypatch):
    """On a GPU its time is also in the row of its operator. On a CPU there are only operators."""
    step = benchmark_of("pretrain_step", monkeypatch)
    device = {"is_user_annotation": False, "self_cpu_time_total": 1.0, "self_device_time_total": 60.0}
    rows = [
        SimpleNamespace(key="aten::mm", device_type=DeviceType.CPU, **device),
        SimpleNamespace(key="gemm", device_type=DeviceType.CUDA, **device),
        SimpleNamespace(key="ProfilerStep", device_type=DeviceType.CUDA, **{**device, "is_user_annotation": True}),
    ]
    monkeypatch.setattr(step, "DEVICE", torch.device("cuda"))
    assert step.operation_seconds(rows) == {"gemm": 60.0}
    monkeypatch.setattr(step, "DEVICE", torch.device("cpu"))
    assert step.operation_seconds(rows[:1]) == {"aten::mm": 1.0}


@pytest.mark.slow
def test_the_pretraining_step_reports_what_does_not_fit(monkeypatch, tmp_path):
    """With 4 clips, a step runs out of memory. The other batch sizes are measured, and the table has all of them."""
    benchmark = benchmark_of("pretrain_step", monkeypatch)
    original = benchmark.drawn

    def drawn(clip, masks, batch):
        if batch == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(clip, masks, batch)

    monkeypatch.setattr(benchmark, "drawn", drawn)
    monkeypatch.setattr(benchmark, "matmul_rate", lambda side: 1e12)
    monkeypatch.setattr(benchmark, "profiled", lambda step: [("mm", 0.5)])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    words = ["--sizes", "micro", "--side", "16", "--batch", "1", "4", "2", "--ratios", "0.5", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["pretrain_step.py", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        benchmark.main()
    table = pd.read_csv(next(tmp_path.glob("pretrain_step-*.csv")))
    assert table.clips.tolist() == [1] * 3 + [2] * 3 + [4] * 3
    assert table.fits.tolist() == ["yes"] * 6 + ["no"] * 3
    assert (table["clips/s"].notna() == (table.fits == "yes")).all()
    usual = table[table.way == "usual style"]
    assert usual.speedup.dropna().tolist() == [1, 1]


def test_the_pretraining_step_stops_at_its_time(monkeypatch, tmp_path, capsys):
    benchmark = benchmark_of("pretrain_step", monkeypatch)
    monkeypatch.setattr(benchmark, "matmul_rate", lambda side: 1e12)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    words = ["--sizes", "micro", "--side", "16", "--batch", "1", "--steps", "1", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["pretrain_step.py", *words])
    with pytest.raises(SystemExit, match="1"):
        benchmark.main()
    assert "nothing was measured within 0 seconds" in capsys.readouterr().out
