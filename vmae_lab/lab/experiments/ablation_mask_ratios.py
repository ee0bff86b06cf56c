"""Mask ratios: how much is hidden from the encoder, times how much the decoder does not rebuild."""

from itertools import product

import pandas as pd

from vmae_lab.lab.estimate import token_table
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.style import BLACK, BLUE, GREEN, SKY
from vmae_lab.lab.report.tables import interval
from vmae_lab.lab.statistics import pareto_front
from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts

BASELINE, FLOOR = "tube_90_cell_0", "scratch"
ENCODER_RATIOS = {0.5: "none", 0.75: "left", 0.9: "full", 0.95: "top"}  # ratio -> how a marker is filled
# Colour and marker are those of the decoder mask in ablation_decoder_mask, which has the encoder's ratio 90%.
DECODER_RATIOS = {0.0: (BLACK, "o"), 0.25: (SKY, "P"), 0.5: (BLUE, "D"), 0.75: (GREEN, "*")}
ARMS: dict[str, Arm] = {"scratch": common.SCRATCH} | {
    f"tube_{round(100 * encoder)}_cell_{round(100 * decoder)}": Arm(
        f"tube {encoder:.0%}, cell {decoder:.0%}",
        colour,
        marker,
        {"mask.encoder_ratio": encoder, **common.running_cells(decoder)},
        fill=fill,
    )
    for (encoder, fill), (decoder, (colour, marker)) in product(ENCODER_RATIOS.items(), DECODER_RATIOS.items())
}
EXPERIMENT = Experiment(
    "Mask ratios of encoder and decoder", "How much should be hidden, and how much rebuilt?",
    ARMS, common.frozen_readouts, skip_impossible=True, baseline=BASELINE, floor=FLOOR,
)  # fmt: skip


def ratios_table(plan: Plan) -> Table:
    """How many tubes each encoder ratio masks on this grid: on a small grid two ratios may mask the same number."""
    (time, height, width), lines = plan.recipe.model.clip.grid, []
    for ratio in dict.fromkeys(_ratios(plan, arm)[0] for arm in _cells(plan)):
        masks = MaskSettings(encoder_ratio=ratio, decoder="none", decoder_ratio=0.0)
        seen = TokenCounts.of(masks, plan.recipe.model.clip).visible // time
        masked = height * width - seen
        lines.append({
            "requested tube ratio": f"{ratio:g}", "tubes masked": f"{masked} of {height * width}",
            "actual ratio": f"{masked / (height * width):.3f}", "tubes seen": seen,
        })  # fmt: skip
    return Table(pd.DataFrame(lines), "grid", "The number of tubes that each encoder ratio masks on this grid.")


def impossible_table(plan: Plan) -> Table:
    """The cells that this grid does not allow, and why."""
    lines = [{"cell": plan.arms[arm].label, "why it cannot be run": reason} for arm, reason in plan.impossible.items()]
    frame = pd.DataFrame(lines, columns=["cell", "why it cannot be run"])
    return Table(frame, "impossible", f"Cells that this grid does not allow: {len(frame)}.")


def grid_of(plan: Plan, values: pd.Series) -> pd.DataFrame:
    """Values by arm as a table of encoder ratios (rows) and decoder ratios (columns); missing if a cell is impossible."""
    table: dict[str, dict[str, float]] = {}
    for arm in _cells(plan):
        encoder, decoder = _ratios(plan, arm)
        table.setdefault(f"{decoder:.0%}", {})[f"{encoder:.0%}"] = values.get(arm)
    return pd.DataFrame(table).astype(float)


def maps(results: Results) -> Plot:
    plan, accuracy = results.plan, results.summary(results.probe)["mean"]
    tables = {
        "frozen few-label readout, top-1 (%)": grid_of(plan, accuracy),
        "pre-training cost (1e6 MAC per clip)": grid_of(plan, token_table(plan).MMAC),
    }
    figure = charts.heat_maps(tables, "decoder: running cells left out", "encoder: tubes hidden")
    return Plot(figure, "maps", "Accuracy and cost over both ratios; means over seeds.")


def front(results: Results) -> list[str]:
    """The cells on the Pareto front of accuracy and forward cost, cheapest first."""
    accuracy = results.summary(results.probe)["mean"]
    return pareto_front(token_table(results.plan).MMAC, accuracy[results.plan.pretrained])


def pareto(results: Results) -> Plot:
    figure = charts.accuracy_against_cost(
        results.summary(results.probe), token_table(results.plan).MMAC, results.plan.arms, FLOOR, results.chance,
        "frozen few-label readout, top-1 (%)", legend="masks", front=front(results),
    )  # fmt: skip
    caption = "Accuracy against pre-training cost; bars: 95% t interval over seeds, line: the front of the means."
    return Plot(figure, "pareto", caption)


def results_table(results: Results) -> Table:
    """One line per cell: tokens, cost, accuracy, paired difference to the baseline, and whether it is on the Pareto front."""
    differences = results.compare(results.probe, BASELINE, results.plan.pretrained)
    counts, best, lines = token_table(results.plan), front(results), []
    for arm in results.plan.possible:
        row = counts.loc[arm] if arm in counts.index else None
        lines.append({
            "masks": results.label(arm),
            "seen / decoded tokens": "" if row is None else f"{row.seen:.0f} / {row.decoded:.0f}",
            "M MAC per clip": "" if row is None else f"{row.MMAC:.2f}",
            "top-1 %": results.value(arm, results.probe),
            **common.comparison_cells(differences, arm, ARMS[BASELINE].label),
            "on the front": "yes" if arm in best else "",
        })  # fmt: skip
    return Table(pd.DataFrame(lines), "mask_ratios", common.caption(results, differences))


def conclusions(results: Results) -> list[str]:
    """The results in sentences."""
    plan, probe = results.plan, results.probe
    words = common.floor_words(results, probe, FLOOR)
    accuracy, costs = results.summary(probe).loc[plan.pretrained], token_table(plan).MMAC
    best, cheapest = accuracy["mean"].idxmax(), front(results)[0]
    row = accuracy.loc[best]
    words.append(
        f"The highest mean is that of '{results.label(best)}', {interval(row['mean'], row.low, row.high)[1:]}%, at "
        f"{costs[best]:.1f} M MAC per clip; the cheapest cell on the Pareto front is '{results.label(cheapest)}' "
        f"at {costs[cheapest]:.1f}. This does not rank cells whose intervals overlap."
    )
    if BASELINE in plan.possible:
        words.append(common.verdict_words(results, results.compare(probe, BASELINE, plan.pretrained), BASELINE))
    return words + common.impossible_words(plan)


def _cells(plan: Plan) -> list[str]:
    return [arm for arm in plan.recipe.arms if plan.arms[arm].pretrained]


def _ratios(plan: Plan, arm: str) -> tuple[float, float]:
    """Encoder and decoder ratio of a cell, possible or not."""
    changes = plan.arms[arm].changes(plan.recipe)
    return changes["mask.encoder_ratio"], changes["mask.decoder_ratio"]
