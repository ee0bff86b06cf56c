"""What exact decoder pruning (`mask.prune`) saves and what it does to what is learned: `python benchmarks/pruning.py --out …`.

The running-cell arms of the decoder-mask ablation at demo scale, decoding every token the decoder mask leaves (as the official
code does) and only those that enter the loss. Stages of the ablation that were run are reused.
"""

import argparse
from pathlib import Path

import pandas as pd
from parts.written import machine_words, write_benchmark

from vmae_lab.cli.parameters import scale_parameters
from vmae_lab.lab.config import Recipe, build_recipe
from vmae_lab.lab.estimate import plan_summary
from vmae_lab.lab.plan import Arm, Plan, plan_ablation
from vmae_lab.lab.plots.style import BLUE
from vmae_lab.lab.run_store import RunStore
from vmae_lab.lab.stages import Stage, probe_stage
from vmae_lab.lab.statistics import compare, summarise
from vmae_lab.models.flops import TokenCounts, pretrain_cost
from vmae_lab.utils.paths import project_root, runs_folder

RATIOS = (0.25, 0.5, 0.75)


def arm(ratio: float, prune: bool) -> Arm:
    changes = {"mask.decoder": "running_cell", "mask.decoder_ratio": ratio, "mask.prune": prune}
    return Arm(f"cell {ratio:.0%}{', pruned' * prune}", BLUE, "o", changes)


ARMS = {f"{ratio}{'p' * prune}": arm(ratio, prune) for ratio in RATIOS for prune in (False, True)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--scale", default="demo")
    arguments.add_argument("--out", type=Path, help="folder for the table")
    options = arguments.parse_args()
    tree = {**scale_parameters(options.scale, project_root() / "params", ()), "arms": list(ARMS)}
    plan = plan_ablation("pruning", build_recipe(tree, ARMS), ARMS, measures)
    store = RunStore(runs_folder())
    print(plan_summary(plan, store), flush=True)
    rows = plan.run(store)
    seeds = len(plan.recipe.seeds)
    write_benchmark(
        options.out, "pruning", "Decoding only what enters the loss",
        f"Scale '{options.scale}', {seeds} seeds; frozen ridge readout and attentive probe, top-1 in % (mean and standard "
        "deviation over seeds), and the paired difference pruned minus not, with its 95 % t interval. MACs: forward, a clip, "
        f"as this package computes them. A difference whose interval holds 0 is not told apart from none. {machine_words()}.",
        pd.DataFrame([row_of(plan, rows, ratio) for ratio in RATIOS]),
    )  # fmt: skip


def measures(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> dict[str, Stage]:
    return {"probe": probe_stage(recipe, encoder, seed)}


def row_of(plan: Plan, rows: pd.DataFrame, ratio: float) -> dict:
    """One decoder ratio: what is decoded, what it costs, what is learned, without pruning and with it."""
    whole, pruned = f"{ratio}", f"{ratio}p"
    row: dict = {"decoder ratio": ratio}
    decoded, macs = {}, {}
    for name in (whole, pruned):
        recipe = plan.first(name).recipe
        counts = TokenCounts.of(recipe.mask, recipe.model.clip)
        cost = pretrain_cost(recipe.model.dimensions, recipe.model.clip, counts.visible, counts.decoded, embed_visible=True)
        decoded[name], macs[name] = counts.decoded, cost.macs
    row["tokens decoded"] = f"{decoded[whole]} -> {decoded[pruned]}"
    row["MACs saved, %"] = 100 * (1 - macs[pruned] / macs[whole])
    for metric in recipe.evaluate.probe.probes:
        means = summarise(rows, metric)
        difference = compare(rows, metric, whole, arms=[pruned]).loc[pruned]
        row[metric] = " -> ".join(f"{means.loc[name, 'mean']:.1f} +- {means.loc[name, 'std']:.1f}" for name in (whole, pruned))
        row[f"{metric}, difference"] = f"{difference.difference:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"
    return row


if __name__ == "__main__":
    main()
