"""Clips per second from video files on one core, loaded in the usual way and in ours: `python benchmarks/loading.py`.

The usual way decodes full frames for each sample, crops and resizes frame by frame with Pillow, and stacks and normalizes on
the CPU. Our way decodes once for k samples, resizes next to the decoder, crops whole uint8 clips, and leaves normalization to
the device. It is measured with and without the separate decoder process that protects a run from broken files, and from the
copies that `vmae-lab data transcode` writes. All ways use the same windows. The script also compares augmentation for
fine-tuning with timm's on each frame, and measures memory over 2,000 opened files and memory of a loader with 8 workers.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import decord
import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from tabulate import tabulate
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.decoding import VideoFile, VideoSettings, read_video
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.frame_sampling import Dense
from vmae_lab.data.rand_augment import FILL
from vmae_lab.data.transcode import TranscodeSettings, transcode_list
from vmae_lab.data.transforms import SCALES, FinetuneAugment, finetune_augment, multi_scale_crop
from vmae_lab.data.video_lists import ListSettings, read_list
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import TaskDataset
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.seeding import library_draws, numpy_generator

SIDE, FRAMES, STRIDE = 224, 16, 4
MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN)
STD = torch.tensor(IMAGENET_DEFAULT_STD)
SHORT = int(np.ceil(SIDE / min(SCALES)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--reads", type=int, default=12, help="number of reads per way, alternating")
    arguments.add_argument("--opens", type=int, default=2000, help="number of opened files for the memory table")
    options = arguments.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{w}x{h}": write_video(Path(folder, f"{h}.mp4"), w, h) for w, h in ((320, 240), (1280, 720))}
        print(f"H.264, 300 frames; clips of {FRAMES} x {SIDE} x {SIDE}, stride {STRIDE}; one core; {options.reads} reads\n")
        copies = transcoded(Path(folder))
        print(speed_table(files, copies, options.reads))
        print("\n" + augment_table(options.reads))
        print("\n" + open_table(files["320x240"], options.opens))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        print("\n" + loader_memory(Path(folder), files["1280x720"]))


def write_video(path: Path, width: int, height: int, frames: int = 300) -> Path:
    """Write a smooth moving texture as H.264 with the encoder's defaults (a key frame every 250 frames)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (3, height // 16 + 40, width // 16 + 40), dtype=np.uint8)
    large = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None].float(), scale_factor=16, mode="bilinear")[0]
    texture = large.permute(1, 2, 0).to(torch.uint8).numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            y, x = int(160 + 150 * np.sin(t / 40)), int(160 + 150 * np.cos(t / 55))
            picture = np.ascontiguousarray(texture[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def usual_way(path: Path, repeats: int, read: int) -> None:
    """Decode the window for each sample: float32 `(3, T, H, W)` each."""
    for repeat in range(repeats):
        rng = numpy_generator(read, "crop", repeat)
        reader = decord.VideoReader(str(path), num_threads=1)
        frames = reader.get_batch(list(window(read)(len(reader)))).asnumpy()
        height, width = frames.shape[1:3]
        tall, wide = (round(min(height, width) * SCALES[rng.integers(len(SCALES))]) for _ in range(2))
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        box = (left, top, left + wide, top + tall)
        crops = [Image.fromarray(f).crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for f in frames]
        video = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).float().div(255)
        ((video - MEAN) / STD).permute(3, 0, 1, 2).contiguous()


def our_way(path: Path, repeats: int, read: int, decoder: DecoderProcess | None) -> None:
    """Decode once for all samples: uint8 `(3, T, H, W)` each."""
    file, choose = VideoFile(str(path)), window(read)
    decoded = decoder.read(file, choose, SHORT) if decoder else read_video(file, choose, VideoSettings(), SHORT)
    video = torch.from_numpy(decoded.frames).permute(3, 0, 1, 2)
    for repeat in range(repeats):
        multi_scale_crop(video, SIDE, numpy_generator(read, "crop", repeat))


def window(read: int) -> Dense:
    return Dense(FRAMES, STRIDE, numpy_generator(0, "window", read).random())


def transcoded(folder: Path) -> Path:
    """Write copies of the videos of a folder and print their size and quality. Return the folder of the copies."""
    out = folder / "copies"
    table = transcode_list(read_list(".", folder), TranscodeSettings(), VideoSettings(), out)
    columns = ["original", "width", "height", "original_bytes", "bytes", "psnr", "lowest_psnr"]
    print(table[columns].to_markdown(index=False) + "\n")
    return out


def speed_table(files: dict[str, Path], copies: Path, reads: int) -> str:
    decoder = DecoderProcess(VideoSettings())
    rows = []
    for size, path in files.items():
        for repeats in (1, 4):
            ways: dict[str, Callable[[int], None]] = {
                "usual": lambda read, p=path, k=repeats: usual_way(p, k, read),
                "ours, same process": lambda read, p=path, k=repeats: our_way(p, k, read, None),
                "ours, decoder process": lambda read, p=path, k=repeats: our_way(p, k, read, decoder),
                "ours, decoder process, copy": lambda read, p=copies / path.name, k=repeats: our_way(p, k, read, decoder),
            }
            seconds = timed(ways, reads)
            base = seconds["usual"]
            rows += [[size, repeats, way, repeats / s, base / s] for way, s in seconds.items()]
    decoder.close()
    heads = ["file", "samples per decoded clip (k)", "way", "clips/s", "speedup"]
    return tabulate(rows, headers=heads, floatfmt=("", "", "", ".1f", ".2f"))


def augment_table(reads: int) -> str:
    """Time the augmentation for fine-tuning of a clip, with RandAugment on each frame as in timm and on the whole clip."""
    settings = FinetuneAugment()
    rows = []
    plain = settings.model_copy(update={"rand_augment": None})
    for height, width in ((256, 340), (340, 604)):
        noise = torch.rand(FRAMES, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
        pixels = torch.nn.functional.interpolate(255 * noise, (height, width), mode="bilinear")
        video = pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().permute(3, 0, 1, 2)  # as decoded

        def frame_by_frame(read: int, video: torch.Tensor = video) -> None:
            frames = [np.asarray(timm_way(frame.numpy(), read)) for frame in video.permute(1, 2, 3, 0)]
            finetune_augment(torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2), SIDE, plain, read)

        ways: dict[str, Callable[[int], None]] = {
            "timm, frame by frame": frame_by_frame,
            "ours, whole clip": lambda read, video=video: finetune_augment(video, SIDE, settings, read),
        }
        seconds = timed(ways, 4 * reads, np.mean)  # the operations of a read differ much in time
        base = seconds["timm, frame by frame"]
        rows += [[f"{FRAMES} x {height} x {width}", way, 1000 * s, base / s] for way, s in seconds.items()]
    return tabulate(rows, headers=["clip", "augmentation for fine-tuning", "ms per sample", "speedup"], floatfmt=".1f")


def timm_way(frame: np.ndarray, seed: int) -> Image.Image:
    options = {"translate_const": int(min(frame.shape[:2]) * 0.45), "img_mean": FILL}
    with library_draws(seed):
        return rand_augment_transform(FinetuneAugment().rand_augment, options)(Image.fromarray(frame))


def timed(
    ways: dict[str, Callable[[int], None]], reads: int, middle: Callable[[list[float]], float] = np.median
) -> dict[str, float]:
    """Return the median (or mean) seconds of a read per way. The ways alternate, so that other load affects all."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for read in range(-1, reads):  # the first read is a warm-up
        for way, run in ways.items():
            start = time.perf_counter()
            run(max(read, 0))
            if read >= 0:
                taken[way].append(time.perf_counter() - start)
    return {way: float(middle(times)) for way, times in taken.items()}


def open_table(path: Path, opens: int) -> str:
    decoder, rows = DecoderProcess(VideoSettings()), []
    for done in range(opens + 1):
        decoder.read(VideoFile(str(path)), Dense(2, 1, 0.0), 64)
        if done in (100, opens // 2, opens):
            memory = psutil.Process(decoder.pid).memory_info().rss / 2**20
            rows.append([done, memory, psutil.Process(decoder.pid).num_fds(), psutil.Process().memory_info().rss / 2**20])
    decoder.close()
    return tabulate(rows, headers=["opened files", "decoder memory, MiB", "open files", "reader memory, MiB"], floatfmt=".0f")


def loader_memory(folder: Path, path: Path, workers: int = 8, items: int = 100_000) -> str:
    """Return the peak unshared memory of all processes of a loader on a list of many videos (one file with many names)."""
    links = [folder / f"link-{i:03d}.mp4" for i in range(1000)]
    for link in links:
        os.link(path, link)
    names = [f"link-{i:03d}.mp4 {j} -1" for j in range(items // len(links)) for i in range(len(links))]
    (folder / "list.txt").write_text("\n".join(names))
    data = DataSettings(lists=ListSettings(root=str(folder), pretrain="list.txt", classes=2), stride=STRIDE)
    settings = PretrainSettings(steps=100, batch_size=8, lr=1e-3, repeats=4)
    task = PretrainTask(
        ModelSettings(size="base", frames=FRAMES, side=SIDE), MaskSettings(encoder_ratio=0.9), settings, data,
        load_clips(data, "pretrain"), seed=0,
    )  # fmt: skip
    loader = DataLoader(TaskDataset(task, range(8)), batch_size=None, sampler=range(40), num_workers=workers)
    peak, start = 0.0, time.perf_counter()
    for _ in loader:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        peak = max(peak, sum(memory_of(process) for process in family))
    seconds = time.perf_counter() - start
    table = pd.DataFrame([{"workers": workers, "videos": items, "batch": "8 clips of 720p, k = 4", "peak, MiB": round(peak)}])
    return table.to_markdown(index=False) + f"\n(unshared memory of all processes with this one; {320 / seconds:.1f} clips/s)"


def memory_of(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().uss / 2**20
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    main()
