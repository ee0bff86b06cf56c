"""One line of progress per process: in a terminal, in a file, in a notebook; nested bars, errors and workers."""

import io
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pytest

from vmae_lab.utils import progress
from vmae_lab.utils.progress import Progress

ROOT = Path(__file__).parents[1]


class Clock:
    """Seconds that pass only when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    return clock


def written(monkeypatch, stream: io.StringIO) -> io.StringIO:
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def stages_of_steps(clock: Clock, stages: int, steps: int, seconds: float) -> None:
    """Nested bars as a run of stages opens them."""
    with Progress(total=stages, desc="stages") as outer:
        for stage in range(stages):
            with Progress(total=steps, desc=f"pretrain-{stage}", unit="steps") as inner:
                for _ in range(steps):
                    clock.now += seconds
                    inner.update()
                    inner.refresh()
            outer.update()


def test_nested_bars_are_one_line_of_a_terminal(clock, monkeypatch):
    stream = written(monkeypatch, Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    stages_of_steps(clock, stages=3, steps=4, seconds=1.0)
    said = stream.getvalue()
    assert said.count("\n") == 1
    assert said.endswith("\n")
    states = said.strip("\n").split("\r")[1:]
    assert any("stages" in state and "pretrain-1: 2/4 steps" in state and "to go" in state for state in states)
    assert "pretrain" not in states[-1]
    assert "3/3" in states[-1]


def test_a_line_is_never_wider_than_the_terminal(clock, monkeypatch):
    stream = written(monkeypatch, Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    with Progress(total=2, desc="a long description of what is done here, and where") as bar:
        bar.update()
        bar.refresh()
    assert {len(state) for state in stream.getvalue().strip("\n").split("\r")[1:]} <= {59}


@pytest.mark.parametrize("seconds", [0.001, 1.0, 100.0])
def test_a_file_gets_about_ten_lines_however_long_it_takes(clock, monkeypatch, seconds):
    stream = written(monkeypatch, io.StringIO())
    stages_of_steps(clock, stages=6, steps=60, seconds=seconds)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert 1 <= len(lines) <= 12
    assert all("to go" in line for line in lines)
    assert "100%" in lines[-1]
    if seconds >= 1.0:
        assert len(lines) >= 6


def test_a_slow_run_says_soon_how_long_it_takes(clock, monkeypatch):
    stream = written(monkeypatch, io.StringIO())
    with Progress(total=10**6, desc="pretrain", unit="steps") as bar:
        for _ in range(100):
            clock.now += 1.0
            bar.update()
            bar.refresh()
        assert len(stream.getvalue().splitlines()) == 1


def test_an_error_closes_the_line(clock, monkeypatch):
    """The next bar is a line of its own again."""
    stream = written(monkeypatch, Terminal())

    def broken():
        with Progress(total=3, desc="outer"), Progress(range(3), desc="inner") as rows:
            for _ in rows:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    with Progress(total=3, desc="next"):
        pass
    assert stream.getvalue().count("\n") == 2
    assert not Progress.opened


def test_nothing_to_do_says_nothing(clock, monkeypatch):
    stream = written(monkeypatch, Terminal())
    with Progress(total=0, desc="checking") as bar:
        bar.update()
    with Progress(range(0), desc="features") as rows:
        assert not list(rows)
    assert not stream.getvalue()


def test_a_subclass_measures_before_each_line(clock, monkeypatch):
    class Measured(Progress):
        def measure(self) -> None:
            self.n += 1

    stream = written(monkeypatch, Terminal())
    with Measured(total=3, desc="measured") as bar:
        bar.refresh()
    assert "3/3" in stream.getvalue().split("\r")[-1]


def _bar_in_a_worker() -> bool:
    with Progress(total=2, desc="written in a worker") as bar:
        bar.update()
        return bar.disable


@pytest.mark.slow
def test_workers_show_nothing(capfd, warm):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_bar_in_a_worker).result()
    assert "written in a worker" not in capfd.readouterr().err


NOTEBOOK = """
import time
from vmae_lab.utils.progress import Progress
with Progress(total=3, desc="stages") as outer:
    for stage in range(3):
        with Progress(total=4, desc=f"pretrain-{stage}", unit="steps") as inner:
            for _ in range(4):
                inner.update()
                inner.refresh()
                time.sleep(0.05)
        outer.update()
"""


def in_a_notebook(folder: Path, *command: str) -> nbformat.NotebookNode:
    """A notebook of one cell of bars, executed by a command with OUT as its last word."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "bars.ipynb")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop(progress.VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return nbformat.read(folder / "out.ipynb", as_version=4)


@pytest.mark.slow
def test_a_saved_notebook_holds_one_line(tmp_path, warm):
    """A display that updates, not the error stream, which JupyterLab shows in red."""
    executed = in_a_notebook(tmp_path, "papermill", "--no-progress-bar", "bars.ipynb", "out.ipynb")
    (output,) = executed.cells[0].outputs
    assert output.output_type == "display_data"
    assert re.fullmatch(r"stages 100% .* 3/3.*", output.data["text/plain"])


@pytest.mark.slow
def test_a_compared_cell_may_show_progress(tmp_path, warm):
    """nbval compares what is displayed first, and a cell's progress is no result."""
    cell = nbformat.v4.new_code_cell(f"# NBVAL_CHECK_OUTPUT\n{NOTEBOOK}\nprint('result')", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="result\n")]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "bars.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider", "bars.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
