"""`vmae-lab data …`: check, transcode and pack the videos of a list, merge the Kinetics annotations."""

import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from vmae_lab.cli.parameters import NOTHING
from vmae_lab.utils.counts import counted, size_text

if TYPE_CHECKING:
    from vmae_lab.data.decoding import VideoSettings
    from vmae_lab.data.video_lists import VideoList

commands = typer.Typer(
    no_args_is_help=True,
    help="Check, transcode, pack and merge lists of videos.",
    epilog="\b\nExamples:\n  vmae-lab data check . --root path/to/videos --labelled\n"
    "  vmae-lab data pack train.csv shards --root path/to/videos --labelled\n  vmae-lab data COMMAND --help",
)

Listed = Annotated[
    str, typer.Argument(metavar="LIST", help="A list file (official, csv, tsv, parquet), a folder, a glob, or one video.")
]
Root = Annotated[str, typer.Option(help="The folder that the paths of the list are relative to. Default: the current folder.")]
Labelled = Annotated[bool, typer.Option("--labelled", help="The list has labels. In a folder, its subfolders are the classes.")]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow links to folders, and to files outside the root.")]
FRAMES_NAMED = "img_{:05d}.jpg"
FramePattern = Annotated[str, typer.Option(help="Pattern of file names in folders of frames.")]

Processes = Annotated[int, typer.Option(min=1, help="Number of decoder processes.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Largest frame in pixels. Decoders need about 100 bytes per pixel.")]
MemoryMiB = Annotated[int, typer.Option(min=256, help="Memory limit of a decoder process (Linux only).")]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Time limit of a read in seconds. A slower decoder is killed.")]
PROCESSES = os.cpu_count() or 1
# The defaults of VideoSettings, repeated because the decoders that its module imports would delay `--help`.
MAX_PIXELS = 4096 * 2304
MEMORY_MIB = 2048
TIMEOUT_S = 60.0
CRF = 20  # the default of TranscodeSettings

FIELDS = ("youtube_id", "time_start", "time_end", "source", "label", "split")
ANNOTATIONS = ("--k400", "--k600", "--k700")
Annotations = Annotated[list[Path], typer.Option(metavar="CSV...", help="Annotation CSVs, e.g. of training and validation.")]


