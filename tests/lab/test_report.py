"""A notebook's report: how it replaces the previous one, and which values are only in its manifest."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots.style import BLUE
from vmae_lab.lab.report.report import write_report
from vmae_lab.lab.run_store import RunStore

ARMS = {"one": Arm("one", BLUE, "o")}
EXPERIMENT = Experiment("Some", "Why?", ARMS, lambda *_: {})
TIMES = pd.DataFrame([{"kind": "all", "taken, s": "7"}])


@pytest.fixture
def results(smoke, project) -> Results:
    values = {"ridge": 70.0, "pretrain_seconds_per_step": 0.5, "finetune_seconds_per_step@20": 0.25, "seconds_per_step@2": 3.0}
    rows = pd.DataFrame([{"arm": "one", "seed": 0, "metric": metric, "value": value} for metric, value in values.items()])
    plan = Plan("some", build_recipe({**smoke, "arms": ["one"]}), ARMS, [], None, {})
    return Results(plan, rows, RunStore(project / "runs"))


def test_dates_and_times_of_a_run_are_only_in_the_manifest(results):
    """Times that are the result of a measurement stay in the table."""
    page = write_report("some", EXPERIMENT, results, [], [], TIMES)
    assert set(pd.read_csv(page.parent / "tables" / "results.csv").metric) == {"ridge", "seconds_per_step@2"}
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert manifest["seconds_per_step"] == {"one": {"pretrain_seconds_per_step": 0.5, "finetune_seconds_per_step@20": 0.25}}
    assert manifest["times"] == [{"kind": "all", "taken, s": "7"}]
    made = manifest["provenance"]
    assert not [name for name in ("date", "code", "device") if made[name] in page.read_text()]


@pytest.mark.parametrize("has", ["table", "figure", "neither"])
def test_a_report_replaces_all_parts_of_the_previous_one(results, project, has):
    results = replace(results, rows=results.plan.rows(results.store))  # no rows, like a plan that measures nothing
    parts = {
        "table": Table(pd.DataFrame({"arm": ["one"]}), "means", "Means."),
        "figure": Plot(Figure(), "curve", "A curve."),
        "animation": Plot(b"gif", "moves", "An animation."),
    }
    write_report("some", EXPERIMENT, results, ["It works."], list(parts.values()), TIMES)
    folder = project / "reports" / "smoke" / "some"
    assert (folder / "figures" / "moves.gif").read_bytes() == b"gif"
    page = write_report("some", EXPERIMENT, results, [], [parts[has]] if has in parts else [], TIMES).read_text()
    assert ("| arm" in page, "curve.png" in page) == (has == "table", has == "figure")
    assert (folder / "tables" / "means.csv").exists() == (has == "table")
    assert (folder / "figures" / "curve.png").exists() == (has == "figure")
    assert not (folder / "figures" / "moves.gif").exists()
    assert not (folder / ".fresh.tmp").exists()
