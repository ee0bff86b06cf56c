"""Batches from worker processes: equal, bounded in bytes; errors keep their types; lost workers are replaced; none is left."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vmae_lab.data.decoding import VideoError
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.training.dataloader import (
    BatchParts,
    Loading,
    RowSize,
    data_loader,
    plan_loading,
    require_shared_memory,
)  # fmt: skip
from vmae_lab.training.settings import ImpossibleHere
from vmae_lab.utils.atomic_io import StorageError
from vmae_lab.utils.processes import ProcessLost, worker_pool


class NotSendable(Exception):
    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


ERRORS = [
    VideoError("a.mp4", "gone", "h264"),
    StorageError("the disk is full"),
    MissingVideos({1: VideoError("b.mp4", "gone")}, 3),
    RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."),  # PyTorch's message for a lost worker
    RuntimeError("Pin memory thread exited unexpectedly"),
    KeyError("video"),
]


class Failing(Dataset):
    """Returns positions, and raises an error at one of them."""

    def __init__(self, at: int, error: Exception):
        self.at, self.error = at, error

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        if position == self.at:
            raise self.error
        return {"video": torch.full((2, 3), position)}


class Killed(Dataset):
    """Returns positions. A worker that reads one of `at` is killed."""

    def __init__(self, at: set[int], once: bool, parent: int):
        self.at, self.parent = at, parent
        self.seen = torch.zeros(100).share_memory_() if once else None

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        if position in self.at and (self.seen is None or not self.seen[position]):
            if self.seen is not None:
                self.seen[position] = 1
            assert os.getpid() != self.parent
            os.kill(os.getpid(), signal.SIGKILL)
        return {"video": torch.full((2, 3), position)}


@pytest.fixture
def others():
    """Processes that other tests of this process have left."""
    return set(active_children())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_errors_keep_their_types_across_workers(error, workers, recwarn, others):
    batches = data_loader(Failing(3, error), range(10), Loading(workers), pin_memory=False)
    assert [int(next(batches)["video"][0, 0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert not recwarn.list, "no worker was lost"
    assert not set(active_children()) - others


def test_an_error_that_cannot_be_pickled_keeps_its_message():
    with pytest.raises(RuntimeError, match="NotSendable: one and two") as caught:
        list(data_loader(Failing(0, NotSendable("one", "two")), range(3), Loading(1), pin_memory=False))
    assert "in __getitem__" in caught.value.__notes__[0], "the traceback in the worker is added"


@pytest.fixture
def quick_checks(monkeypatch):
    """PyTorch checks for lost workers every 0.1 s instead of every 5 s."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def test_lost_workers_are_replaced(quick_checks, others):
    with pytest.warns(UserWarning, match=r"was lost.* batch [0-4] \(1 of 3") as warned:
        batches = list(data_loader(Killed({4}, True, os.getpid()), range(8), Loading(2), pin_memory=False))
    assert [int(batch["video"][0, 0]) for batch in batches] == list(range(8))
    assert len([warning for warning in warned if "was lost" in str(warning.message)]) == 1
    assert not set(active_children()) - others


@pytest.mark.slow
def test_workers_lost_repeatedly_raise_an_error(quick_checks, others):
    with (
        pytest.warns(UserWarning, match=r"was lost.* batch [01] \(3 of 3"),
        pytest.raises(ProcessLost, match=r"4 times.*batch [01].*compute\.workers"),
    ):
        list(data_loader(Killed({1}, False, os.getpid()), range(8), Loading(1), pin_memory=False))
    assert not set(active_children()) - others


class Stuck(Dataset):
    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        if position:
            time.sleep(600)
        return {"video": torch.full((2, 3), position)}


