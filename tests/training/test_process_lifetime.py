"""No process outlives its parent, whether the parent ends by an error, a signal or a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from made_videos import write_video

from vmae_lab.training.checkpoint import Checkpoints
from vmae_lab.training.metrics import read_metrics
from vmae_lab.training.preemption import STOPPED

pytestmark = pytest.mark.slow
WITHIN = 60.0  # seconds; it only catches processes that never end
# Imports everything once. For each input line, it forks a process and prints its id, or prints the exit status of an id.
SERVER = """
import json, os, sys, time
from pathlib import Path
import tabulate  # PyTorch imports it at exit; a SIGINT during this import would give exit status 1
import vmae_lab.cli
from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.corrupt_videos import CorruptVideos
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.decoding import pool
from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import pretrain_stage
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.training.settings import Compute


def trained(folder, data, workers):
    flag, model = Path(folder, "flag"), ModelSettings(size="micro", frames=4, side=16, patch=4)

    def flagged(what):
        return flag.exists() and flag.read_text() == what

    class Disturbed(PretrainTask):
        def batch(self, step, rows):
            if flagged("loader"):
                raise VideoError("x.mp4", "gone", "h264")
            while flagged("wait"):
                time.sleep(0.1)
            return super().batch(step, rows)

        def loss(self, model, batch, device):
            time.sleep(0.1)
            if flagged("step"):
                raise ZeroDivisionError
            return super().loss(model, batch, device)

    data = DataSettings(**data)
    task = Disturbed(
        model, MaskSettings(encoder_ratio=0.75), PretrainSettings(steps=10**5, batch_size=4, lr=1e-3), data,
        load_clips(data, "pretrain"), 0, CorruptVideos(Path(folder, "quarantine.csv")),
    )
    train(task, Path(folder), Compute(checkpoint_every=10**6, log_every=1, tensorboard=False, workers=workers), progress=False)


def stored(folder, parameters, seeds):
    recipe = build_recipe(parameters)
    stages = [pretrain_stage(recipe, seed) for seed in range(seeds)]
    RunStore(Path(folder)).complete_all(stages, recipe.compute)


