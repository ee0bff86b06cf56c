"""A notebook's report: its page, tables and figures in reports/<scale>/<notebook>/, and a manifest of what made them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vmae_lab.files import make_folder, write_json, write_text
from vmae_lab.lab.ablation import Plan
from vmae_lab.lab.figures import save_figure
from vmae_lab.lab.places import report_folder
from vmae_lab.lab.provenance import provenance
from vmae_lab.lab.runs import RunStore
from vmae_lab.lab.tables import save_table


class Report:
    """Collects a notebook's tables, figures and words, and writes them as one page that stands on its own."""

    def __init__(self, notebook: str, scale: str, title: str):
        self.notebook, self.scale, self.title = notebook, scale, title
        self.folder = make_folder(report_folder(scale, notebook))
        for part in ("tables", "figures"):  # what an earlier run left would not be of this one
            shutil.rmtree(self.folder / part, ignore_errors=True)
        self.parts: list[str] = []
        self.rows: pd.DataFrame | None = None

    def text(self, words: str) -> None:
        self.parts.append(words.strip())

    def table(self, frame: pd.DataFrame, name: str, caption: str) -> None:
        markdown = save_table(frame, self.folder / "tables", name)
        self.parts.append(f"{caption} ([csv](tables/{name}.csv), [tex](tables/{name}.tex))\n\n{markdown}")

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        save_figure(figure, self.folder / "figures", name)
        self.parts.append(f"![{caption}](figures/{name}.png)\n\n*{caption}*")

    def results(self, rows: pd.DataFrame) -> None:
        """Keep the tidy rows beside the page: every number of the tables can be traced to its stage."""
        make_folder(self.folder / "tables")
        write_text(self.folder / "tables" / "results.csv", rows.to_csv(index=False))

    def close(self, plan: Plan, store: RunStore) -> Path:
        """Write the page and the manifest; returns the page's path."""
        made = provenance()
        write_json(self.folder / "manifest.json", self._manifest(plan, store, made))
        head = (
            f"# {self.title}\n\n"
            f"Scale `{self.scale}`, seeds {', '.join(map(str, plan.recipe.seeds))}; written {made['date']} by code "
            f"{made['code']} on {made['device']}. Made by `notebooks/{self.notebook}.ipynb`; settings, versions and stages in "
            "[manifest.json](manifest.json), every single result in [tables/results.csv](tables/results.csv)."
        )
        write_text(self.folder / "README.md", "\n\n".join([head, *self.parts]) + "\n")
        return self.folder / "README.md"

    def _manifest(self, plan: Plan, store: RunStore, made: Mapping[str, Any]) -> dict[str, Any]:
        stages = {
            stage.key: {"kind": stage.kind, "seed": stage.settings["seed"], "seconds": round(store.result(stage)["seconds"], 1),
                        "made": store.result(stage)["provenance"]}
            for stage in plan.stages
        }  # fmt: skip
        return {
            "notebook": self.notebook, "scale": self.scale, "provenance": made,
            "recipe": plan.recipe.model_dump(mode="json"),
            "arms": {arm: dict(plan.arms[arm].overrides) for arm in plan.recipe.arms},
            "stages": stages,
            "compute_seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        }  # fmt: skip