@pytest.fixture
def other_loader():
    """Another loader with workers in this process. With the first one, PyTorch sets its handler of SIGCHLD."""
    before = signal.getsignal(signal.SIGCHLD)
    signal_handling._SIGCHLD_handler_set = False
    list(DataLoader(range(2), num_workers=1))
    handler = signal.getsignal(signal.SIGCHLD)
    assert handler != before
    yield handler
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.slow
def test_busy_workers_end_when_the_batches_are_closed(monkeypatch, others, other_loader):
    """Another thread kills workers that take too long to end. It has finished, however slow, when the batches are closed."""
    waitpid = os.waitpid

    def slow_waitpid(pid: int, options: int) -> tuple[int, int]:
        ended = waitpid(pid, options)
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.5)
        return ended

    monkeypatch.setattr(os, "waitpid", slow_waitpid)
    threads = set(threading.enumerate())
    batches = data_loader(Stuck(), range(8), Loading(2), pin_memory=False)
    next(batches)
    assert len(set(active_children()) - others) == 2
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 60  # the workers would sleep for ten minutes
    assert not set(active_children()) - others
    assert not set(threading.enumerate()) - threads
    assert signal.getsignal(signal.SIGCHLD) == other_loader


# A script may also fail while it has open batches, in its main thread or in another one.
LEFT = """
import threading, time, torch
from test_dataloader import Stuck
from vmae_lab.training.dataloader import Loading, data_loader

def begin():
    global batches
    batches = data_loader(Stuck(), range(8), Loading(2), False)
    next(batches)

{begin}
raise ZeroDivisionError
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "begin", ["begin()", "thread = threading.Thread(target=begin, daemon=True); thread.start(); thread.join()"]
)
def test_a_script_with_open_batches_ends(begin):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.path.dirname(__file__)])}
    command = [sys.executable, "-c", LEFT.format(begin=begin)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError"), done.stderr


SOCKETS = """
import os, sys, tempfile, torch
from test_dataloader import Failing
from vmae_lab.training.dataloader import Loading, data_loader
for folder in sys.argv[1:]:
    if (pid := os.fork()) == 0:  # in a new process, because multiprocessing chooses its temporary folder once per process
        os.environ["TMPDIR"], tempfile.tempdir = folder, None
        print(len(list(data_loader(Failing(-1, ValueError()), range(8), Loading(2), False))), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_workers_with_a_long_temporary_path(tmp_path_factory, tmp_path, warm):
    """The path of a socket may have 107 bytes on Linux. multiprocessing appends 32 to the temporary folder."""
    short = tmp_path_factory.mktemp("t", numbered=True)
    folders = [short / ("é" * ((length - len(str(short))) // 2)) for length in (60, 72, 200)]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.path.dirname(__file__)])}
    (tmp_path / "sockets.py").write_text(SOCKETS)
    command = [sys.executable, str(tmp_path / "sockets.py"), *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout) == (0, "8\n" * 3), done.stderr


def test_an_error_if_no_socket_can_be_created(monkeypatch):
    def refuse(*_arguments, **_names):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("vmae_lab.training.dataloader.Listener", refuse)
    with pytest.raises(ImpossibleHere, match=r"TMPDIR.*compute\.workers"):
        next(data_loader(Failing(-1, ValueError()), range(8), Loading(2), False))
    assert len(list(data_loader(Failing(-1, ValueError()), range(8), Loading(0), False))) == 8


class Counted:
    """A task whose rows have 1000 bytes and tell their position. Counts the rows that workers have built."""

    row_size = RowSize(1000, together=2)

    def __init__(self):
        self.built = torch.zeros(100, dtype=torch.int64).share_memory_()

    def batch(self, step: int, rows: range) -> dict[str, torch.Tensor]:
        self.built[step * 12 + rows.start] = len(rows)
        positions = torch.tensor([step * 12 + row for row in rows])
        return {"position": positions, "pixels": positions.to(torch.uint8)[:, None].repeat(1, 1000)}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_equal_for_any_number_of_workers(workers):
    task, rows = Counted(), range(12)
    loading = plan_loading(task.row_size, rows, workers, limit=2**20)
    assert loading.parts == max(1, workers)
    batches = list(data_loader(BatchParts(task.batch, rows, loading.parts), range(2, 6), loading, pin_memory=False))
    for step, batch in zip(range(2, 6), batches, strict=True):
        whole = task.batch(step, rows)
        assert all(torch.equal(batch[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [24_000, 12_000, 4000, 1])
def test_what_workers_build_ahead_is_bounded_in_bytes(limit):
    task, rows = Counted(), range(12)
    loading = plan_loading(task.row_size, rows, 3, limit)
    assert loading.shared_bytes <= max(limit, 2000), "a part has at least two rows"
    batches = data_loader(BatchParts(task.batch, rows, loading.parts), range(8), loading, pin_memory=False)
    next(batches)
    rows_ahead = -1
    while rows_ahead != (rows_ahead := int(task.built.sum()) - 12):
        time.sleep(0.5)
    batches.close()
    assert 0 < 1000 * rows_ahead <= loading.shared_bytes


@pytest.mark.parametrize(("rows", "workers", "limit_mib"), [(256, 10, 1024), (256, 10, 64), (7, 3, 64), (1, 3, 64), (64, 1, 1)])
def test_a_plan_uses_the_memory_that_it_may_use(rows, workers, limit_mib):
    """Rows of a clip of 16 x 224 x 224 pixels."""
    row = RowSize(3 * 16 * 224 * 224, together=1)
    loading = plan_loading(row, range(rows), workers, limit_mib * 2**20)
    assert rows % loading.parts == 0
    built_ahead = loading.workers * loading.ahead * rows // loading.parts
    assert loading.shared_bytes == built_ahead * row.bytes <= max(limit_mib * 2**20, row.bytes)
    assert built_ahead >= min(rows, limit_mib // 10), "a batch, or most of the memory"


def test_batches_that_cannot_be_divided():
    """If the size of a row is unknown, each worker builds two whole batches ahead."""
    assert plan_loading(RowSize(), range(12), 3, limit=1) == Loading(3)


def test_an_error_if_shared_memory_is_too_small(monkeypatch):
    monkeypatch.setattr("vmae_lab.training.dataloader.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 64 * 2**20))
    require_shared_memory(Loading(2, shared_bytes=64 * 2**20))
    require_shared_memory(Loading(0))
    with pytest.raises(ImpossibleHere, match=r"/dev/shm.*--shm-size.*compute\.prefetch_mib.*compute\.workers"):
        require_shared_memory(Loading(2, shared_bytes=65 * 2**20))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ImpossibleHere, match=r"/dev/shm"):
        require_shared_memory(Loading(2, shared_bytes=64 * 2**20))


def _start_method() -> str:
    return multiprocessing.get_start_method()


@pytest.mark.slow
def test_a_pool_worker_has_its_owners_start_method(warm):
    """Spawned loader workers would import PyTorch again, and leave semaphores behind if the pool's worker is ended."""
    with worker_pool(1) as pool:
        assert pool.submit(_start_method).result() == multiprocessing.get_start_method()


def _fail() -> None:
    raise VideoError("a.mp4", "gone", "h264")


def _kill_one(pool: ProcessPoolExecutor) -> None:
    pool.submit(time.sleep, 600)
    pid = pool.submit(os.getpid).result()
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    pool.submit(time.sleep, 600).result()


@pytest.mark.slow
def test_a_pool_distinguishes_errors_and_lost_workers(warm):
    with pytest.raises(VideoError) as caught, worker_pool(1) as pool:
        pool.submit(_fail).result()
    assert (caught.value.path, caught.value.codec) == ("a.mp4", "h264")
    start = time.monotonic()
    with pytest.raises(ProcessLost, match="killed"), worker_pool(2) as pool:
        _kill_one(pool)
    assert time.monotonic() - start < 60
