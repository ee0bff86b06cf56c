"""How many seeds a plan's comparisons need, from the spread that finished runs show."""

import pandas as pd

from vmae_lab.lab.experiments import EXPERIMENTS
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.statistics import compare, points, seeds_needed, smallest_detectable
from vmae_lab.utils.paths import project_root, report_folder

ENOUGH = 3  # seeds to take a spread from
SPREADS = (1.0, 2.0, 4.0)  # points, if none is measured


def seeds_summary(plan: Plan, store: RunStore) -> str:
    """How many seeds find a difference as large as the margin, and what the planned seeds find; empty if nothing is compared.

    The spread is taken from this plan's finished stages, or else from the report of the notebook at its scale.
    """
    book, seeds, margin = EXPERIMENTS[plan.name], len(plan.recipe.seeds), plan.recipe.evaluate.margin
    baseline = book.baseline
    if baseline is None or baseline not in plan.possible or not plan.recipe.data.labelled:
        return ""
    arms = [arm for arm in plan.possible if arm not in (baseline, book.floor)]
    if not arms:
        return ""
    tests = f"80% power, {len(arms)} comparison{'s' * (len(arms) > 1)} with '{plan.arms[baseline].label}'"
    report = report_folder(plan.recipe.scale, plan.name) / "tables" / "results.csv"
    sources = {"finished stages of this plan": plan.rows_so_far(store)}
    if report.is_file():
        sources[str(report.relative_to(project_root()))] = pd.read_csv(report)
    for source, rows in sources.items():
        if rows.empty:
            continue
        table = compare(rows, book.metric_of(plan.recipe), baseline, margin, arms)
        spreads = table["std"][table.seeds >= ENOUGH].dropna().astype(float)
        if len(spreads):
            middle, largest = spreads.median(), spreads.max()
            needed = [seeds_needed(spread, margin, len(arms)) for spread in (middle, largest)]
            least = smallest_detectable(middle, seeds, len(arms))
            now = f" The {seeds} planned seeds find {least:.1f} points." if seeds > 1 else ""
            return (
                f"seeds: {needed[0]} find a difference of {points(margin)} in the median arm, {needed[1]} in the arm that "
                f"varies most ({tests}).{now} Standard deviation of paired differences: median {middle:.1f}, largest "
                f"{largest:.1f} points ({source})"
            )
    listed = ", ".join(f"{seeds_needed(spread, margin, len(arms))} if it is {points(spread)}" for spread in SPREADS)
    return (
        f"seeds: how many find a difference of {points(margin)} ({tests}) depends on the standard deviation of the paired "
        f"differences, which is unknown until {ENOUGH} seeds of two arms are finished: {listed}; {seeds} planned"
    )
