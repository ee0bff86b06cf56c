"""Write the report of a notebook: page, tables, figures and manifest in reports/<scale>/<notebook>/.

Only the manifest has values that differ between two runs of the same settings: date, code, device and times.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from filelock import FileLock

from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.notebook_file import VARIABLE, code_digest, code_state, notebook_file, read_cells
from vmae_lab.lab.plots.style import save_figure
from vmae_lab.lab.plots.text import markdown
from vmae_lab.lab.report.folder import ReportPlace, report_place
from vmae_lab.lab.report.provenance import provenance
from vmae_lab.lab.report.tables import save_table
from vmae_lab.utils.atomic_io import atomic_write, make_folder, storing_in, write_json, write_text
from vmae_lab.utils.counts import counted
from vmae_lab.utils.paths import project_path

REPLACED = ("README.md", "manifest.json", "tables", "figures")  # an executed notebook in the same folder is kept
CHANGES_SHOWN = 6
VIDEOS_SHOWN = 5
SECONDS_PER_STEP = "_seconds_per_step"  # in the names of times of trainings; a measurement of steps has `seconds_per_step@4`


def write_report(
    name: str, experiment: Experiment, results: Results, conclusions: Sequence[str], parts: Sequence[Table | Plot],
    times: pd.DataFrame,
) -> Path:  # fmt: skip
    """Write a report: the conclusions, then tables and figures in the given order. Returns the path of its page.

    Prints whether the report is new or replaces one. It is named after the notebook's file, or `name` if the file is unknown.
    `times`: predicted and actual times of the stages, for the manifest. Raises StorageError.
    """
    file = notebook_file()
    place = report_place(results.plan, file.stem if file else name, file)
    code: dict[str, str | None] = {"file": None, "state": None, "digest": None}
    if file:
        code = {"file": project_path(file), "state": code_state(file), "digest": code_digest(read_cells(file))}
    made = provenance()
    timed = results.rows.metric.str.contains(SECONDS_PER_STEP).astype(bool)
    manifest = _manifest(experiment, results, conclusions, parts, place, code, made) | {
        "times": times.to_dict("records"),
        "seconds_per_step": _mean_by_arm(results.rows[timed]),
    }
    folder = make_folder(place.folder)
    new = folder / ".fresh.tmp"
    with FileLock(folder / ".lock"), storing_in(folder):
        shutil.rmtree(new, ignore_errors=True)
        make_folder(new / "figures")
        page = [
            f"# {experiment.title}", experiment.question, _made_with(results, place, code), *_skipped_videos(results),
            "\n".join(f"- {sentence}" for sentence in conclusions), *(_save(part, new) for part in parts),
        ]  # fmt: skip
        write_text(make_folder(new / "tables") / "results.csv", results.rows[~timed].to_csv(index=False))
        write_json(new / "manifest.json", manifest)
        write_text(new / "README.md", "\n\n".join(page) + "\n")
        for part_of_report in REPLACED:
            if (folder / part_of_report).is_dir():
                shutil.rmtree(folder / part_of_report)
            os.replace(new / part_of_report, folder / part_of_report)
        new.rmdir()
    if not file:
        print(f"the notebook's file is unknown, so the report is named '{name}' (set {VARIABLE} to the file)")
    before = ((place.replaced or {}).get("notebook_code") or {}).get("digest", code["digest"])
    print(place.message + ("" if before == code["digest"] else "; the notebook's code has changed since"))
    return folder / "README.md"


def _save(part: Table | Plot, folder: Path) -> str:
    """Save a table or figure in the folder of a report. Returns its Markdown."""
    name, caption, figures = part.name, part.caption, folder / "figures"
    if isinstance(part, Table):
        table = save_table(part.frame, folder / "tables", name)
        text = f"{caption} ([csv](tables/{name}.csv), [tex](tables/{name}.tex))"
        return text if part.frame.empty else f"{text}\n\n{table}"
    if isinstance(part.figure, bytes):
        with atomic_write(figures / f"{name}.gif") as temporary:
            temporary.write_bytes(part.figure)
        return f"![{caption}](figures/{name}.gif)\n\n*{caption}*"
    save_figure(part.figure, figures, name)
    plt.close(part.figure)  # so that the notebook does not show it again
    return f"![{caption}](figures/{name}.png)\n\n*{caption}*"


def _mean_by_arm(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the mean over seeds of each metric, by arm and metric."""
    means = rows.groupby(["arm", "metric"]).value.mean().round(4)
    return {arm: means[arm].to_dict() for arm in rows.arm.unique()}


