"""Mask ratios: how much the encoder does not see, times how much the decoder does not rebuild."""

import pandas as pd

from vmae_lab.lab.estimate import token_table
from vmae_lab.lab.experiments.common import (
    compared,
    comparison_cells,
    floor_words,
    how_compared,
    how_made,
    impossible_words,
    main_probe,
    mean_and_spread,
    verdict_words,
)
from vmae_lab.lab.plan import Plan
from vmae_lab.lab.report.tables import interval
from vmae_lab.lab.statistics import pareto_front, summarise
from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts


def ratios_on_the_grid(plan: Plan) -> pd.DataFrame:
    """What each encoder ratio leaves of a frame of this grid: ratios that differ may leave the same, small grids few."""
    (time, height, width), lines = plan.recipe.model.clip.grid, []
    for ratio in dict.fromkeys(_ratios(plan, arm)[0] for arm in _cells(plan)):
        masks = MaskSettings(encoder_ratio=ratio, decoder="none", decoder_ratio=0.0)
        seen = TokenCounts.of(masks, plan.recipe.model.clip).visible // time
        masked = height * width - seen
        lines.append({
            "tube ratio asked for": f"{ratio:g}", "tubes masked": f"{masked} of {height * width}",
            "ratio got": f"{masked / (height * width):.3f}", "tubes seen": seen,
        })  # fmt: skip
    return pd.DataFrame(lines)


def impossible_table(plan: Plan) -> pd.DataFrame:
    """The cells that this grid cannot have, and why; empty where it has all."""
    lines = [{"cell": plan.arms[arm].label, "why it cannot be run": reason} for arm, reason in plan.impossible.items()]
    return pd.DataFrame(lines, columns=["cell", "why it cannot be run"])


def grid_of(plan: Plan, values: pd.Series) -> pd.DataFrame:
    """Values by arm as a table, encoder ratios down and decoder ratios across; missing where a cell is not possible."""
    table: dict[str, dict[str, float]] = {}
    for arm in _cells(plan):
        encoder, decoder = _ratios(plan, arm)
        table.setdefault(f"{100 * decoder:.0f} %", {})[f"{100 * encoder:.0f} %"] = values.get(arm)
    return pd.DataFrame(table).astype(float)


def front(plan: Plan, rows: pd.DataFrame) -> list[str]:
    """The cells on the Pareto front of accuracy and forward cost, cheapest first."""
    accuracy = summarise(rows, main_probe(plan))["mean"]
    return pareto_front(token_table(plan).MMAC, accuracy[plan.pretrained])


def results_table(plan: Plan, rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One line a cell: tokens, cost, accuracy, paired difference to the baseline, and whether it is on the Pareto front."""
    probe = main_probe(plan)
    accuracy, differences = summarise(rows, probe), compared(plan, rows, probe, baseline, plan.pretrained)
    counts, best = token_table(plan), front(plan, rows)
    lines = []
    for arm in plan.possible:
        row = counts.loc[arm] if arm in counts.index else None
        lines.append({
            "masks": plan.arms[arm].label,
            "seen / decoded tokens": "" if row is None else f"{row.seen:.0f} / {row.decoded:.0f}",
            "M MAC a clip": "" if row is None else f"{row.MMAC:.2f}",
            "top-1 %": mean_and_spread(accuracy, arm),
            **comparison_cells(differences, arm, plan.arms[baseline].label),
            "on the front": "yes" if arm in best else "",
        })  # fmt: skip
    return pd.DataFrame(lines)


def results_caption(plan: Plan, rows: pd.DataFrame, baseline: str) -> str:
    """How the main table was made."""
    return f"{how_made(plan)} {how_compared(plan, compared(plan, rows, main_probe(plan), baseline, plan.pretrained))}"


def conclusions(plan: Plan, rows: pd.DataFrame, baseline: str, floor: str) -> list[str]:
    """What the numbers say, in words computed from them."""
    probe = main_probe(plan)
    words = floor_words(plan, rows, probe, floor)
    accuracy = summarise(rows, probe).loc[plan.pretrained]
    best, costs = accuracy["mean"].idxmax(), token_table(plan).MMAC
    row = accuracy.loc[best]
    words.append(
        f"The highest mean is that of '{plan.arms[best].label}', {interval(row['mean'], row.low, row.high)[1:]} %, at "
        f"{costs[best]:.1f} M MAC a clip; the cheapest cell on the Pareto front is '{plan.arms[front(plan, rows)[0]].label}' "
        f"at {costs[front(plan, rows)[0]]:.1f}. Cells whose intervals overlap are not ranked by this."
    )
    if baseline in plan.possible:
        words.append(verdict_words(plan, compared(plan, rows, probe, baseline, plan.pretrained), baseline))
    return words + impossible_words(plan)


def _cells(plan: Plan) -> list[str]:
    return [arm for arm in plan.recipe.arms if plan.arms[arm].pretrained]


def _ratios(plan: Plan, arm: str) -> tuple[float, float]:
    """Encoder and decoder ratio of a cell, possible or not."""
    changes = plan.arms[arm].changes(plan.recipe)
    return changes["mask.encoder_ratio"], changes["mask.decoder_ratio"]
