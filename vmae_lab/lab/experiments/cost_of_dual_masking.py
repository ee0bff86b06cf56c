"""The cost of dual masking: counted for every size, measured on the device at hand, and as the paper reports it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vmae_lab.lab.arms import BLACK, BLUE, PAPER_SIZES, Arm
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.measure import GIB, largest_batch, parameter_count, predicted_bytes
from vmae_lab.lab.plan import Plan
from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts, pretrain_cost, saved_bytes, training_macs
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.paper import DecoderCost
from vmae_lab.training.distributed import bf16_is_native

STYLES = {
    "none": Arm("no decoder mask", BLACK, "o"),
    "cell_50": Arm("cell 50 %", BLUE, "D"),
    "none, counted": Arm("no decoder mask, counted", BLACK, "x"),
    "cell_50, counted": Arm("cell 50 %, counted", BLUE, "+"),
}


def counted_table(plan: Plan) -> pd.DataFrame:
    """One line a size and mask: parameters, multiply-accumulates, what backward keeps of a clip, and what the paper counts."""
    lines = []
    for arm in plan.possible:
        model, masks = _configuration(plan.first(arm).recipe)
        counts = TokenCounts.of(masks, model.clip)
        forward = pretrain_cost(model.dimensions, model.clip, counts.visible, counts.decoded)
        kept = saved_bytes(model.dimensions, model.clip, counts.visible, counts.decoded) / 2**20
        lines.append({
            "model, decoder mask": plan.arms[arm].label, "parameters, M": f"{parameter_count(model) / 1e6:.1f}",
            "seen / decoded tokens": f"{counts.visible} / {counts.decoded}",
            "forward, G (fvcore)": f"{forward.giga:.2f}", "forward, G MAC": f"{forward.macs / 1e9:.2f}",
            "forward and backward, G MAC": f"{_training(model, counts) / 1e9:.1f}",
            "kept a clip, MiB (float32)": f"{kept:.0f}",
        })  # fmt: skip
    return pd.DataFrame(lines)


def measured_table(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """One line a measured size, mask and batch: seconds, memory beside its prediction, multiply-accumulates a second."""
    half, lines = bf16_is_native(), []
    for arm in plan.possible:
        model, masks = _configuration(plan.first(arm).recipe)
        for name in plan.first(arm).measures:
            batch = int(name.removeprefix("step@"))
            seconds, peak = (_value(rows, arm, f"{metric}@{batch}") for metric in ("seconds_per_step", "peak_gib"))
            predicted = predicted_bytes(model, masks, batch, half) / GIB
            work = batch * _training(model, TokenCounts.of(masks, model.clip))
            lines.append({
                "model, decoder mask": plan.arms[arm].label, "clips a step": batch,
                "seconds a step": _text(seconds, ".2f", "does not fit"), "peak memory, GiB": _text(peak, ".2f"),
                "predicted, GiB": f"{predicted:.2f}",
                "measured / predicted": _text(peak / predicted, ".2f"), "G MAC a second": _text(work / seconds / 1e9, ".0f"),
            })  # fmt: skip
    return pd.DataFrame(lines)


def speed_up_table(plan: Plan, rows: pd.DataFrame, paper: Mapping[str, DecoderCost]) -> pd.DataFrame:
    """One line a size: how much cheaper the decoder mask makes a step, counted, measured (largest common batch), reported."""
    lines = []
    for size in _sizes(plan):
        counted = {mask: _counted(plan, f"{size}_{mask}") for mask in ("none", "cell_50")}
        measured = {mask: _measured_batches(plan, rows, f"{size}_{mask}") for mask in ("none", "cell_50")}
        both = sorted(set(measured["none"]) & set(measured["cell_50"]))
        ratios = {metric: _ratio(measured, both, index) for index, metric in enumerate(("seconds", "peak"))}
        reported = paper.get(size)
        lines.append({
            "model": size, "counted: training MAC": f"{counted['none'] / counted['cell_50']:.2f} x",
            "measured: seconds": _text(ratios["seconds"], ".2f", suffix=" x"), "at clips a step": both[-1] if both else "",
            "measured: peak memory": _text(ratios["peak"], ".2f", suffix=" x"),
            "paper, reported: time": f"{reported.speed_up:.2f} x" if reported else "",
            "paper, reported: hours on 64 A100": f"{reported.hours[0]:g} -> {reported.hours[1]:g}" if reported else "",
            "paper, reported: memory a clip, M": f"{reported.memory[0]} -> {reported.memory[1]}" if reported else "",
            "paper, reported: G MAC": f"{reported.giga[0]:.2f} -> {reported.giga[1]:.2f}" if reported else "",
        })  # fmt: skip
    return pd.DataFrame(lines)


def batch_table(plan: Plan, rows: pd.DataFrame) -> pd.DataFrame:
    """The largest batch in each memory: by the count in both precisions, and by the line through two measured batches."""
    budgets, lines = plan.recipe.measure.budgets_gib, []
    for arm in plan.possible:
        model, masks = _configuration(plan.first(arm).recipe)
        line: dict[str, str | int] = {"model, decoder mask": plan.arms[arm].label}
        for budget in budgets:
            line[f"{budget:g} GiB, counted, float32"] = largest_batch(model, masks, budget * GIB, half=False)
            line[f"{budget:g} GiB, counted, bf16"] = largest_batch(model, masks, budget * GIB, half=True)
            line[f"{budget:g} GiB, from measured"] = _extrapolated(plan, rows, arm, budget)
        lines.append(line)
    return pd.DataFrame(lines)


def panels(plan: Plan, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Counted work, measured seconds and memory a clip over sizes, for the figure."""
    work, time, memory = (dict[str, dict[str, float]]() for _ in range(3))
    for size in _sizes(plan):
        for mask in ("none", "cell_50"):
            arm = f"{size}_{mask}"
            model, masks = _configuration(plan.first(arm).recipe)
            measured = _measured_batches(plan, rows, arm)
            batch = max(measured, default=1)
            seconds, peak = measured.get(batch, (np.nan, np.nan))
            work.setdefault(mask, {})[size] = _counted(plan, arm) / 1e9
            time.setdefault(mask, {})[size] = seconds / batch
            memory.setdefault(mask, {})[size] = peak
            counted = predicted_bytes(model, masks, batch, bf16_is_native()) / GIB
            memory.setdefault(f"{mask}, counted", {})[size] = counted
    tables = {"G MAC a clip, forward and backward": work, "seconds a clip": time, "peak memory, GiB": memory}
    return {title: pd.DataFrame(table) for title, table in tables.items()}


