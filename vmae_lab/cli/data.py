"""`vmae-lab data …`: check the videos of a list, pack them into shards, merge the Kinetics annotations."""

import argparse
import os
from pathlib import Path

from vmae_lab.data.check import CHECKED, FAILURES, REPORT, check_list
from vmae_lab.data.kinetics import merge_kinetics, write_hybrid
from vmae_lab.data.lists import read_list
from vmae_lab.data.shards import pack
from vmae_lab.data.video import VideoSettings
from vmae_lab.data.video.screen import FRAMES

LIST = "a list file (official, csv, tsv, parquet), a folder of videos, or a glob"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Put `data` with its own commands among those of the command line."""
    words = "check, pack and merge lists of videos"
    inside = commands.add_parser("data", help=words, description=words.capitalize()).add_subparsers(dest="task", required=True)

    words = "decode every video of a list once; write a report and a list of the sound ones; exit status 1 where any is broken"
    check = inside.add_parser("check", help=words, description=words.capitalize())
    list_options(check)
    check.add_argument("--out", type=Path, help="folder for the results (default: <list>.check in the current folder)")
    check.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    check.add_argument("--frame-pattern", default=FRAMES, help="names in folders of frames")
    check.add_argument("--keep-damaged", action="store_true", help="list damaged videos with the sound ones")
    for name, field in VideoSettings.model_fields.items():
        if name in ("max_pixels", "memory_mib", "timeout_s"):
            kind = float if name == "timeout_s" else int
            check.add_argument(f"--{name.replace('_', '-')}", type=kind, default=field.default, help=field.description)

    words = "write the videos of a list into tar shards (WebDataset), with an index that is read like any list"
    packing = inside.add_parser("pack", help=words, description=words.capitalize())
    list_options(packing)
    packing.add_argument("out", type=Path, help="folder for the shards")
    packing.add_argument("--shard-mib", type=int, default=512)

    words = "merge Kinetics-400, -600 and -700 annotations into the labelled hybrid of 710 classes"
    kinetics = inside.add_parser("kinetics710", help=words, description=words.capitalize())
    for name in ("k400", "k600", "k700"):
        kinetics.add_argument(
            f"--{name}", type=Path, nargs="+", default=[], help="its annotation CSVs, training and validation"
        )
    kinetics.add_argument("--classes", type=Path, help="the 710 names in label order, one a line (default: sorted)")
    kinetics.add_argument(
        "--out", type=Path, required=True, help="folder for train.csv, validation.csv, classes and conversions"
    )


def run(options: argparse.Namespace) -> int:
    """Carry one of them out; returns the exit status."""
    return {"check": _check, "pack": _pack, "kinetics710": _kinetics}[options.task](options)


def list_options(command: argparse.ArgumentParser) -> None:
    """Put in a command what says which list is meant."""
    command.add_argument("list", help=LIST)
    command.add_argument("--root", default=".", help="where the list's paths start (default: the current folder)")
    command.add_argument("--labelled", action="store_true", help="the list has labels (of a folder or glob: its folders)")
    command.add_argument("--follow-links", action="store_true", help="let symbolic links lead out of the root")


def named_after_list(options: argparse.Namespace, ending: str) -> Path:
    """A folder in the current one, named after the list, or after the root where the list is a glob."""
    listed = Path(options.root, options.list)
    return Path(f"{(listed if listed.exists() else Path(options.root)).resolve().name}.{ending}")


def _check(options: argparse.Namespace) -> int:
    limits = {name: getattr(options, name) for name in ("max_pixels", "memory_mib", "timeout_s", "follow_links")}
    folder = options.out or named_after_list(options, "check")
    videos = read_list(options.list, options.root, options.labelled)
    checked = check_list(
        videos, VideoSettings(**limits), folder, options.processes, options.frame_pattern, options.keep_damaged
    )
    counts = checked.table.status.value_counts()
    print(", ".join(f"{counts.get(status, 0)} {status}" for status in ("ok", "damaged", "failed")))
    print(f"the sound ones: {folder / CHECKED}\nthe broken ones: {folder / FAILURES}\nreport: {folder / REPORT}")
    return int(len(checked.broken) > 0)


def _pack(options: argparse.Namespace) -> int:
    videos = read_list(options.list, options.root, options.labelled)
    index = pack(videos, options.out, options.shard_mib, follow_links=options.follow_links)
    print(f"a list of the videos in the shards, with {options.out} as its root: {index}")
    return 0


def _kinetics(options: argparse.Namespace) -> int:
    annotations = {name: files for name in ("k400", "k600", "k700") if (files := getattr(options, name))}
    classes = options.classes.read_text(encoding="utf-8").splitlines() if options.classes else None
    hybrid = merge_kinetics(annotations, classes)
    print("\n".join(f"{what}: {count:,}" for what, count in hybrid.summary.items()))
    write_hybrid(hybrid, options.out)
    print(f"lists, classes and conversions: {options.out}")
    return 0
