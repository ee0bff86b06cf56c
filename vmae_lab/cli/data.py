"""`vmae-lab data …`: check the videos of a list, pack them into shards, merge the Kinetics annotations."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from vmae_lab.cli.parameters import NOTHING

if TYPE_CHECKING:
    from vmae_lab.data.video_lists import VideoList

commands = typer.Typer(no_args_is_help=True, help="Check, pack and merge lists of videos.")

Listed = Annotated[
    str, typer.Argument(metavar="LIST", help="A list file (official, csv, tsv, parquet), a folder, a glob, or one video.")
]
Root = Annotated[str, typer.Option(help="Where the list's paths start: by default the current folder.")]
Labelled = Annotated[bool, typer.Option("--labelled", help="The list has labels (of a folder or glob: its folders).")]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="List linked folders, and let links lead out of the root.")]
FRAMES_NAMED = "img_{:05d}.jpg"
FramePattern = Annotated[str, typer.Option(help="Names in folders of frames.")]

FIELDS = ("youtube_id", "time_start", "time_end", "source", "label", "split")
ANNOTATIONS = ("--k400", "--k600", "--k700")
Annotations = Annotated[list[Path], typer.Option(metavar="CSV...", help="Its annotation CSVs, training and validation.")]


class TakesLists(TyperCommand):
    """A command whose options of annotations take several files each. typer takes one file, so the option is repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _repeated(args))


def _repeated(words: Sequence[str]) -> list[str]:
    repeated, option, first = list[str](), "", False
    for word in words:
        if word.startswith("-"):
            option, first = word if word in ANNOTATIONS else "", True
            repeated.append(word)
        else:
            repeated += [word] if first or not option else [option, word]
            first = False
    return repeated


def named_after_list(listed: str, root: str, ending: str) -> Path:
    """A folder in the current one, named after the list, or after the root if the list is a glob."""
    path = Path(root, listed)
    return Path(f"{(path if path.exists() else Path(root)).resolve().name}.{ending}")


def open_list(listed: str, root: str, labelled: bool, follow_links: bool) -> "VideoList":
    """The videos of a list. Prints which files of a folder were skipped since their suffix is no video's. Raises ListError."""
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
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default <list>.check here.")] = None,
    processes: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    frame_pattern: FramePattern = FRAMES_NAMED,
    keep_damaged: Annotated[bool, typer.Option("--keep-damaged", help="List damaged videos with the readable ones.")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a frame: decoders need about 100 bytes per pixel.")] = 9437184,
    memory_mib: Annotated[int, typer.Option(min=256, help="Memory of a decoder process (enforced on Linux only).")] = 2048,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds per read, after which its decoder is ended.")] = 60.0,
) -> None:
    """Decode every video of a list once. Write a report and a list of the readable ones.

    Exit status 1 if any is broken.
    """
    from vmae_lab.data.check import CHECKED, FAILURES, REPORT, check_list
    from vmae_lab.data.decoding import VideoSettings

    limits = VideoSettings(max_pixels=max_pixels, memory_mib=memory_mib, timeout_s=timeout_s, follow_links=follow_links)
    folder = out or named_after_list(listed, root, "check")
    videos = open_list(listed, root, labelled, follow_links)
    checked = check_list(videos, limits, folder, processes, frame_pattern, keep_damaged)
    counts = checked.table.status.value_counts()
    print(", ".join(f"{counts.get(status, 0)} {status}" for status in ("ok", "damaged", "failed")))
    print(f"the sound ones: {folder / CHECKED}\nthe broken ones: {folder / FAILURES}\nreport: {folder / REPORT}")
    if len(checked.broken):
        raise typer.Exit(1)


@commands.command(epilog="\b\nExample:\n  vmae-lab data pack train.csv shards --root path/to/videos --labelled")
def pack(
    listed: Listed,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    root: Root = ".",
    labelled: Labelled = False,
    follow_links: FollowLinks = False,
    shard_mib: Annotated[int, typer.Option(min=1)] = 512,
) -> None:
    """Write the videos of a list into tar shards (WebDataset), with an index that is read like any list."""
    from vmae_lab.data.shards import pack as pack_shards

    videos = open_list(listed, root, labelled, follow_links)
    index = pack_shards(videos, out, shard_mib, follow_links=follow_links)
    print(f"a list of the videos in the shards, with {out} as its root: {index}")


@commands.command(
    cls=TakesLists,
    epilog="\b\nExample:\n  vmae-lab data kinetics710 --k400 k400/train.csv k400/val.csv --k600 k600/train.csv \\\n"
    "    --k700 k700/train.csv k700/val.csv --out k710",
)
def kinetics710(
    out: Annotated[Path, typer.Option(help="Folder for train.csv, validation.csv, classes and conversions.")],
    k400: Annotations = NOTHING,
    k600: Annotations = NOTHING,
    k700: Annotations = NOTHING,
    classes: Annotated[
        Path | None, typer.Option(help="The 710 names in label order, one per line; sorted if left out.")
    ] = None,
    path_pattern: Annotated[
        str, typer.Option(help=f"File name of a video, from {', '.join(FIELDS)} of its annotation.")
    ] = "{youtube_id}_{time_start:06d}_{time_end:06d}.mp4",
) -> None:
    """Merge Kinetics-400, -600 and -700 annotations into the labelled hybrid of 710 classes."""
    from vmae_lab.data.kinetics710 import merge_kinetics, write_hybrid
    from vmae_lab.data.video_lists.formats import read_lines

    annotations = {name: files for name, files in (("k400", k400), ("k600", k600), ("k700", k700)) if files}
    if not annotations:
        raise typer.BadParameter(f"one of {', '.join(ANNOTATIONS)} is needed, with its annotation CSVs")
    names = [line.strip() for line in read_lines(classes) if line.strip()] if classes else None
    hybrid = merge_kinetics(annotations, names)
    print("\n".join(f"{what}: {count:,}" for what, count in hybrid.summary.items()))
    write_hybrid(hybrid, out, path_pattern)
    print(f"lists, classes and conversions: {out}")
