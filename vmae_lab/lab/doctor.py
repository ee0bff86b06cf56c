"""Checks of a machine before a long run, for `vmae-lab doctor`.

Each check imports what it needs when it runs. So a package that is missing or broken fails a check and not the whole command.
"""

import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vmae_lab.utils.atomic_io import make_folder, storing_in
from vmae_lab.utils.counts import counted, size_text
from vmae_lab.utils.paths import runs_folder
from vmae_lab.utils.processes import ProcessLost, fixed_threads, worker_pool
from vmae_lab.utils.progress import Progress

if TYPE_CHECKING:
    from vmae_lab.data.dataset import Clips, DataSettings
    from vmae_lab.lab.config import Recipe

MIB, GIB = 2**20, 2**30
SHARED_MEMORY = Path("/dev/shm")  # PyTorch's loader workers send batches through it
TESTED_BYTES = 64 * MIB  # written to a disk, and summed over devices
SLOW_DISK = 50e6  # bytes per second
FILES, FILES_PER_WORKER = 512, 16  # open files of a training, and of a worker: 5 tensors in each of 2 batches, and pipes
ANSWER_S = 60.0  # the longest time that devices may take to find each other and to sum
STEPS, CHECKPOINT_EVERY, KILLED_AT = 20, 5, 13  # of the training that is killed and resumed
CPU_STEP_MACS = 5e10  # multiply-accumulates of the largest step that is timed on a CPU: some seconds
LOADER_S = 6.0  # how long the loader is timed
NOISE_CLIPS = 16
MARGIN = 1.2  # a loader that is faster than the device by less than this gets a warning


@dataclass(frozen=True)
class Outcome:
    """The result of a check: what it measured, and what to do about a warning or a failure.

    `rate`: clips per second, if the check measures them.
    """

    result: Literal["ok", "warning", "failed"]
    figure: str
    remedy: str = ""
    rate: float = math.nan


@dataclass(frozen=True)
class Finding:
    """A row of the table of `vmae-lab doctor`."""

    check: str
    result: str
    figure: str
    remedy: str
    seconds: float


def examine(read_recipe: "Callable[[], Recipe]") -> list[Finding]:
    """Run all checks. `read_recipe` returns the recipe of the planned run, for the checks that depend on it.

    Raises the UserErrors of `read_recipe`. If a package that it imports is missing, these checks fail instead.
    """
    recipe: Recipe | None = None
    try:
        recipe = read_recipe()
        cause = ""
    except ImportError as error:
        cause = f"not checked, because the recipe cannot be read: {error}"
    findings: list[Finding] = []
    with Progress(total=11, desc="doctor", unit="checks") as bar:

        def run(name: str, check: Callable[..., Outcome], *arguments: Any, remedy: str) -> Outcome:
            bar.set_postfix_str(name)
            started = time.perf_counter()
            try:
                outcome = Outcome("failed", cause) if recipe in arguments and cause else check(*arguments)
            except Exception as error:  # whatever a broken installation or machine raises
                outcome = Outcome("failed", f"{type(error).__name__}: {error}".removesuffix(": "))
            if outcome.result != "ok" and not outcome.remedy:
                outcome = replace(outcome, remedy=remedy)
            findings.append(Finding(name, outcome.result, outcome.figure, outcome.remedy, time.perf_counter() - started))
            bar.update()
            return outcome

        install = "install the tested versions: pip install -c constraints.txt -e '.[lab]'"
        run("packages", packages, remedy=install)
        run("decoders", decoders, remedy=install)
        run("devices", partial(devices, recipe), remedy="run nvidia-smi, and compare the driver with PyTorch's version of CUDA")
        run(
            "all-reduce", all_reduce,
            remedy="set NCCL_DEBUG=INFO (GPUs) or GLOO_SOCKET_IFNAME=lo (CPUs) and try again; on GPUs, try NCCL_P2P_DISABLE=1",
        )  # fmt: skip
        run("open files", open_files, recipe, remedy="raise the limit: ulimit -n 65536")
        run("stage store", stage_store, recipe, remedy="free the disk, or set VMAE_LAB_PROJECT to a folder on another one")
        run("cache of data", cache_of_data, recipe, remedy="free the disk, or set VMAE_LAB_HOME to a folder on another one")
        run("shared memory", shared_memory, recipe, remedy="lower compute.prefetch_mib or compute.workers")
        run(
            "kill and resume", kill_and_resume,
            remedy="start no long run until it passes; check that runs/ is on a disk with file locks (flock) and atomic rename",
        )  # fmt: skip
        step = run("training step", training_step, recipe, remedy="lower pretrain.batch_size or raise pretrain.accumulation")
        run(
            "data loader", data_loader, recipe, step.rate,
            remedy=f"raise compute.workers (this machine has {counted(os.cpu_count() or 1, 'core')}), or store smaller "
            "videos (vmae-lab data transcode)",
        )  # fmt: skip
    return findings


