"""A notebook's report, as it replaces the previous one."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots.style import BLUE
from vmae_lab.lab.report.report import write_report
from vmae_lab.lab.run_store import RunStore


@pytest.mark.parametrize("has", ["table", "figure", "neither"])
def test_a_report_replaces_all_parts_of_the_previous_one(smoke, project, has):
    arms = {"one": Arm("one", BLUE, "o")}
    plan = Plan("some", build_recipe({**smoke, "arms": ["one"]}), arms, [], None, {})
    results = Results(plan, pd.DataFrame(), RunStore(project / "runs"))
    experiment = Experiment("Some", "Why?", arms, lambda *_: {})
    parts = {
        "table": Table(pd.DataFrame({"arm": ["one"]}), "means", "Means."),
        "figure": Plot(Figure(), "curve", "A curve."),
        "animation": Plot(b"gif", "moves", "An animation."),
    }
    write_report("some", experiment, results, ["It works."], list(parts.values()))
    folder = project / "reports" / "smoke" / "some"
    assert (folder / "figures" / "moves.gif").read_bytes() == b"gif"
    page = write_report("some", experiment, results, [], [parts[has]] if has in parts else []).read_text()
    assert ("| arm" in page, "curve.png" in page) == (has == "table", has == "figure")
    assert (folder / "tables" / "means.csv").exists() == (has == "table")
    assert (folder / "figures" / "curve.png").exists() == (has == "figure")
    assert not (folder / "figures" / "moves.gif").exists()
    assert not (folder / ".fresh.tmp").exists()
