"""A notebook's report: page, tables, figures and manifest in reports/<scale>/<notebook>/."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure

from vmae_lab.lab.notebook_file import VARIABLE, code_digest, code_state, notebook_file, read_cells, written_path
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.plots.style import save_figure
from vmae_lab.lab.plots.text import markdown
from vmae_lab.lab.report.folder import ReportPlace, report_place
from vmae_lab.lab.report.provenance import provenance
from vmae_lab.lab.report.tables import save_table
from vmae_lab.lab.run_store import RunStore
from vmae_lab.utils.atomic_io import atomic_write, make_folder, storing_in, write_json, write_text

REPLACED = ("README.md", "manifest.json", "tables", "figures")  # an executed notebook in the same folder stays
CHANGES_SHOWN = 6
VIDEOS_SHOWN = 5


class Report:
    """Collects a notebook's tables, figures and conclusions. `close` writes them as one page.

    The report is named after the notebook's file, or `notebook` if the file is not known.
    """

    def __init__(self, notebook: str, scale: str, title: str, question: str):
        self.notebook, self.scale, self.title, self.question = notebook, scale, title, question
        self.parts: list[str] = []
        self.tables: dict[str, pd.DataFrame] = {}
        self.figures: dict[str, Figure] = {}
        self.animations: dict[str, bytes] = {}
        self.rows = pd.DataFrame()
        self.conclusions: list[str] = []

    def reading(self, sentences: Sequence[str]) -> None:
        """Add conclusions, one bullet each. The index of reports shows them too."""
        self.conclusions = list(sentences)
        self.parts.append("\n".join(f"- {sentence}" for sentence in sentences))

    def table(self, frame: pd.DataFrame, name: str, caption: str) -> None:
        self.tables[name] = frame
        self.parts.append(f"{caption} ([csv](tables/{name}.csv), [tex](tables/{name}.tex))\n\n{{table {name}}}")

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        self.figures[name] = figure
        plt.close(figure)  # so that the notebook does not show it again
        self.parts.append(f"![{caption}](figures/{name}.png)\n\n*{caption}*")

    def animation(self, gif: bytes, name: str, caption: str) -> None:
        self.animations[name] = gif
        self.parts.append(f"![{caption}](figures/{name}.gif)\n\n*{caption}*")

    def results(self, rows: pd.DataFrame) -> None:
        """Set the tidy rows for tables/results.csv, which name the stage of every number."""
        self.rows = rows

    def close(self, plan: Plan, store: RunStore) -> Path:
        """Write the report, and print whether it is new or replaces one. Returns the page's path. Raises StorageError."""
        file = notebook_file()
        place = report_place(plan, file.stem if file else self.notebook, file)
        code: dict[str, str | None] = {"file": None, "state": None, "digest": None}
        if file:
            code = {"file": written_path(file), "state": code_state(file), "digest": code_digest(read_cells(file))}
        folder = make_folder(place.folder)
        new = folder / ".fresh.tmp"
        with FileLock(folder / ".lock"), storing_in(folder):
            shutil.rmtree(new, ignore_errors=True)
            self._write(make_folder(new), plan, store, place, code)
            for name in REPLACED:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                os.replace(new / name, folder / name)
            new.rmdir()
        if not file:
            print(f"the notebook's file is not known, so the report is named '{self.notebook}' (set {VARIABLE} to the file)")
        before = ((place.replaced or {}).get("notebook_code") or {}).get("digest", code["digest"])
        print(place.words + ("" if before == code["digest"] else "; the code of the notebook was another one"))
        return folder / "README.md"

    def _write(self, folder: Path, plan: Plan, store: RunStore, place: ReportPlace, code: Mapping[str, Any]) -> None:
        made = provenance()
        tables, figures = make_folder(folder / "tables"), make_folder(folder / "figures")
        head = (
            f"Scale `{self.scale}`{_changed_settings(place.changed)}, seeds {', '.join(map(str, plan.recipe.seeds))}; written "
            f"{made['date']} by code {made['code']} on {made['device']}. Made by {_made_by(code, plan.name)}; settings, "
            "versions and stages in [manifest.json](manifest.json), every single result in "
            "[tables/results.csv](tables/results.csv)."
        )
        page = "\n\n".join([f"# {self.title}", self.question, head, *_skipped_videos(plan, store), *self.parts]) + "\n"
        for name, frame in self.tables.items():
            page = page.replace(f"{{table {name}}}", save_table(frame, tables, name))
        for name, figure in self.figures.items():
            save_figure(figure, figures, name)
        for name, gif in self.animations.items():
            with atomic_write(figures / f"{name}.gif") as temporary:
                temporary.write_bytes(gif)
        write_text(tables / "results.csv", self.rows.to_csv(index=False))
        write_json(folder / "manifest.json", self._manifest(plan, store, made, place, code))
        write_text(folder / "README.md", page)

    def _manifest(
        self, plan: Plan, store: RunStore, made: Mapping[str, Any], place: ReportPlace, code: Mapping[str, Any]
    ) -> dict[str, Any]:
        stages = {}
        for stage in plan.stages:
            result = store.result(stage)
            seed, seconds = stage.settings.get("seed"), round(result["seconds"], 1)
            stages[stage.key] = {"kind": stage.kind, "seed": seed, "seconds": seconds, "made": result["provenance"]}
        return {
            "notebook": place.folder.name,
            "notebook_file": code["file"],
            "notebook_code": {"state": code["state"], "digest": code["digest"]},
            "experiment": plan.name,
            "scale": self.scale,
            "changed": dict(place.changed),
            "title": self.title,
            "question": self.question,
            "conclusions": self.conclusions,
            "main_table": next(iter(self.tables), None),  # the index of reports shows the first table and figure
            "main_figure": next(iter(self.figures), None),
            "provenance": made,
            "recipe": plan.recipe.model_dump(mode="json"),
            "arms": {arm: dict(plan.arms[arm].changes(plan.recipe)) for arm in plan.possible},
            "impossible": dict(plan.impossible),
            "stages": stages,
            "compute_seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        }


def _made_by(code: Mapping[str, Any], experiment: str) -> str:
    if code["file"] is None:
        return f"a notebook of `{experiment}` whose file is not known"
    other_name = "" if Path(code["file"]).stem == experiment else f" (a notebook of `{experiment}`)"
    state = "" if code["state"] in ("", "as committed") else f", whose code is {code['state']}"
    return f"`{code['file']}`{other_name}{state}"


def _changed_settings(changed: Mapping[str, Any]) -> str:
    """The settings that differ from the scale's, settings without a value last."""
    if not changed:
        return ""
    ordered = sorted(changed.items(), key=lambda item: item[1] is None)
    shown = [f"`{name}` {value}" for name, value in ordered[:CHANGES_SHOWN]]
    return f" with changed settings ({', '.join(shown)}{', and others' if len(changed) > CHANGES_SHOWN else ''})"


def _skipped_videos(plan: Plan, store: RunStore) -> list[str]:
    """A sentence that names unreadable videos, if the recipe skips these and there were some."""
    results = [store.result(stage) for stage in plan.stages]
    names = sorted({name for result in results for key in ("left_out", "left_out_of_training") for name in result.get(key, ())})
    if not names:
        return []
    shown = ", ".join(map(markdown, names[:VIDEOS_SHOWN])) + (" and others" if len(names) > VIDEOS_SHOWN else "")
    return [
        f"**{len(names)} video(s) could not be read and are left out of every average here** (`evaluate.missing: skip`): "
        f"{shown}."
    ]