def at_least(available: float, required: float, margin: float, figure: str, rate: float = math.nan) -> Outcome:
    """Return an outcome: failed if there is less available than required, warning if less than `margin` times that."""
    result: Literal["ok", "warning", "failed"] = "warning" if available < margin * required else "ok"
    return Outcome("failed" if available < required else result, figure, rate=rate)


def speed(rate: float) -> str:
    """Return a number of clips per second as text."""
    return f"{rate:,.0f} clips/s" if rate >= 10 else f"{rate:.2g} clips/s"


# ---------------------------------------------------------------------------------------------------------------------------
# The installation


def packages() -> Outcome:
    """Check that the required packages are installed in accepted versions, and that the large ones can be imported."""
    from packaging.requirements import Requirement

    missing, others = [], []
    for line in requires("vmae-lab") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            others.append(f"{requirement.name} {installed} instead of {requirement.specifier}")
    if missing:
        return Outcome("failed", f"not installed: {', '.join(missing)}")
    for name in ("torch", "torchvision", "timm", "accelerate"):  # importing timm fails if torchvision does not fit torch
        import_module(name)
    if others:
        return Outcome("warning", f"not tested: {', '.join(others)}")
    from vmae_lab.lab.report.provenance import provenance

    made = provenance()
    return Outcome(
        "ok", ", ".join(f"{name} {number}" for name, number in {"Python": made["python"], **made["packages"]}.items())
    )


def decoders() -> Outcome:
    """Encode small videos and check that every decoder returns exactly their frames."""
    for name in ("av", "decord"):
        try:
            import_module(name)
        except (ImportError, OSError) as error:  # OSError: a shared library is missing
            return Outcome("failed", f"{name} cannot be imported: {error}")
    from vmae_lab.data.decoding import VideoFile, VideoSettings, read_video
    from vmae_lab.data.frame_sampling import Everything

    names = ["pyav", "decord", *(["torchcodec"] if find_spec("torchcodec") else [])]
    # AVI has no exact index, so only PyAV reads it.
    videos = {"small.mp4": ("h264", names), "small.webm": ("vp9", names), "small.avi": ("mpeg4", names[:1])}
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for file, (codec, readers) in videos.items():
            path = Path(folder) / file
            _write_video(path, codec)
            for name in readers:
                try:
                    frames = read_video(VideoFile(str(path)), Everything(), VideoSettings(decoder=name)).frames
                    shades = [round(float(frame.mean()) / 16) for frame in frames]
                    cause = "" if shades == list(range(16)) else "wrong frames"
                except ValueError as error:
                    cause = str(error).removeprefix(f"{path} ")
                wrong += [f"{name}, {file}: {cause}"] if cause else []
    if wrong:
        return Outcome("failed", "; ".join(wrong))
    return Outcome("ok", f"{', '.join(names)}: all frames of {', '.join(codec for codec, _ in videos.values())} are exact")


def _write_video(path: Path, codec: str) -> None:
    """Encode 16 gray frames. The shade of each is 16 times its number."""
    import av
    import numpy as np

    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(16):
            picture = np.full((48, 64, 3), 16 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())


# ---------------------------------------------------------------------------------------------------------------------------
# Devices


