"""Check of a list: decodes every video once, reports formats and broken files, and writes a list of the good videos."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.data.decoding.decoders import SEEKING
from vmae_lab.data.decoding.inspection import Inspection
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import VideoList
from vmae_lab.data.video_lists.formats import write_list
from vmae_lab.utils.atomic_io import fingerprint, make_folder, readable, write_text
from vmae_lab.utils.counts import counted, size_text
from vmae_lab.utils.journal import append_to_journal, read_journal
from vmae_lab.utils.progress import Progress

JOURNAL, REPORT, CHECKED, FAILURES = "check.jsonl", "README.md", "checked.csv", "failures.csv"
SHOWN = 50  # broken files in the report
VERSION = 2  # of the decoding; increase it when results change, so that earlier checks are not reused


def check_list(
    videos: VideoList,
    settings: VideoSettings,
    folder: Path,
    processes: int = 1,
    frame_pattern: str = FRAMES,
    keep_damaged: bool = False,
    journals: Path | None = None,
) -> pd.DataFrame:
    """Inspect every video in several processes. Return one row per video, with the columns of the list and of Inspection.

    Videos that an earlier, interrupted check inspected are skipped. Writes a report (README.md), failures.csv and checked.csv
    to `folder`. checked.csv is a list for `read_list` with the number of frames and the decoder of each video. Results are
    stored in a journal in `folder`, or in `journals`, which several lists may share. Raises StorageError.
    """
    make_folder(folder)
    journal = (journals or folder) / f"{fingerprint([settings.model_dump(mode='json'), frame_pattern])}-{JOURNAL}"
    clips = clips_of({"checked": (videos, frame_pattern)}, settings, processes)
    files = [clips.file(index) for index in range(len(clips))]
    keys = [content_key(file) for file in files]
    seen = read_journal(journal)
    todo = [index for index, key in enumerate(keys) if key not in seen]
    print(f"{counted(len(files), 'video')}, {len(files) - len(todo)} already checked; {counted(processes, 'process')}")
    bar = Progress(total=len(todo), desc="checking", unit="videos")
    with bar:
        results = clips.decoders.map(_check, (files[index] for index in todo))
        for index, result in zip(todo, results, strict=True):
            inspection = Inspection("failed", result.cause) if isinstance(result, VideoError) else result
            seen[keys[index]] = asdict(inspection)
            append_to_journal(journal, keys[index], seen[keys[index]])
            bar.update()
    clips.decoders.close()
    inspections = pd.DataFrame([seen[key] for key in keys], index=videos.table.index)
    listed = videos.table.drop(columns=[name for name in inspections if name in videos.table])
    table = pd.concat([listed, inspections], axis=1)
    _write(table, videos, folder, keep_damaged)
    return table


def _check(decoder: DecoderProcess, file: VideoFile) -> Inspection:
    """Inspect a video. If PyAV reads it, also find out whether it can start at key frames. Raises VideoError."""
    found = decoder.inspect(file)
    if found.status == "ok" and found.decoder == "pyav" and decoder.settings.decoder == "auto":
        with suppress(VideoError):  # it takes too long
            if decoder.seeks_exactly(file):
                return replace(found, decoder=SEEKING)
    return found


def content_key(file: VideoFile) -> str:
    """Return a key for a file's content: its path, size and time, and VERSION."""
    try:
        status = os.stat(file.path)
        found = (status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):
        found = (-1, -1)
    return json.dumps([VERSION, file.path, file.start, file.total, file.offset, file.size, *found])


def _write(table: pd.DataFrame, videos: VideoList, folder: Path, keep_damaged: bool) -> None:
    broken = table[table.status != "ok"]
    kept = table[table.status.isin(["ok", "damaged"] if keep_damaged else ["ok"])]
    columns = ["path", "start", "total", *(name for name in ("offset", "size") if name in table)]
    columns += ["label"] if videos.classes else []
    seen = ["frames", "decoder", "container", "codec", "width", "height", "rotation", "fps", "seconds", "bytes"]
    write_list(folder / CHECKED, kept[columns + seen], videos.classes)
    write_list(folder / FAILURES, broken[["path", "line", "status", "codec", "cause"]])
    notes = []
    if lost := [videos.classes[label] for label in sorted(set(table.label) - set(kept.label)) if videos.classes]:
        notes = [
            f"no usable video for {len(lost)} of {counted(len(videos.classes), 'class')}, which {CHECKED} keeps: "
            f"{', '.join(lost)}."
        ]
        print(readable(f"warning: {notes[0]}"))
    write_text(folder / REPORT, _report(table, len(kept), notes))


def _report(table: pd.DataFrame, kept: int, notes: list[str]) -> str:
    """Return the report in Markdown: counts, durations, formats and broken files."""
    read, broken = table[table.status != "failed"], table[table.status != "ok"]
    counts = table.status.value_counts().reindex(["ok", "damaged", "failed"], fill_value=0)
    parts = [
        f"# {counted(len(table), 'video')} checked",
        f"{counts.ok} ok, {counts.damaged} damaged, {counts.failed} unreadable; {read.seconds.sum() / 3600:.2f} hours, "
        f"{size_text(read.bytes.sum())}. `{CHECKED}` lists {counted(kept, 'usable video')}, `{FAILURES}` lists broken videos "
        "and causes. Each video was decoded completely. Damage that causes no decoder error (often a flipped bit) is not "
        "detected.",
        *notes,
    ]
    if len(read):
        ranges = read[["frames", "seconds", "fps", "width", "height"]].describe(percentiles=[0.05, 0.5, 0.95])
        parts += [ranges.loc[["min", "5%", "50%", "95%", "max"]].round(2).to_markdown()]
        kinds = read.groupby(["container", "codec", "decoder"]).size().rename("videos").reset_index()
        parts += [kinds.sort_values("videos", ascending=False).to_markdown(index=False)]
    if len(broken):
        shown = broken[["path", "status", "cause"]].head(SHOWN)
        shown = shown.map(readable).map(lambda text: "".join(c if c.isprintable() and c != "|" else "?" for c in text))
        more = len(broken) - len(shown)
        parts += ["## Broken videos", shown.to_markdown(index=False) + (f"\n\nand {more} more" if more > 0 else "")]
    return "\n\n".join(parts) + "\n"
