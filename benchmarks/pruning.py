"""Cost and accuracy with exact decoder pruning (`mask.prune`): `python benchmarks/pruning.py --out reports/benchmarks`.

Compares the running cell arms of the decoder-mask ablation at demo scale: decoding all tokens that the decoder mask leaves, as
the official code does, and only those in the loss. Finished stages of the ablation are reused.
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
    store.complete_all(plan.stages, plan.recipe.compute)
    rows = plan.rows(store)
    seeds = len(plan.recipe.seeds)
    write_benchmark(
        options.out, "pruning", "Decoding only tokens in the loss",
        f"Scale '{options.scale}', {seeds} seeds. Frozen ridge readout and attentive probe, top-1 in % (mean and standard "
        "deviation over seeds), and the paired difference pruned minus unpruned with its 95% t interval. A difference whose "
        f"interval contains 0 is not significant. MACs: this package's forward pass per clip. {machine_words()}.",
        pd.DataFrame([row_of(plan, rows, ratio) for ratio in RATIOS]),
    )  # fmt: skip


def measures(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> dict[str, Stage]:
    return {"probe": probe_stage(recipe, encoder, seed)}


def row_of(plan: Plan, rows: pd.DataFrame, ratio: float) -> dict:
    """Return one decoder ratio: decoded tokens, cost and accuracy, without and with pruning."""
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
