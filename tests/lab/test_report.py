"""A notebook's report, as it is put in the place of the one before."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots.style import BLUE
from vmae_lab.lab.report.report import Report
from vmae_lab.lab.run_store import RunStore


@pytest.mark.parametrize("has", ["table", "figure", "neither"])
def test_a_report_of_tables_or_of_figures_alone_replaces_the_one_before(smoke, project, has):
    plan = Plan("some", build_recipe({**smoke, "arms": ["one"]}), {"one": Arm("one", BLUE, "o")}, [], None, {})

    def close(*parts: str) -> str:
        report = Report("some", "smoke", "Some", "Why?")
        if "table" in parts:
            report.table(pd.DataFrame({"arm": ["one"]}), "means", "Means.")
        if "figure" in parts:
            report.figure(Figure(), "curve", "A curve.")
        return report.close(plan, RunStore(project / "runs")).read_text()

    close("table", "figure")
    page, folder = close(has), project / "reports" / "smoke" / "some"
    assert ("| arm" in page, "curve.png" in page) == (has == "table", has == "figure")
    assert (folder / "tables" / "means.csv").exists() == (has == "table")
    assert (folder / "figures" / "curve.png").exists() == (has == "figure")
    assert not (folder / ".fresh.tmp").exists()