def devices(recipe: "Recipe | None") -> Outcome:
    """Compute on every GPU, and check that their memory is free. Without GPUs, name the processor.

    Without GPUs, a recipe with steps of more than CPU_STEP_MACS gets a warning. None: the recipe could not be read.
    """
    import torch

    from vmae_lab.lab.report.provenance import provenance

    if not torch.cuda.is_available():
        if Path("/dev/nvidiactl").exists():
            return Outcome("failed", f"this machine has an NVIDIA GPU, but PyTorch {torch.__version__} cannot use it")
        figure = f"no GPU; {provenance()['device']}, {counted(torch.get_num_threads(), 'thread')}"
        if recipe:
            from vmae_lab.lab.stages.cost import step_macs

            macs = step_macs(recipe.model, recipe.mask, recipe.pretrain.batch_size)
            if macs > CPU_STEP_MACS:
                figure += f"; a pre-training step of this recipe needs one ({macs / 1e9:,.0f} G multiply-accumulates)"
                return Outcome("warning", figure, "use a machine with a GPU, or a smaller recipe such as demo")
        return Outcome("ok", figure)
    busy, names = [], []
    for index in range(torch.cuda.device_count()):
        torch.ones(256, 256, device=f"cuda:{index}").mm(torch.ones(256, 256, device=f"cuda:{index}")).sum().item()
        free, total = torch.cuda.mem_get_info(index)
        names.append(f"{torch.cuda.get_device_name(index)}, {size_text(total)}")
        if free < 0.9 * total:
            busy.append(f"GPU {index}: {size_text(total - free)} of {size_text(total)} are in use")
    figure = f"{len(names)} x {', '.join(dict.fromkeys(names))}"
    if busy:
        return Outcome(
            "warning", f"{figure}; {'; '.join(busy)}", "end the other processes on these GPUs: nvidia-smi lists them"
        )
    return Outcome("ok", figure)


def all_reduce() -> Outcome:
    """Sum a tensor over all GPUs with NCCL, or over two processes with gloo if there is no GPU.

    The training launcher is not used, because it has no time limit, and devices that cannot reach each other wait for hours.
    """
    import torch

    gpus = torch.cuda.device_count()
    processes = gpus or 2
    try:
        with tempfile.TemporaryDirectory() as folder, worker_pool(processes) as pool:
            meeting = f"file://{folder}/meeting"
            tasks = [pool.submit(_sum_over_processes, rank, processes, meeting) for rank in range(processes)]
            seconds = max(task.result(timeout=2 * ANSWER_S) for task in tasks)
    except TimeoutError:
        return Outcome("failed", f"no answer from {counted(processes, 'process')} within {2 * ANSWER_S:.0f} s")
    kind = f"{counted(gpus, 'GPU')} with NCCL" if gpus else "2 CPU processes with gloo"
    return Outcome("ok", f"{kind}: {size_text(TESTED_BYTES)} summed in {1000 * seconds:.0f} ms")