def _manifest(
    experiment: Experiment, results: Results, conclusions: Sequence[str], parts: Sequence[Table | Plot], place: ReportPlace,
    code: Mapping[str, Any], made: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    plan, stages = results.plan, {}
    for stage in plan.stages:
        result = results.store.result(stage)
        seed, seconds = stage.settings.get("seed"), round(result["seconds"], 1)
        stages[stage.key] = {"kind": stage.kind, "seed": seed, "seconds": seconds, "made": result["provenance"]}
    figures = (part for part in parts if isinstance(part, Plot) and not isinstance(part.figure, bytes))
    return {
        "notebook": place.folder.name,
        "notebook_file": code["file"],
        "notebook_code": {"state": code["state"], "digest": code["digest"]},
        "experiment": plan.name,
        "scale": plan.recipe.scale,
        "changed": dict(place.changed),
        "title": experiment.title,
        "question": experiment.question,
        "conclusions": list(conclusions),
        # The index of reports shows the first table and the first figure.
        "main_table": next((part.name for part in parts if isinstance(part, Table)), None),
        "main_figure": next((figure.name for figure in figures), None),
        "provenance": made,
        "recipe": plan.recipe.model_dump(mode="json"),
        "arms": {arm: dict(plan.arms[arm].changes(plan.recipe)) for arm in plan.possible},
        "impossible": dict(plan.impossible),
        "stages": stages,
        "compute_seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
    }


def _made_with(results: Results, place: ReportPlace, code: Mapping[str, Any]) -> str:
    """Return the paragraph about scale, changed settings and notebook. What differs between runs is only in the manifest."""
    recipe, experiment = results.recipe, results.plan.name
    ordered = sorted(place.changed.items(), key=lambda item: item[1] is None)  # settings without a value last
    shown = [f"`{name}` {value}" for name, value in ordered[:CHANGES_SHOWN]]
    more = ", and others" if len(ordered) > CHANGES_SHOWN else ""
    changed = f" with changed settings ({', '.join(shown)}{more})" if shown else ""
    notebook = f"a notebook of `{experiment}` whose file is unknown"
    if code["file"]:
        other_name = "" if Path(code["file"]).stem == experiment else f" (a notebook of `{experiment}`)"
        state = "" if code["state"] in ("", "as committed") else f", whose code is {code['state']}"
        notebook = f"`{code['file']}`{other_name}{state}"
    return (
        f"Scale `{recipe.scale}`{changed}, seeds {', '.join(map(str, recipe.seeds))}. Made by {notebook}. "
        "[manifest.json](manifest.json) has the date, code, device, versions, settings, stages and times; "
        "[tables/results.csv](tables/results.csv) has all single results."
    )


def _skipped_videos(results: Results) -> list[str]:
    """Return a paragraph that names unreadable videos, if the recipe skips them and there are some."""
    done = [results.store.result(stage) for stage in results.plan.stages]
    names = sorted({name for result in done for key in ("left_out", "left_out_of_training") for name in result.get(key, ())})
    if not names:
        return []
    shown = ", ".join(map(markdown, names[:VIDEOS_SHOWN])) + (" and others" if len(names) > VIDEOS_SHOWN else "")
    return [f"**Unreadable and left out of all averages: {counted(len(names), 'video')}** (`evaluate.missing: skip`): {shown}."]
