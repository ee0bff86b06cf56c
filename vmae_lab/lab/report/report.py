"""A notebook's report: its page, tables and figures in reports/<scale>/<notebook>/, and a manifest of what made them."""

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
from vmae_lab.lab.plots.figures import save_figure
from vmae_lab.lab.plots.labels import markdown
from vmae_lab.lab.report.folder import ReportPlace, report_place
from vmae_lab.lab.report.provenance import provenance
from vmae_lab.lab.report.tables import save_table
from vmae_lab.lab.run_store import RunStore
from vmae_lab.utils.atomic_io import atomic_write, make_folder, storing_in, write_json, write_text

OWN = ("README.md", "manifest.json", "tables", "figures")  # what a report replaces; an executed notebook beside it stays


class Report:
    """Collects a notebook's tables, figures and words; `close` writes them as one page that stands on its own.

    The report is named after the notebook's file, and `notebook` names it if the file is not known.
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
        """What the numbers say, a bullet each; they also stand in the index of all reports."""
        self.conclusions = list(sentences)
        self.parts.append("\n".join(f"- {sentence}" for sentence in sentences))

    def table(self, frame: pd.DataFrame, name: str, caption: str) -> None:
        self.tables[name] = frame
        self.parts.append(f"{caption} ([csv](tables/{name}.csv), [tex](tables/{name}.tex))\n\n{{table {name}}}")

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        self.figures[name] = figure
        plt.close(figure)  # kept here alone: the notebook does not show it again
        self.parts.append(f"![{caption}](figures/{name}.png)\n\n*{caption}*")

    def animation(self, gif: bytes, name: str, caption: str) -> None:
        self.animations[name] = gif
        self.parts.append(f"![{caption}](figures/{name}.gif)\n\n*{caption}*")

    def results(self, rows: pd.DataFrame) -> None:
        """Keep the tidy rows beside the page: every number of the tables can be traced to its stage."""
        self.rows = rows

    def close(self, plan: Plan, store: RunStore) -> Path:
        """Write the report, and print whether it is new or replaces one. Returns the page's path. Raises StorageError."""
        file = notebook_file()
        place = report_place(plan, file.stem if file else self.notebook, file)
        folder, code = make_folder(place.folder), _code_of(file)
        fresh = folder / ".fresh.tmp"
        with FileLock(folder / ".lock"), storing_in(folder):
            shutil.rmtree(fresh, ignore_errors=True)
            self._write(make_folder(fresh), plan, store, place, code)
            for name in OWN:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                os.replace(fresh / name, folder / name)
            fresh.rmdir()
        if file is None:
            print(f"the notebook's file is not known: the report is named '{self.notebook}' ({VARIABLE} can tell the file)")
        before = ((place.replaced or {}).get("notebook_code") or {}).get("digest", code["digest"])
        print(place.words + ("" if before == code["digest"] else "; the code of the notebook was another one"))
        return folder / "README.md"

    def _write(self, folder: Path, plan: Plan, store: RunStore, place: ReportPlace, code: Mapping[str, Any]) -> None:
        for name in ("tables", "figures"):  # also of a notebook that has none of the one
            make_folder(folder / name)
        made = provenance()
        seeds = ", ".join(map(str, plan.recipe.seeds))
        head = (
            f"# {self.title}\n\n{self.question}\n\n"
            f"Scale `{self.scale}`{_changed_words(place.changed)}, seeds {seeds}; written {made['date']} by code "
            f"{made['code']} on {made['device']}. Made by {_made_by(code, plan.name)}; settings, versions and stages in "
            "[manifest.json](manifest.json), every single result in [tables/results.csv](tables/results.csv)."
        )
        page = "\n\n".join([head, *_left_out_words(plan, store), *self.parts]) + "\n"
        for name, frame in self.tables.items():
            page = page.replace(f"{{table {name}}}", save_table(frame, folder / "tables", name))
        for name, figure in self.figures.items():
            save_figure(figure, folder / "figures", name)
        for name, gif in self.animations.items():
            with atomic_write(folder / "figures" / f"{name}.gif") as temporary:
                temporary.write_bytes(gif)
        write_text(folder / "tables" / "results.csv", self.rows.to_csv(index=False))
        write_json(folder / "manifest.json", self._manifest(plan, store, made, place, code))
        write_text(folder / "README.md", page)

    def _manifest(
        self, plan: Plan, store: RunStore, made: Mapping[str, Any], place: ReportPlace, code: Mapping[str, Any]
    ) -> dict[str, Any]:
        stages = {}
        for stage in plan.stages:
            result = store.result(stage)
            seconds, by = round(result["seconds"], 1), result["provenance"]
            stages[stage.key] = {"kind": stage.kind, "seed": stage.settings.get("seed"), "seconds": seconds, "made": by}
        return {
            "notebook": place.folder.name,
            "notebook_file": code["file"],
            "notebook_code": {name: code[name] for name in ("state", "digest")},
            "experiment": plan.name,
            "scale": self.scale,
            "changed": dict(place.changed),
            "title": self.title,
            "question": self.question,
            "conclusions": self.conclusions,
            "main_table": next(iter(self.tables), None),  # the first of each; the index shows them
            "main_figure": next(iter(self.figures), None),
            "provenance": made,
            "recipe": plan.recipe.model_dump(mode="json"),
            "arms": {arm: dict(plan.arms[arm].changes(plan.recipe)) for arm in plan.possible},
            "impossible": dict(plan.impossible),
            "stages": stages,
            "compute_seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        }


def _code_of(file: Path | None) -> dict[str, str | None]:
    """A notebook's path, the digest of its code, and whether that is the committed code."""
    if file is None:
        return {"file": None, "state": None, "digest": None}
    return {"file": written_path(file), "state": code_state(file), "digest": code_digest(read_cells(file))}


def _made_by(code: Mapping[str, Any], experiment: str) -> str:
    if code["file"] is None:
        return f"a notebook of `{experiment}` whose file is not known"
    words = f"`{code['file']}`"
    if Path(code["file"]).stem != experiment:
        words += f" (a notebook of `{experiment}`)"
    return words if code["state"] in ("", "as committed") else f"{words}, whose code is {code['state']}"


def _changed_words(changed: Mapping[str, Any]) -> str:
    """The settings that differ from the scale's."""
    values_first = sorted(changed.items(), key=lambda item: item[1] is None)
    shown = [f"`{name}` {value}" for name, value in values_first[:6]]
    return f" with changed settings ({', '.join(shown)}{', and others' * (len(changed) > 6)})" if changed else ""


def _left_out_words(plan: Plan, store: RunStore) -> list[str]:
    """A sentence where the recipe let videos that cannot be read be skipped and some were; else none."""
    names = set()
    for stage in plan.stages:
        result = store.result(stage)
        names |= {*result.get("left_out", ()), *result.get("left_out_of_training", ())}
    if not names:
        return []
    shown = ", ".join(markdown(name) for name in sorted(names)[:5]) + (" and others" if len(names) > 5 else "")
    words = f"**{len(names)} video(s) could not be read and are left out of every average here** (`evaluate.missing: skip`)"
    return [f"{words}: {shown}."]