def close_to_paper(plan: Plan, arm: str, giga: float) -> bool:
    """Whether the count is the paper's figure, in one of its two conventions, within .035 G.

    The paper prints 263.93 for the giant where our count and a counter over the official code give 263.96.
    """
    model, masks = _configuration(plan.first(arm).recipe)
    counts = TokenCounts.of(masks, model.clip)
    cost = pretrain_cost(model.dimensions, model.clip, counts.visible, counts.decoded)
    return min(abs(cost.giga - giga), abs(cost.macs / 1e9 - giga)) < 0.035


def conclusions(plan: Plan, rows: pd.DataFrame, paper: Mapping[str, DecoderCost]) -> list[str]:
    """What the decoder mask saves, counted beside measured beside reported, in words computed from the numbers."""
    table, words = speed_up_table(plan, rows, paper), []
    for _, row in table.iterrows():
        said = f"{row['model']}: a step is {row['counted: training MAC']} cheaper by the count"
        if row["measured: seconds"]:
            said += f", {row['measured: seconds']} faster on this device"
        if row["paper, reported: time"]:
            said += f"; the paper reports {row['paper, reported: time']} for the whole training"
        words.append(said + ".")
    return words


def _sizes(plan: Plan) -> list[str]:
    return [size for size in PAPER_SIZES if {f"{size}_none", f"{size}_cell_50"} <= set(plan.possible)]


def _configuration(recipe: Recipe) -> tuple[ModelSettings, MaskSettings]:
    return recipe.measure.model_of(recipe.measure.size), recipe.mask


def _training(model: ModelSettings, counts: TokenCounts) -> int:
    return training_macs(model.dimensions, model.clip, counts.visible, counts.decoded)


def _counted(plan: Plan, arm: str) -> int:
    model, masks = _configuration(plan.first(arm).recipe)
    return _training(model, TokenCounts.of(masks, model.clip))


def _value(rows: pd.DataFrame, arm: str, metric: str) -> float:
    """Mean over seeds, which here are one measurement; missing where it did not fit or was not tried."""
    if rows.empty:
        return np.nan
    return rows[(rows.arm == arm) & (rows.metric == metric)].value.mean()


def _measured_batches(plan: Plan, rows: pd.DataFrame, arm: str) -> dict[int, tuple[float, float]]:
    """Measured batches of an arm: clips a step -> seconds, GiB."""
    found = {}
    for batch in plan.recipe.measure.batch_sizes:
        seconds, peak = (_value(rows, arm, f"{metric}@{batch}") for metric in ("seconds_per_step", "peak_gib"))
        if not np.isnan(seconds):
            found[batch] = (seconds, peak)
    return found


def _ratio(measured: Mapping[str, Mapping[int, tuple[float, float]]], both: list[int], index: int) -> float:
    return measured["none"][both[-1]][index] / measured["cell_50"][both[-1]][index] if both else np.nan


def _extrapolated(plan: Plan, rows: pd.DataFrame, arm: str, budget: float) -> str:
    """Clips that fit by the line through the smallest and the largest measured batch; empty with fewer than two."""
    measured = _measured_batches(plan, rows, arm)
    if len(measured) < 2:
        return ""
    (low, (_, small)), (high, (_, large)) = min(measured.items()), max(measured.items())
    slope = (large - small) / (high - low)
    return str(max(0, int((budget - small) / slope + low))) if slope > 0 else ""


def _text(value: float, form: str, missing: str = "", suffix: str = "") -> str:
    return missing if np.isnan(value) else f"{value:{form}}{suffix}"