class TakesLists(TyperCommand):
    """A command whose annotation options take several files. typer takes one file per option, so options are repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeated: list[str] = []
        option = ""
        for before, word in pairwise(["", *args]):
            if word.startswith("-"):
                option = word if word in ANNOTATIONS else ""
            elif option and before != option:
                repeated.append(option)
            repeated.append(word)
        return super().parse_args(ctx, repeated)


def named_after_list(listed: str, root: str, ending: str) -> Path:
    """Return a folder in the current one that is named after the list, or after the root if the list is a glob."""
    path = Path(root, listed)
    return Path(f"{(path if path.exists() else Path(root)).resolve().name}.{ending}")


def open_list(listed: str, root: str, labelled: bool, follow_links: bool) -> "VideoList":
    """Return the videos of a list. Prints which files of a folder are skipped because they are not videos. Raises ListError."""
    from vmae_lab.data.video_lists import read_list

    videos = read_list(listed, root, labelled, follow_links=follow_links)
    if videos.skipped:
        print(f"skipped: {videos.skipped}")
    return videos


@commands.command(epilog="\b\nExample:\n  vmae-lab data check . --root path/to/videos --labelled")
def check(
    listed: Listed,
    root: Root = ".",
    labelled: Labelled = False,
    follow_links: FollowLinks = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: <list>.check here.")] = None,
    processes: Processes = PROCESSES,
    frame_pattern: FramePattern = FRAMES_NAMED,
    keep_damaged: Annotated[bool, typer.Option("--keep-damaged", help="Also list damaged videos as readable.")] = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    memory_mib: MemoryMiB = MEMORY_MIB,
    timeout_s: TimeoutS = TIMEOUT_S,
) -> None:
    """Decode every video of a list once. Write a report and a list of the readable videos.

    The exit status is 1 if any video cannot be read.
    """
    from vmae_lab.data.check import CHECKED, FAILURES, REPORT, check_list
    from vmae_lab.data.decoding import VideoSettings
    from vmae_lab.utils.atomic_io import readable
    from vmae_lab.utils.errors import first_of

    limits = VideoSettings(max_pixels=max_pixels, memory_mib=memory_mib, timeout_s=timeout_s, follow_links=follow_links)
    folder = out or named_after_list(listed, root, "check")
    videos = open_list(listed, root, labelled, follow_links)
    table = check_list(videos, limits, folder, processes, frame_pattern, keep_damaged)
    counts = table.status.value_counts()
    print(", ".join(f"{counts.get(status, 0)} {status}" for status in ("ok", "damaged", "failed")))
    broken = table[table.status != "ok"]
    if len(broken):
        faults = [f"  {readable(path)}: {cause}" for path, cause in zip(broken.path, broken.cause, strict=True)]
        print(first_of(faults, "\n"))
    print(f"readable videos: {folder / CHECKED}\nunreadable videos: {folder / FAILURES}\nreport: {folder / REPORT}")
    if counts.get("ok", 0) < len(table):
        raise typer.Exit(1)


@commands.command(epilog="\b\nExample:\n  vmae-lab data transcode train.csv copies --root path/to/videos --labelled")
def transcode(
    listed: Listed,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the copies.")],
    root: Root = ".",
    labelled: Labelled = False,
    follow_links: FollowLinks = False,
    short_side: Annotated[int, typer.Option(min=16, help="Short side of the copies in pixels, an even number.")] = 320,
    crf: Annotated[int, typer.Option(min=0, max=51, help="Quality of x264. A smaller number is better and larger.")] = CRF,
    processes: Processes = PROCESSES,
    max_pixels: MaxPixels = MAX_PIXELS,
    memory_mib: MemoryMiB = MEMORY_MIB,
    timeout_s: TimeoutS = TIMEOUT_S,
) -> None:
    """Write a small copy of every video of a list that is fast to read at random: H.264 with many key frames.

    A killed command continues where it stopped. The exit status is 1 if any video cannot be read.
    """
    from vmae_lab.data.decoding import VideoSettings

    limits = VideoSettings(max_pixels=max_pixels, memory_mib=memory_mib, timeout_s=timeout_s, follow_links=follow_links)
    _, failed = write_copies(open_list(listed, root, labelled, follow_links), out, short_side, crf, limits, processes)
    if failed:
        raise typer.Exit(1)


def write_copies(
    videos: "VideoList", out: Path, short_side: int, crf: int, limits: "VideoSettings", processes: int
) -> tuple[Path, int]:  # fmt: skip
    """Transcode the videos of a list and print the result. Return the list of the copies and the number of failed videos."""
    from vmae_lab.data.transcode import FAILURES, LIST, MANIFEST, TranscodeSettings, changed_times, transcode_list

    if short_side % 2:
        raise typer.BadParameter("--short-side must be even")
    table = transcode_list(videos, TranscodeSettings(short_side=short_side, crf=crf), limits, out, processes)
    good = table[table.status == "ok"]
    if len(good):
        before, after = size_text(good.original_bytes.sum()), size_text(good.bytes.sum())
        print(f"copies: {len(good)}, {after} instead of {before}; PSNR {good.psnr.mean():.1f} dB")
    if changed := len(changed_times(table)):
        print(f"warning: times that do not increase in {counted(changed, 'original')}, see time_error_s in {MANIFEST}")
    print(f"list of the copies (root {out}): {out / LIST}\nmanifest: {out / MANIFEST}\nunreadable videos: {out / FAILURES}")
    return out / LIST, len(table) - len(good)


@commands.command(epilog="\b\nExample:\n  vmae-lab data pack train.csv shards --root path/to/videos --labelled")
def pack(
    listed: Listed,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    root: Root = ".",
    labelled: Labelled = False,
    follow_links: FollowLinks = False,
    shard_mib: Annotated[
        int, typer.Option(min=1, help="Largest size of a shard in MiB, unless a single video is larger.")
    ] = 512,
    short_side: Annotated[
        int | None, typer.Option(min=16, help="Pack small copies, as `data transcode` writes them into the folder OUT/copies.")
    ] = None,
    processes: Processes = PROCESSES,
) -> None:
    """Write the videos of a list into tar shards (WebDataset), with an index that can be used as a list.

    With --short-side, the exit status is 1 if any video cannot be read.
    """
    from vmae_lab.data.decoding import VideoSettings
    from vmae_lab.data.shards import pack as pack_shards

    videos, failed = open_list(listed, root, labelled, follow_links), 0
    if short_side is not None:
        limits, copies = VideoSettings(follow_links=follow_links), out / "copies"
        small, failed = write_copies(videos, copies, short_side, CRF, limits, processes)
        videos = open_list(str(small.resolve()), str(copies), labelled, follow_links)
    index = pack_shards(videos, out, shard_mib, follow_links, listed)
    print(f"list of the videos in the shards (root {out}): {index}")
    if failed:
        raise typer.Exit(1)


@commands.command(
    cls=TakesLists,
    epilog="\b\nExample:\n  vmae-lab data kinetics710 --k400 k400/train.csv k400/val.csv --k600 k600/train.csv \\\n"
    "    --k700 k700/train.csv k700/val.csv --out k710",
)
def kinetics710(
    out: Annotated[Path, typer.Option(help="Folder for train.csv, val.csv, pretrain.csv, the classes and the conversions.")],
    k400: Annotations = NOTHING,
    k600: Annotations = NOTHING,
    k700: Annotations = NOTHING,
    classes: Annotated[
        Path | None, typer.Option(help="A file with the 710 class names in label order, one per line. Default: sorted.")
    ] = None,
    path_pattern: Annotated[
        str, typer.Option(help=f"File name of a video, with the fields {', '.join(FIELDS)} of its annotation.")
    ] = "{youtube_id}_{time_start:06d}_{time_end:06d}.mp4",
) -> None:
    """Merge Kinetics-400, -600 and -700 annotations into the labeled hybrid of 710 classes."""
    from vmae_lab.data.kinetics710 import merge_kinetics, write_hybrid
    from vmae_lab.data.video_lists.formats import read_lines

    annotations = {name: files for name, files in (("k400", k400), ("k600", k600), ("k700", k700)) if files}
    if not annotations:
        raise typer.BadParameter(f"give annotation CSVs with at least one of {', '.join(ANNOTATIONS)}")
    names = [line.strip() for line in read_lines(classes) if line.strip()] if classes else None
    hybrid = merge_kinetics(annotations, names)
    print("\n".join(f"{name}: {count:,}" for name, count in hybrid.summary.items()))
    write_hybrid(hybrid, out, path_pattern)
    print(f"lists, classes and conversions: {out}")
