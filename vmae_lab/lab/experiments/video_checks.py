"""What a check of listed videos saw: counts, lengths, and the broken ones."""

from pathlib import Path

import pandas as pd

from vmae_lab.data.check import check_list
from vmae_lab.data.video_lists import read_all
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.pictures import window
from vmae_lab.utils.atomic_io import readable

NAMED = 20  # broken videos that a table names


def check_videos(plan: Plan, runs: Path) -> pd.DataFrame:
    """Every listed video decoded once, whole: columns list, path, status, cause, frames, seconds, bytes; none if embedded.

    What is seen is kept below `runs`/checks, so that only what is new or changed is decoded another time. Raises RecipeError if
    the lists cannot be used.
    """
    plan.check_lists()
    recipe, columns = plan.recipe, ["list", "path", "status", "cause", "frames", "seconds", "bytes"]
    lists, tables = recipe.data.lists, [pd.DataFrame(columns=columns)]
    if lists is None:
        return tables[0]
    folder, processes = check_folder(plan, runs), recipe.compute.processes
    for name, (videos, pattern) in read_all(lists).items():
        checked = check_list(videos, lists.decoding, folder / name, processes, pattern, journals=runs / "checks")
        tables.append(checked.table.assign(list=name, path=checked.table.path.map(readable))[columns])
    return pd.concat(tables[1:], ignore_index=True)


def check_folder(plan: Plan, runs: Path) -> Path:
    """Where the check of the recipe's lists writes what it saw."""
    return runs / "checks" / plan.recipe.data.fingerprint


def check_table(plan: Plan, checked: pd.DataFrame) -> pd.DataFrame:
    """One line a list: how many videos it has, what state they are in, how long they are against the window of a clip."""
    if checked.empty:
        return pd.DataFrame([{"list": "embedded data set", "state": "written here by this project: there is nothing to check"}])
    frames, stride, _ = window(plan.recipe)
    needed, lines = (frames - 1) * stride + 1, []
    for name, table in checked.groupby("list", sort=False):
        read = table[table.status != "failed"]
        lines.append({
            "list": name, "videos": len(table),
            **{status: int((table.status == status).sum()) for status in ("ok", "damaged", "failed")},
            "hours": f"{read.seconds.astype(float).sum() / 3600:.2f}", "GiB": f"{read.bytes.astype(float).sum() / 2**30:.2f}",
            "frames, median": f"{read.frames.median():.0f}" if len(read) else "",
            f"shorter than a clip's window of {needed} frames": int((read.frames < needed).sum()),
        })  # fmt: skip
    return pd.DataFrame(lines)


def check_caption(plan: Plan, runs: Path) -> str:
    """How the state of the videos was found."""
    if plan.recipe.data.lists is None:
        return "The files of the data set."
    return (
        "The listed videos, each decoded once, whole: `damaged` ones decode with errors or end early, `failed` ones give no "
        f"frame. Every single one is in `{check_folder(plan, runs).relative_to(runs.parent)}`."
    )


def broken_table(checked: pd.DataFrame) -> pd.DataFrame:
    """The videos that are not sound, and why: the first of them."""
    return checked[checked.status != "ok"][["list", "path", "status", "cause"]].head(NAMED).reset_index(drop=True)


def broken_caption(checked: pd.DataFrame) -> str:
    broken = int((checked.status != "ok").sum())
    first = f", the first {NAMED}" if broken > NAMED else ""
    return f"Videos that are damaged or cannot be read, {broken} in all{first}; every one is in its list's `failures.csv`."


def conclusions(checked: pd.DataFrame) -> list[str]:
    """How many are broken, in a sentence; none where nothing was to be checked."""
    broken = int((checked.status != "ok").sum())
    return [] if checked.empty else [f"Damaged or unreadable: {broken} of {len(checked):,} listed videos."]