def command(folder, child, *arguments):
    os.chdir(folder)
    pool.CHILD = child or pool.CHILD
    sys.exit(vmae_lab.cli.main(arguments))


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        what, *given = json.loads(line)
        if what == "status":
            print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(given[0], 0)[1])), flush=True)
        elif (pid := os.fork()) == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            output = os.open(Path(given[0], "output.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            return globals()[what](*given)
        else:
            print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()
"""


class Job:
    """A process of the server, and its descendants."""

    def __init__(self, ask, folder: Path, what: str, *given):
        folder.mkdir(exist_ok=True)
        self.ask, self.folder = ask, folder
        self.process = psutil.Process(ask(what, str(folder), *given))

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def until(self, ready, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process.status() != psutil.STATUS_ZOMBIE, self.output[-3000:]
            assert time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.02)

    def children(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)

    def end(self, event: str) -> tuple[int, list[str]]:
        """Make the process end. Returns its exit status, and the descendants that are alive 10 s later."""
        started = self.children()
        name, _, group = event.partition(" ")
        if not name.startswith("SIG"):
            (self.folder / "flag.new").write_text(name)
            (self.folder / "flag.new").rename(self.folder / "flag")
        elif group:
            os.killpg(self.process.pid, getattr(signal, name))
        else:
            self.process.send_signal(getattr(signal, name))
        deadline = time.monotonic() + 60
        while alive([self.process]) and time.monotonic() < deadline:
            time.sleep(0.05)
        deadline = time.monotonic() + WITHIN
        while (left := alive([self.process, *started])) and time.monotonic() < deadline:
            time.sleep(0.05)
        commands = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        return self.ask("status", self.process.pid), commands


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def start(home, tmp_path_factory):
    script = tmp_path_factory.mktemp("server") / "server.py"
    script.write_text(SERVER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(script)], env=environment, text=True, **pipes) as server:
        assert server.stdout.readline() == "ready\n"

        def ask(*request):
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield lambda folder, what, *given: Job(ask, folder, what, *given)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(root / f"{number}.mp4", 12)
    (root / "list.txt").write_text("".join(f"{number}.mp4 0 -1\n" for number in range(6)))
    return root


@pytest.fixture(scope="module")
def sources(videos, smoke, home) -> dict:
    """Videos that decoder processes read, and the embedded data, which needs none."""
    embedded = {**smoke["data"], "resident_side": 16}
    return {"decoders": {"lists": {"root": str(videos), "pretrain": "list.txt"}}, "no decoders": embedded}


EVENTS = {
    "loader": 1, "step": 1, "SIGKILL": -signal.SIGKILL, "SIGINT": -signal.SIGINT, "SIGINT group": -signal.SIGINT,
    "SIGTERM": STOPPED, "SIGTERM group": STOPPED,
}  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["decoders", "no decoders"])
def test_no_process_outlives_its_run(start, sources, tmp_path, source, workers, event):
    job = start(tmp_path, "trained", sources[source], workers)
    decoders = (workers or 1) if source == "decoders" else 0
    job.until(lambda: len(read_metrics(tmp_path)) >= 2 and len(job.children()) >= workers + decoders)
    status, left = job.end(event)
    assert not left
    assert status == EVENTS[event]
    if event == "loader":
        assert job.output.rstrip().endswith("VideoError: x.mp4 (h264): gone")
    assert "was lost" not in job.output
    assert status != STOPPED or Checkpoints(tmp_path).load()["step"] >= 2


@pytest.mark.parametrize("event", ["SIGKILL", "SIGINT", "SIGTERM", "SIGTERM group"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_ends_while_it_waits_for_a_batch(start, sources, tmp_path, workers, event):
    """The batches never arrive, as with a network disk that hangs."""
    job = start(tmp_path, "trained", sources["no decoders"], workers)
    job.until(lambda: len(read_metrics(tmp_path)) >= 2)
    (tmp_path / "flag").write_text("wait")
    steps = 0
    while steps != (steps := len(read_metrics(tmp_path))):
        time.sleep(1.0)
    status, left = job.end(event)
    assert not left
    assert status == EVENTS[event]
    assert status != STOPPED or Checkpoints(tmp_path).load()["step"] == steps


@pytest.mark.parametrize("event", ["SIGKILL", "SIGINT group", "SIGTERM"])
def test_parallel_stages_end_with_their_parent(start, smoke, videos, tmp_path, event):
    lists = {"root": str(videos), "pretrain": "list.txt"}
    changes = {"data": {"lists": lists, "crop_scales": [1.0]}, "pretrain.steps": 10**5, "evaluate.sources": []}
    changes |= {"compute.jobs": 2, "compute.workers": 1, "compute.log_every": 1, "compute.checkpoint_every": 10**6}
    job = start(tmp_path, "stored", {**smoke, "arms": ["none"], "override": changes}, 2)
    job.until(lambda: sum(len(read_metrics(folder)) > 0 for folder in tmp_path.glob("pretrain-*")) == 2)
    status, left = job.end(event)
    assert not left
    assert status == EVENTS[event]
    assert status != STOPPED or all(Checkpoints(folder).load() for folder in tmp_path.glob("pretrain-*"))


def test_launched_processes_end_with_their_parent(start, smoke, tmp_path):
    changes = {"pretrain.steps": 10**5, "compute.log_every": 1, "compute.workers": 1, "compute.launch": "two_processes"}
    changes |= {"compute.checkpoint_every": 10**6}
    job = start(tmp_path, "stored", {**smoke, "arms": ["none"], "override": changes}, 1)
    job.until(lambda: any(read_metrics(folder) for folder in tmp_path.glob("pretrain-*")))
    assert len(job.children()) >= 5, "the launcher, two processes and their loader workers"
    assert not job.end("SIGKILL")[1]
    [folder] = tmp_path.glob("pretrain-*")
    assert Checkpoints(folder).load()["step"] > 0


@pytest.mark.parametrize("event", ["SIGKILL", "SIGINT", "SIGINT group", "SIGTERM"])
def test_decoders_end_with_the_data_check(start, videos, tmp_path, event):
    """The decoders hang on files at that time."""
    for name in ("0.mp4", "hang.mp4", "loop.mp4"):
        (tmp_path / name).hardlink_to(videos / "0.mp4")
    (tmp_path / "list.txt").write_text("0.mp4\nhang.mp4\nloop.mp4\n")
    command = ["data", "check", "list.txt", "--processes", "2", "--timeout-s", "600"]
    job = start(tmp_path, "command", "failing_child", *command)
    seen = "list.txt.check/*check.jsonl"
    job.until(lambda: len(job.children()) >= 2 and any(file.read_text().strip() for file in tmp_path.glob(seen)))
    status, left = job.end(event)
    assert not left
    assert status != 0