def _sum_over_processes(rank: int, processes: int, meeting: str) -> float:
    """Sum a tensor over processes, twice. Return the seconds of the second sum, because the first one connects them."""
    import torch
    from torch import distributed

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=meeting, rank=rank, world_size=processes, timeout=timedelta(seconds=ANSWER_S)
    )
    seconds = 0.0
    for _ in range(2):
        values = torch.full((TESTED_BYTES // 4,), rank + 1.0, device=device)
        distributed.barrier()
        started = time.perf_counter()
        distributed.all_reduce(values)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if not bool((values == processes * (processes + 1) / 2).all()):
            raise RuntimeError(f"process {rank} of {processes} got a wrong sum")
    distributed.destroy_process_group()
    return seconds


# ---------------------------------------------------------------------------------------------------------------------------
# Limits, disks and shared memory


def open_files(recipe: "Recipe") -> Outcome:
    """Compare the limit of open files with what a training of the recipe needs: each tensor from a loader worker is one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = FILES + FILES_PER_WORKER * recipe.compute.workers
    if limit == resource.RLIM_INFINITY:
        return Outcome("ok", "no limit")
    return at_least(limit, required, 1.0, f"limit {limit:,d} per process; {required:,d} needed")


def stage_store(recipe: "Recipe") -> Outcome:
    """Check the disk of the stage store, against the weights and checkpoints of the recipe's pre-training."""
    from vmae_lab.lab.run_store import RunStore
    from vmae_lab.lab.stages import pretrain_stage

    store = RunStore(runs_folder())
    todo = [stage for stage in (pretrain_stage(recipe, seed) for seed in recipe.seeds) if not store.finished(stage)]
    # A checkpoint has the weights and two moments. There are two of them, and a third while it is written.
    checkpoints = 3 * 3 * 4 * max((stage.parameters for stage in todo), default=0) * min(recipe.compute.jobs, len(todo))
    return _disk(store.root, checkpoints + sum(stage.disk_bytes for stage in todo))


def cache_of_data(recipe: "Recipe") -> Outcome:
    """Check the disk of the cache folder, against the embedded data that the recipe has to write."""
    from vmae_lab.data.motionworld.writer import cache_home
    from vmae_lab.lab.stages import pretrain_stage

    videos = pretrain_stage(recipe, recipe.seeds[0]).embedded_videos
    return _disk(cache_home(), videos.disk_bytes if videos and not videos.written else 0.0)


def _disk(folder: Path, required: float) -> Outcome:
    """Check the free space of a folder's disk, and its speed with a file. Raises StorageError."""
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    figure = f"{size_text(free)} free; {size_text(required)} needed; {folder}"
    if free < required + TESTED_BYTES:
        return Outcome("failed", f"the disk is full: {figure}")
    part, speeds = os.urandom(MIB), []
    with storing_in(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        started = time.perf_counter()
        for _ in range(TESTED_BYTES // MIB):
            file.write(part)
        os.fsync(file.fileno())
        speeds.append(TESTED_BYTES / (time.perf_counter() - started))
        if hasattr(os, "posix_fadvise"):  # so that the file is read from the disk and not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        started = time.perf_counter()
        while file.read(MIB):
            pass
        speeds.append(TESTED_BYTES / (time.perf_counter() - started))
    figure = f"writes {speeds[0] / 1e6:,.0f} MB/s, reads {speeds[1] / 1e6:,.0f} MB/s; {figure}"
    if min(speeds) < SLOW_DISK:
        return Outcome("warning", figure, "the disk is slow: use a local disk, or raise compute.checkpoint_every")
    return at_least(free, required, 2.0, figure)


def shared_memory(recipe: "Recipe") -> Outcome:
    """Compare the free shared memory with what the loader workers of all trainings build ahead."""
    from vmae_lab.lab.launcher import process_count
    from vmae_lab.training.dataloader import plan_loading
    from vmae_lab.training.tasks.pretrain import row_size

    if not recipe.compute.workers:
        return Outcome("ok", "not used: compute.workers is 0")
    if not SHARED_MEMORY.is_dir():
        return Outcome("ok", f"not used: this system has no {SHARED_MEMORY}")
    processes = process_count(recipe.compute.launch)
    row, rows = row_size(recipe.model, recipe.pretrain), range(recipe.pretrain.batch_size // processes)
    loading = plan_loading(row, rows, recipe.compute.workers, recipe.compute.prefetch_mib * MIB)
    required = _jobs_here(recipe) * processes * loading.shared_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free
    outcome = at_least(free, required, 1.2, f"{size_text(free)} free in {SHARED_MEMORY}; {size_text(required)} needed")
    larger = f"{math.ceil(1.5 * required / GIB)}g"
    remedy = f"enlarge it (mount -o remount,size={larger} {SHARED_MEMORY}; docker run --shm-size {larger}), or lower "
    return replace(outcome, remedy=f"{remedy}compute.prefetch_mib or compute.jobs" if outcome.result != "ok" else "")


def _jobs_here(recipe: "Recipe") -> int:
    """Return how many trainings run on this machine at the same time."""
    return 1 if recipe.compute.executor == "slurm" else recipe.compute.jobs


# ---------------------------------------------------------------------------------------------------------------------------
# Training


def kill_and_resume() -> Outcome:
    """Train a tiny model in the stage store's folder, kill it, resume it, and compare its weights with an unkilled training.

    On a GPU, PyTorch's deterministic algorithms are used.
    """
    import torch

    from vmae_lab.training.checkpoint import Checkpoints
    from vmae_lab.training.distributed import device_name

    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=make_folder(runs_folder())) as folder:
        killed, straight = Path(folder) / "killed", Path(folder) / "straight"
        with suppress(ProcessLost), worker_pool(1) as pool:  # ProcessLost: it was killed, as planned
            pool.submit(_train, killed, KILLED_AT).result()
        saved = Checkpoints(killed).load()
        if saved is None:
            return Outcome("failed", f"a training that was killed in step {KILLED_AT} left no checkpoint")
        resumed, expected = _train(killed), _train(straight)
    largest = max(float((resumed[name] - value).abs().max()) for name, value in expected.items())
    figure = f"{STEPS} steps, killed in step {KILLED_AT}, resumed from step {saved['step']}: "
    if all(torch.equal(resumed[name], value) for name, value in expected.items()):
        return Outcome("ok", figure + "all weights are equal, bit for bit")
    figure += f"weights differ by up to {largest:.2g}"
    if torch.cuda.is_available() and largest < 1e-4:
        return Outcome("warning", figure, f"{device_name(torch.device('cuda'))} rounds differently after a restart; no action")
    return Outcome("failed", figure)


def _train(folder: Path, killed_at: int | None = None) -> dict[str, Any]:
    """Train a tiny model and return its weights on the CPU. With `killed_at`, the process kills itself in that step."""
    from vmae_lab.data.dataset import DataSettings
    from vmae_lab.data.motionworld import MotionworldSettings
    from vmae_lab.masking import MaskSettings
    from vmae_lab.models.sizes import ModelSettings
    from vmae_lab.training.dataloader import Batch
    from vmae_lab.training.loop import train
    from vmae_lab.training.settings import Compute
    from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask

    class Task(PretrainTask):
        def batch(self, step: int, rows: range) -> Batch:
            if step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(step, rows)

    world = MotionworldSettings(sources=("sprites",), side=32, frames=16, train=4, validation=1, test=1)
    data = DataSettings(motionworld=world, resident_side=28, stride=2, crop_scales=(1.0, 0.9))
    settings = PretrainSettings(steps=STEPS, batch_size=4, lr=2e-3, warmup_steps=2, clip_grad=1.0, target_eps=0.01)
    compute = Compute(checkpoint_every=CHECKPOINT_EVERY, log_every=CHECKPOINT_EVERY, tensorboard=False)
    clips = noise_clips(data, make_folder(folder))
    task = Task(ModelSettings(size="tiny", frames=8, side=24, patch=4), MaskSettings(), settings, data, clips, seed=0)
    with fixed_threads(1), _deterministic():
        model = train(task, folder, compute, progress=False).model
    return {name: value.cpu() for name, value in model.state_dict().items()}


@contextmanager
def _deterministic() -> Iterator[None]:
    """Use PyTorch's deterministic algorithms inside the block."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def noise_clips(data: "DataSettings", folder: Path) -> "Clips":
    """Return random clips with the shape of the embedded data, in a file of a folder. Writing the real data may take hours."""
    import numpy as np

    from vmae_lab.data.memmap_dataset import MemmapDataset
    from vmae_lab.data.motionworld import ACTIONS, ClipRecord

    world, side = data.motionworld, data.resident_side
    assert world
    sources = data.pretrain_sources or data.sources
    path = folder / "noise.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (NOISE_CLIPS, world.frames, side, side, 3), np.uint8))
    records = [
        ClipRecord(f"{row}.mp4", "train", sources[row % len(sources)], ACTIONS[row % len(ACTIONS)], world.frames)
        for row in range(NOISE_CLIPS)
    ]
    return MemmapDataset(np.load(path, mmap_mode="r"), np.arange(NOISE_CLIPS), records)


def training_step(recipe: "Recipe") -> Outcome:
    """Measure the clips per second of a pre-training step on one device, on pixels that are already there."""
    import torch

    from vmae_lab.lab.launcher import process_count
    from vmae_lab.lab.stages import measure
    from vmae_lab.lab.stages.cost import step_macs
    from vmae_lab.training.distributed import bf16_is_native

    model, mask, compute = recipe.model, recipe.mask, recipe.compute
    processes = process_count(compute.launch)
    each = max(1, recipe.pretrain.batch_size // (recipe.pretrain.accumulation * processes))  # clips on a device
    fitting = measure.largest_batch(model, mask, measure.MARGIN * measure.device_memory(), bf16_is_native())
    batch = max(1, min(each, fitting))
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        batch = max(1, min(batch, int(CPU_STEP_MACS / step_macs(model, mask, 1))))
    macs = step_macs(model, mask, batch)
    measured = measure.measure_step(model, mask, batch, steps=5 if on_gpu or 10 * macs < CPU_STEP_MACS else 1)
    if not measured["fits"]:
        return Outcome(
            "failed", f"a step of {model.size} with {counted(batch, 'clip')} does not fit into the memory of this device"
        )
    seconds = measured["seconds_per_step"]
    figure = (
        f"{speed(batch / seconds)}: {seconds:.3g} s per step of {counted(batch, 'clip')}, {macs / seconds / 1e9:,.3g} G "
        f"multiply-accumulates per second, {measured['peak_gib']:.1f} GiB"
    )
    if fitting >= each:
        return Outcome("ok", figure, rate=batch / seconds)
    figure += (
        f"; by an estimate, a step with {counted(each, 'clip')} does not fit into the memory of this device, only one with "
        f"{fitting}"
    )
    # The estimate does not include what these two save.
    result: Literal["warning", "failed"] = "warning" if compute.checkpoint_activations or compute.launch else "failed"
    return Outcome(result, figure, rate=batch / seconds)


def data_loader(recipe: "Recipe", device_rate: float) -> Outcome:
    """Measure the clips per second of the recipe's loader. It must be faster than the device that it serves."""
    import torch

    # Trainings that share a device need fewer clips each.
    jobs = 1 if recipe.compute.own_devices else _jobs_here(recipe)
    required = device_rate * min(1.0, max(1, torch.cuda.device_count()) / jobs)
    rate = loader_rate(recipe)
    figure = f"{speed(rate)} with {counted(recipe.compute.workers, 'worker')}"
    if math.isnan(required):
        return Outcome("warning", f"{figure}; how many the device needs is not known", "fix the training step first", rate)
    return at_least(rate, required, MARGIN, f"{figure}; the device needs {speed(required)}", rate)


def loader_rate(recipe: "Recipe") -> float:
    """Return the clips per second of the recipe's pre-training loader.

    Embedded data that is not written yet is replaced by noise of the same size.
    """
    from vmae_lab.data.dataset import load_clips
    from vmae_lab.lab.launcher import process_count
    from vmae_lab.lab.stages import pretrain_stage
    from vmae_lab.training import dataloader
    from vmae_lab.training.tasks.pretrain import PretrainTask

    data, workers = recipe.data, recipe.compute.workers
    # Small batches, so that a slow loader gives some within the time. Repeats share a decoded clip, so they stay together.
    rows = min(max(1, recipe.pretrain.batch_size // process_count(recipe.compute.launch)), max(8, recipe.pretrain.repeats))
    settings = recipe.pretrain.model_copy(update={"batch_size": rows})
    videos = pretrain_stage(recipe, recipe.seeds[0]).embedded_videos
    with tempfile.TemporaryDirectory() as folder, fixed_threads(recipe.compute.threads):
        if videos and not videos.written:
            clips = noise_clips(data, Path(folder))
        else:
            clips = load_clips(data, "pretrain", data.pretrain_sources, recipe.compute.processes)
        task = PretrainTask(recipe.model, recipe.mask, settings, data, clips, seed=0)
        loading = dataloader.plan_loading(task.row_size, range(rows), workers, recipe.compute.prefetch_mib * MIB)
        dataset = dataloader.BatchParts(task.training_batch, range(rows), loading.parts)
        count, started = 0, 0.0
        # Steps without an end: the numbers of all parts must fit into a Python index.
        steps = range(sys.maxsize // loading.parts)
        with closing(dataloader.data_loader(dataset, steps, loading, pin_memory=False)) as batches:
            for count, _ in enumerate(batches, 1 - max(1, workers)):  # the first batch of each worker includes its start
                now = time.perf_counter()
                if count == 0:
                    started = now
                elif count > 0 and now - started > LOADER_S:
                    break
        return rows * count / (now - started)
