"""Training copies of videos for fast random access: small H.264 files with many key frames, upright, without sound.

Decoding full-size frames takes nearly all the time of a data loader, and a clip needs all frames since the last key frame. The
copies have the frames of the originals at the same times, so labels, splits, boxes (in fractions of the frame) and segments (in
seconds) stay valid. The first frame is at time 0, as frames are counted everywhere in this package.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath

import av
import numpy as np
import pandas as pd
from PIL import Image
from pydantic import Field

from vmae_lab.data.check import content_key
from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.decoders import SEEKING, Decoded
from vmae_lab.data.decoding.inspection import OFF, Inspection
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import ListError, VideoList
from vmae_lab.data.video_lists.formats import write_list
from vmae_lab.utils.atomic_io import atomic_write, make_folder, read_json, storing_in, write_json
from vmae_lab.utils.counts import counted, size_text
from vmae_lab.utils.errors import first_of
from vmae_lab.utils.journal import append_to_journal, read_journal
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.settings import Settings

LIST, MANIFEST, FAILURES = "videos.csv", "manifest.csv", "failures.csv"
SETTINGS, JOURNAL = "transcode.json", "transcode.jsonl"
TIME_BASE = Fraction(1, 90_000)  # of the copies, in seconds
LONGEST_NAME = 240  # bytes; file systems allow 255, and a temporary file has a longer name
SAMPLED = 8  # frames of a video whose quality is measured, at most
HIGHEST_PSNR = 100.0  # stands for equal frames


class TranscodeSettings(Settings):
    """The format of the copies."""

    short_side: int = Field(320, ge=16, multiple_of=2, description="largest short side in pixels; small videos keep theirs")
    key_frames: int = Field(16, ge=1, description="frames from one key frame to the next")
    crf: int = Field(20, ge=0, le=51, description="quality of x264: a smaller number is better and needs more space")

    @property
    def options(self) -> dict[str, str]:
        """Options of x264.

        Three of four frames are B-frames that no other frame needs, so a reader can leave out those that it does not want.
        Without CABAC and deblocking, decoding is faster and files are somewhat larger. Without `no-mbtree`, about one of 1,000
        encodings of a video whose sides are not multiples of 16 has other bytes.
        """
        gop = f"keyint={self.key_frames}:min-keyint={self.key_frames}:scenecut=0:open-gop=0:no-mbtree=1"
        b_frames = "bframes=3:b-adapt=0:b-pyramid=none:weightb=0"
        return {"preset": "veryfast", "tune": "fastdecode", "crf": str(self.crf), "x264-params": f"{gop}:{b_frames}"}


@dataclass(frozen=True)
class Copy:
    """The result for one video: a copy, or why there is none. `status` is ok, or that of a check: damaged or failed."""

    status: str
    cause: str = ""
    codec: str = ""  # of the original
    frames: int = 0
    seconds: float = 0.0  # from the first to the last frame
    width: int = 0
    height: int = 0
    original_bytes: int = 0
    bytes: int = 0
    psnr: float = 0.0  # in dB, of sampled frames against the resized originals
    lowest_psnr: float = 0.0
    time_error_s: float = 0.0  # largest difference between a frame's time in the copy and in the original
    decoder: str = ""  # the decoder that reads the copy


def transcode_list(
    videos: VideoList, settings: TranscodeSettings, decoding: VideoSettings, folder: Path, processes: int = 1
) -> pd.DataFrame:
    """Write a copy of every video to `folder`. Return the manifest: one row per video.

    A copy has the path of its original, with the suffix .mp4. Copies of an earlier, interrupted call are kept. Writes LIST (the
    copies, for `read_list` with `folder` as root), MANIFEST, FAILURES and SETTINGS.

    `processes` videos are copied in parallel. Each has a decoder process, which decodes and shrinks its frames, and a thread of
    this process, which encodes them and compares the copy with the original.

    Raises ListError for folders of frames, for shards, and if a copy would overwrite a video of the list; StorageError.
    """
    if (videos.table.total >= 0).any() or "offset" in videos.table:
        raise ListError(f"{videos.root}: only video files can be transcoded, not folders of frames or shards; pack the copies")
    make_folder(folder)
    clips = clips_of({"transcoded": (videos, "")}, decoding, processes)
    files = [clips.file(index) for index in range(len(clips))]
    names = copy_names(videos.table["path"])
    paths = [folder / name for name in names]
    if overwritten := {os.path.realpath(path) for path in paths} & {os.path.realpath(file.path) for file in files}:
        raise ListError(
            f"{folder}: copies would overwrite videos of the list ({first_of(sorted(overwritten))}); use another folder"
        )
    _keep_settings(folder / SETTINGS, settings)
    keys = [content_key(file) for file in files]
    copies = {key: Copy(**row) for key, row in read_journal(folder / JOURNAL).items()}
    todo = [i for i, (key, path) in enumerate(zip(keys, paths, strict=True)) if not _is_done(copies.get(key), path)]
    print(f"{counted(len(files), 'video')}, {len(files) - len(todo)} already transcoded; {counted(processes, 'process')}")
    bar = Progress(total=len(todo), desc="transcoding", unit="videos")
    with bar:
        requests = ((files[index], paths[index], settings) for index in todo)
        written = 0
        for done, (index, result) in enumerate(zip(todo, clips.decoders.map(_transcode, requests), strict=True), 1):
            copy = Copy("failed", result.cause, result.codec) if isinstance(result, VideoError) else result
            copies[keys[index]] = copy
            append_to_journal(folder / JOURNAL, keys[index], asdict(copy))
            written += copy.bytes
            bar.set_postfix_str(f"about {size_text(written / done * len(todo))} in total", refresh=False)
            bar.update()
    clips.decoders.close()
    table = pd.DataFrame([asdict(copies[key]) for key in keys], index=videos.table.index)
    table.insert(0, "path", names)
    table.insert(1, "original", videos.table["path"])
    _write(table, videos, folder)
    return table


def copy_names(paths: Iterable[str]) -> list[str]:
    """Return the paths of copies: those of the originals with the suffix .mp4. It is added if two copies had the same name."""
    normal = [os.path.normpath(path) for path in paths]
    named = [str(PurePosixPath(path).with_suffix(".mp4")) for path in normal]
    repeated = Counter(named)
    return [name if repeated[name] == 1 else f"{path}.mp4" for name, path in zip(named, normal, strict=True)]


def _keep_settings(path: Path, settings: TranscodeSettings) -> None:
    """Store the settings. Raises ListError if the folder has copies with other settings."""
    described = {**settings.model_dump(), "codec": "libx264", "options": settings.options}
    if not path.exists():
        versions = {"av": av.__version__, **{name: ".".join(map(str, value)) for name, value in av.library_versions.items()}}
        write_json(path, {"settings": described, "versions": versions})
        return
    found = read_json(path)["settings"]
    if found != described:
        changed = sorted(name for name in described if found.get(name) != described[name])
        raise ListError(
            f"{path.parent} has copies with other settings ({', '.join(changed)}); use another folder, or delete it"
        )


def _is_done(copy: Copy | None, path: Path) -> bool:
    """Return whether the copy is complete. Failed videos are tried again, since the limits of decoding may have changed."""
    return copy is not None and copy.status == "ok" and path.exists() and path.stat().st_size == copy.bytes


def _write(table: pd.DataFrame, videos: VideoList, folder: Path) -> None:
    good = table[table.status == "ok"]
    listed = good[["path", "frames", "bytes", "decoder"]]
    if videos.classes:
        listed = listed.assign(label=videos.table["label"][good.index])
    write_list(folder / LIST, listed, videos.classes)
    write_list(folder / MANIFEST, table.drop(columns="decoder"))
    broken = table[table.status != "ok"].assign(path=table["original"], line=videos.table["line"])
    write_list(folder / FAILURES, broken[["path", "line", "status", "codec", "cause"]])


# ----------------------------------------------------------------------------------------------------------------------
# One video


@dataclass
class _Encoded:
    """What is known of a copy while it is written."""

    width: int = 0
    height: int = 0
    stamps: list[int] = field(default_factory=list)  # times of the frames, in units of TIME_BASE
    time_error_s: float = 0.0
    sample: dict[int, np.ndarray] = field(default_factory=dict)  # frame number -> pixels, as encoded
    every: int = 1  # frames from one sampled frame to the next

    def add(self, pixels: np.ndarray, seconds: float) -> int:
        """Add a frame at `seconds` since the first. Return its time in the copy: increasing from frame to frame."""
        number = len(self.stamps)
        stamp = round(seconds / TIME_BASE)
        if self.stamps:
            stamp = max(stamp, self.stamps[-1] + 1)
        self.stamps.append(stamp)
        self.time_error_s = max(self.time_error_s, abs(float(stamp * TIME_BASE) - seconds))
        if number % self.every == 0:
            self.sample[number] = pixels
        if len(self.sample) > SAMPLED:  # the number of frames is not known before the end
            self.every *= 2
            self.sample = {number: pixels for number, pixels in self.sample.items() if number % self.every == 0}
        return stamp


def _transcode(decoder: DecoderProcess, request: tuple[VideoFile, Path, TranscodeSettings]) -> Copy:
    """Write the copy of a video and compare it with the original. Raises VideoError, StorageError."""
    file, path, settings = request
    found = decoder.inspect(file)
    if found.status != "ok":
        return Copy(found.status, found.cause, found.codec)
    with storing_in(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise VideoError(file.path, f"its name is too long; names of copies have at most {LONGEST_NAME} bytes", found.codec)
    with atomic_write(path) as temporary:
        encoded = _encode(decoder.stream(file, settings.short_side), temporary, found, settings)
        if len(encoded.stamps) != found.frames:
            cause = f"only {len(encoded.stamps)} of its {counted(found.frames, 'frame')} could be decoded"
            raise VideoError(file.path, cause, found.codec)
        read = _read_back(decoder, temporary, encoded, file.path)
        size = temporary.stat().st_size
    quality = [_psnr(frame, encoded.sample[number]) for frame, number in zip(read.frames, read.indices, strict=True)]
    return Copy(
        "ok", "", found.codec, found.frames, round(float(encoded.stamps[-1] * TIME_BASE), 6), encoded.width, encoded.height,
        found.bytes, size, round(float(np.mean(quality)), 2), round(min(quality), 2), round(encoded.time_error_s, 6),
        read.info.decoder,
    )  # fmt: skip


def _encode(chunks: Iterable[Decoded], path: Path, found: Inspection, settings: TranscodeSettings) -> _Encoded:
    """Encode the frames of a video into an MP4 file."""
    encoded = _Encoded()
    rate = Fraction(found.fps).limit_denominator(1001) or Fraction(25)
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=rate, options=settings.options)
        # The same bytes for any number of cores. Videos are encoded in parallel.
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = stream.time_base = TIME_BASE
        stream.pix_fmt = "yuv420p"
        start = 0.0
        for chunk in chunks:
            if not encoded.stamps:  # 4:2:0 needs even sizes
                encoded.height, encoded.width = (side + side % 2 for side in chunk.frames.shape[1:3])
                stream.height, stream.width = encoded.height, encoded.width
                start = chunk.times[0] if chunk.times else 0.0
            for index, pixels in enumerate(chunk.frames):
                seconds = chunk.times[index] - start if chunk.times else float(len(encoded.stamps) / rate)
                if pixels.shape[:2] != (encoded.height, encoded.width):
                    picture = Image.fromarray(pixels).resize((encoded.width, encoded.height), Image.Resampling.BILINEAR)
                    pixels = np.asarray(picture)
                # The encoder would convert with several threads per video.
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", threads=1)
                frame.pts, frame.time_base = encoded.add(pixels, seconds), TIME_BASE
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return encoded


def _read_back(decoder: DecoderProcess, path: Path, encoded: _Encoded, original: str) -> Decoded:
    """Read the sampled frames of a copy. Raises VideoError if the number of frames or their times differ."""
    with av.open(str(path), format="mp4") as copy:
        base = copy.streams.video[0].time_base or TIME_BASE
        stamps = sorted(packet.pts * base for packet in copy.demux(video=0) if packet.size and packet.pts is not None)
    if stamps != [stamp * TIME_BASE for stamp in encoded.stamps]:
        raise VideoError(original, "its copy has other times; this is an error of the encoder")

    def choose(frames: int) -> list[int]:
        if frames != len(encoded.stamps):
            raise IndexError(
                f"the copy has {counted(frames, 'frame')} instead of {len(encoded.stamps)}; this is an error of the encoder"
            )
        return sorted(encoded.sample)

    file = VideoFile(str(path))
    if decoder.seeks_exactly(file):  # faster than decord, since frames that are not wanted can be left out
        file = replace(file, decoder=SEEKING, frames=len(stamps), bytes=path.stat().st_size)
    return decoder.read(file, choose)


def _psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two frames, in dB."""
    error = np.mean((first.astype(np.float64) - second) ** 2)
    return float(min(10 * np.log10(255**2 / error), HIGHEST_PSNR)) if error else HIGHEST_PSNR


def changed_times(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a manifest whose originals have times that do not increase, so that the copy's times differ."""
    return table[table.time_error_s > OFF]
