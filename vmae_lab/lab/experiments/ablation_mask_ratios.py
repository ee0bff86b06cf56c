"""Mask ratios: how much is masked for the encoder, and how much for the decoder."""

from itertools import product

import pandas as pd

from vmae_lab.lab.estimate import token_table
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Plan
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.style import BLACK, BLUE, GREEN, SKY
from vmae_lab.lab.statistics import pareto_front
from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts

BASELINE, FLOOR = "tube_90_cell_0", "scratch"
ENCODER_RATIOS = {0.5: "none", 0.75: "left", 0.9: "full", 0.95: "top"}  # ratio -> how a marker is filled
# Color and marker are those of the same decoder mask in ablation_decoder_mask, whose encoder ratio is 90%.
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
    "Mask ratios of encoder and decoder", "How much should be masked for the encoder and for the decoder?",
    ARMS, common.frozen_readouts, skip_impossible=True, baseline=BASELINE, floor=FLOOR,
)  # fmt: skip


def ratios_table(plan: Plan) -> Table:
    """Count the tubes that each encoder ratio masks on this grid. On a small grid, two ratios may mask the same number."""
    (time, height, width), lines = plan.recipe.model.clip.grid, []
    for ratio in dict.fromkeys(_ratios(plan, arm)[0] for arm in _masked(plan)):
        masks = MaskSettings(encoder_ratio=ratio, decoder="none", decoder_ratio=0.0)
        seen = TokenCounts.of(masks, plan.recipe.model.clip).visible // time
        masked = height * width - seen
        lines.append({
            "requested tube ratio": f"{ratio:g}", "tubes masked": f"{masked} of {height * width}",
            "actual ratio": f"{masked / (height * width):.3f}", "tubes seen": seen,
        })  # fmt: skip
    return Table(pd.DataFrame(lines), "grid", "The number of tubes that each encoder ratio masks on this grid.")


def impossible_table(plan: Plan) -> Table:
    """Return the combinations of ratios that this grid does not allow, with the reason."""
    lines = [{"cell": plan.arms[arm].label, "why it cannot be run": reason} for arm, reason in plan.impossible.items()]
    frame = pd.DataFrame(lines, columns=["cell", "why it cannot be run"])
    return Table(frame, "impossible", f"Combinations of ratios that this grid does not allow: {len(frame)}.")


def grid_of(plan: Plan, values: pd.Series) -> pd.DataFrame:
    """Return values by arm as a table: encoder ratios (rows), decoder ratios (columns); NaN if a combination is impossible."""
    table: dict[str, dict[str, float]] = {}
    for arm in _masked(plan):
        encoder, decoder = _ratios(plan, arm)
        table.setdefault(f"{decoder:.0%}", {})[f"{encoder:.0%}"] = values.get(arm)
    return pd.DataFrame(table).astype(float)


def maps(results: Results) -> Plot:
    plan, accuracy = results.plan, results.summary(results.probe)["mean"]
    tables = {
        "frozen few-label readout, top-1 (%)": grid_of(plan, accuracy),
        "pre-training cost (1e6 MAC per clip)": grid_of(plan, token_table(plan).MMAC),
    }
    figure = charts.heat_maps(tables, "decoder mask ratio (running cells)", "encoder mask ratio (tubes)")
    return Plot(figure, "maps", "Accuracy and cost by both ratios, means over seeds.")


def front(results: Results) -> list[str]:
    """Return the arms on the Pareto front of mean accuracy and forward cost, cheapest first."""
    accuracy = results.summary(results.probe)["mean"]
    return pareto_front(token_table(results.plan).MMAC, accuracy[results.plan.pretrained])


def pareto(results: Results) -> Plot:
    figure = charts.accuracy_against_cost(
        results.summary(results.probe), token_table(results.plan).MMAC, results.plan.arms, FLOOR, results.chance,
        "frozen few-label readout, top-1 (%)", legend="masks", front=front(results),
    )  # fmt: skip
    equal = common.equal_cost_words(results.plan)
    caption = f"Accuracy against pre-training cost. Bars: 95% t interval over seeds; line: Pareto front of the means.{equal}"
    return Plot(figure, "pareto", caption)


def results_table(results: Results) -> Table:
    """Return one row per arm: tokens, cost, accuracy, paired difference to the baseline, whether it is on the Pareto front."""
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
    """State what pre-training changes, and the verdicts against tubes of 90% without a decoder mask."""
    return common.readout_words(results, results.probe, FLOOR, BASELINE)


def _masked(plan: Plan) -> list[str]:
    return [arm for arm in plan.recipe.arms if plan.arms[arm].pretrained]


def _ratios(plan: Plan, arm: str) -> tuple[float, float]:
    """Return the encoder and decoder ratio of an arm, possible or not."""
    changes = plan.arms[arm].changes(plan.recipe)
    return changes["mask.encoder_ratio"], changes["mask.decoder_ratio"]
