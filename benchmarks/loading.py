"""Clips per second from video files on one core, loaded in the usual way and in ours, and the cores that a device needs.

Run `python benchmarks/loading.py --out reports/benchmarks`. The usual way decodes full frames for each sample, crops and
resizes frame by frame with Pillow, and stacks and normalizes on the CPU. Our way decodes once for k samples, resizes next to
the decoder, crops whole uint8 clips, and leaves normalization to the device. It is measured with and without the separate
decoder process that protects a run from broken files, and from the copies that `vmae-lab data transcode` writes, as files and
in shards. All ways use the same windows. The script also compares augmentation for fine-tuning with timm's on each frame,
reads long videos in formats that decord does not read exactly, and measures memory over 2,000 opened files and memory of a
loader with 8 workers.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import decord
import numpy as np
import pandas as pd
import psutil
import torch
from parts.timing import timed as seconds_of
from parts.written import machine_words, write_benchmark
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.decoding import VideoFile, VideoSettings, read_video
from vmae_lab.data.decoding.decoders import SEEKING
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.frame_sampling import Dense
from vmae_lab.data.rand_augment import FILL
from vmae_lab.data.shards import pack
from vmae_lab.data.transcode import LIST, TranscodeSettings, transcode_list
from vmae_lab.data.transforms import SCALES, FinetuneAugment, finetune_augment, multi_scale_crop
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import ListSettings, read_list
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import BatchParts
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.seeding import library_draws, numpy_generator

SIDE, FRAMES, STRIDE = 224, 16, 4
MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN)
STD = torch.tensor(IMAGENET_DEFAULT_STD)
SHORT = int(np.ceil(SIDE / min(SCALES)))
REPEATS = (1, 2, 4)  # samples per decoded clip; the recipes use 2 for fine-tuning and 4 for pre-training
LONG = {  # file name -> encoder and frames from one key frame to the next
    "long.avi": ("mpeg4", 12),
    "long.ts": ("mpeg2video", 12),
    "long.wmv": ("wmv2", 12),
    "long.mp4": ("libsvtav1", 250),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--reads", type=int, default=12, help="number of reads per way, alternating")
    arguments.add_argument("--opens", type=int, default=2000, help="number of opened files for the memory table")
    arguments.add_argument("--long", type=int, default=1500, help="frames of a long video; also 2 and 4 times as many")
    arguments.add_argument("--workers", type=int, default=8, help="workers of the loader whose memory is measured; 0: none")
    arguments.add_argument("--pretrain-rate", type=float, default=2000, help="clips/s that a device pre-trains on")
    arguments.add_argument("--finetune-rate", type=float, default=300, help="samples/s that a device fine-tunes on")
    arguments.add_argument("--out", type=Path, help="folder for the tables")
    options = arguments.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        originals = Path(folder, "originals")
        originals.mkdir()
        sizes = {f"{h}p": write_video(originals / f"{h}.mp4", w, h).name for w, h in ((320, 240), (1280, 720))}
        copies = transcoded(originals, Path(folder, "copies"))
        files = {size: files_of(originals, Path(folder, "copies"), name) for size, name in sizes.items()}
        speed, augment = speed_table(files, options.reads), augment_table(options.reads)
        rates = {"pre-training": (4, options.pretrain_rate), "fine-tuning": (2, options.finetune_rate)}
        words = f"Clips of {FRAMES} x {SIDE} x {SIDE}, stride {STRIDE}, of H.264 with 300 frames or as listed; one core."
        words = f"{words} {options.reads} reads. {machine_words()}."
        tables = {
            "Loading clips": speed,
            "Copies of data transcode": copies,
            "Augmentation for fine-tuning": augment,
            "Cores that a device needs": cores_table(speed, augment, rates),
            "Long videos": long_table(Path(folder), options.long, options.reads),
            "Memory of a decoder process": open_table(files["240p"]["original"], options.opens),
        }
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        if options.workers:
            tables["Memory of a loader"] = loader_memory(Path(folder), originals / sizes["720p"], options.workers)
        for title, table in tables.items():
            name = "loading" if title == "Loading clips" else f"loading_{title.split()[0].lower()}"
            if title.startswith("Memory"):
                name = f"loading_memory_{title.split()[-1]}"
            write_benchmark(options.out, name, title, words, table)


def write_video(
    path: Path, width: int, height: int, frames: int = 300, codec: str = "libx264", key_frames: int = 250
) -> Path:  # fmt: skip
    """Write a smooth moving texture. The defaults of x264 have a key frame every 250 frames."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (3, height // 16 + 40, width // 16 + 40), dtype=np.uint8)
    large = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None].float(), scale_factor=16, mode="bilinear")[0]
    texture = large.permute(1, 2, 0).to(torch.uint8).numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", key_frames
        for t in range(frames):
            y, x = int(160 + 150 * np.sin(t / 40)), int(160 + 150 * np.cos(t / 55))
            picture = np.ascontiguousarray(texture[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    if hasattr(os, "sched_setscheduler"):  # SVT-AV1 gives this thread real-time priority if root runs it
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def files_of(originals: Path, copies: Path, name: str) -> dict[str, VideoFile]:
    """Return a video as an original, as a copy, and as a copy in a shard."""
    listed = read_list(copies / LIST, copies)
    listed = replace(listed, table=listed.table[listed.table.path == name].reset_index(drop=True))
    shards = copies.with_name(f"shards-{name}")
    packed = read_list(pack(listed, shards), shards)
    copy, part = (clips_of({"one": (videos, "")}, VideoSettings()).file(0) for videos in (listed, packed))
    return {"original": VideoFile(str(originals / name)), "copy": copy, "copy in a shard": part}


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


def our_way(file: VideoFile, repeats: int, read: int, decoder: DecoderProcess | None) -> None:
    """Decode once for all samples: uint8 `(3, T, H, W)` each."""
    choose = window(read)
    decoded = decoder.read(file, choose, SHORT) if decoder else read_video(file, choose, VideoSettings(), SHORT)
    video = torch.from_numpy(decoded.frames).permute(3, 0, 1, 2)
    for repeat in range(repeats):
        multi_scale_crop(video, SIDE, numpy_generator(read, "crop", repeat))


def window(read: int) -> Dense:
    return Dense(FRAMES, STRIDE, numpy_generator(0, "window", read).random())


def transcoded(originals: Path, copies: Path) -> pd.DataFrame:
    """Write copies of the videos of a folder. Return their sizes and quality."""
    table = transcode_list(read_list(".", originals), TranscodeSettings(), VideoSettings(), copies)
    return table[["original", "width", "height", "original_bytes", "bytes", "psnr", "lowest_psnr"]]


def speed_table(files: dict[str, dict[str, VideoFile]], reads: int) -> pd.DataFrame:
    decoder = DecoderProcess(VideoSettings())
    rows = []
    for size, kinds in files.items():
        for repeats in REPEATS:
            original = kinds["original"]
            ways: dict[str, Callable[[int], None]] = {
                "usual": lambda read, f=original, k=repeats: usual_way(Path(f.path), k, read),
                "ours, same process": lambda read, f=original, k=repeats: our_way(f, k, read, None),
            }
            for kind, file in kinds.items():
                ways[f"ours, {kind}"] = lambda read, f=file, k=repeats: our_way(f, k, read, decoder)
            seconds = timed(ways, reads)
            rows += [[size, repeats, way, repeats / s, seconds["usual"] / s] for way, s in seconds.items()]
    decoder.close()
    return pd.DataFrame(rows, columns=["file", "samples per decoded clip (k)", "way", "clips/s", "speedup"])


def cores_table(speed: pd.DataFrame, augment: pd.DataFrame, rates: dict[str, tuple[int, float]]) -> pd.DataFrame:
    """Return the cores that load as many samples per second as a device needs, per recipe and kind of file."""
    augmentation = augment[augment.way == "ours, whole clip"]["ms per sample"].iloc[0] / 1000
    rows = []
    for recipe, (repeats, rate) in rates.items():
        for row in speed[(speed.iloc[:, 1] == repeats) & (speed.way != "ours, same process")].itertuples(index=False):
            seconds = 1 / row[3] + (augmentation if recipe == "fine-tuning" else 0)
            rows.append([recipe, rate, repeats, row.file, row.way, 1 / seconds, int(np.ceil(rate * seconds))])
    names = ["recipe", "samples/s of the device", "k", "file", "way", "samples/s per core", "cores"]
    return pd.DataFrame(rows, columns=names)


def long_table(folder: Path, frames: int, reads: int) -> pd.DataFrame:
    """Time reading all frames of long videos, and a clip of them in order and from the last key frame."""
    decoder, rows = DecoderProcess(VideoSettings(timeout_s=600)), []
    for name, (codec, key_frames) in LONG.items():
        lengths = [frames, 2 * frames, 4 * frames]
        taken = []
        for length in lengths:
            path = write_video(folder / name, 320, 240, length, codec, min(key_frames, length // 4))
            checked = VideoFile(str(path), decoder="pyav", frames=length, bytes=path.stat().st_size)
            seeking = replace(checked, decoder=SEEKING)
            assert decoder.seeks_exactly(checked)
            taken.append(seconds_of(lambda file=checked: [len(chunk.frames) for chunk in decoder.stream(file, SHORT)]))
            ways: dict[str, Callable[[int], None]] = {
                way: lambda read, f=file: our_way(f, 1, read, decoder)
                for way, file in (("in order", checked), ("seek", seeking))
            }
            clip = timed(ways, reads)
            exponent = np.polyfit(np.log(lengths), np.log(taken), 1)[0] if len(taken) == len(lengths) else np.nan
            rows.append([f"{codec}, {path.suffix}", length, taken[-1], exponent, 1000 * clip["in order"], 1000 * clip["seek"]])
    decoder.close()
    names = ["video", "frames", "s for all frames", "exponent", "ms per clip, in order", "ms per clip, from a key frame"]
    return pd.DataFrame(rows, columns=names)


def augment_table(reads: int) -> pd.DataFrame:
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
    return pd.DataFrame(rows, columns=["clip", "way", "ms per sample", "speedup"])


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


def open_table(file: VideoFile, opens: int) -> pd.DataFrame:
    decoder, rows = DecoderProcess(VideoSettings()), []
    for done in range(opens + 1):
        decoder.read(file, Dense(2, 1, 0.0), 64)
        if done in (100, opens // 2, opens):
            memory = psutil.Process(decoder.pid).memory_info().rss / 2**20
            rows.append([done, memory, psutil.Process(decoder.pid).num_fds(), psutil.Process().memory_info().rss / 2**20])
    decoder.close()
    return pd.DataFrame(rows, columns=["opened files", "decoder memory, MiB", "open files", "reader memory, MiB"])


def loader_memory(folder: Path, path: Path, workers: int, items: int = 100_000) -> pd.DataFrame:
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
    loader = DataLoader(BatchParts(task.training_batch, range(8)), batch_size=None, sampler=range(40), num_workers=workers)
    peak, start = 0.0, time.perf_counter()
    for _ in loader:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        peak = max(peak, sum(memory_of(process) for process in family))
    seconds = time.perf_counter() - start
    row = {"workers": workers, "videos": items, "batch": "8 clips of 720p, k = 4", "peak unshared memory, MiB": round(peak)}
    return pd.DataFrame([{**row, "clips/s": 320 / seconds}])


def memory_of(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().uss / 2**20
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    main()
