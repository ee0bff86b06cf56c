"""Hybrid data: which sources are pre-trained on, in which shares, and for how many steps."""

from collections.abc import Callable, Mapping

import pandas as pd

from vmae_lab.lab.config import Recipe
from vmae_lab.lab.experiments import common
from vmae_lab.lab.experiments.common import Experiment, Plot, Results, Table
from vmae_lab.lab.plan import Arm, Overrides, Plan
from vmae_lab.lab.plots import charts
from vmae_lab.lab.plots.style import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY
from vmae_lab.lab.stages import Stage, probe_stage

BASELINE, FLOOR = "one", "scratch"
# Pools to pre-train on: source -> part of its clips. They are unequal, as in the paper (658, 250, 250, 169 and 21 thousand
# clips). TARGET is in all pools, UNSEEN in none.
TARGET, UNSEEN = "plaids", "striped_plaids"
POOLS: dict[str, Mapping[str, float]] = {
    "one": {"plaids": 1.0},
    "two": {"plaids": 1.0, "coarse_plaids": 0.5},
    "all": {"plaids": 1.0, "coarse_plaids": 0.5, "dark_plaids": 0.25, "photographs": 0.125},
}
ALL_SOURCES = (*POOLS["all"], UNSEEN)
# What encoders are evaluated on: the suffix of a metric (`ridge@unseen`) -> its source, and its name in tables.
PLACES = {"target": TARGET, "unseen": UNSEEN}
NAMES = {"target": f"target source ({TARGET})", "unseen": f"source in no pool ({UNSEEN})"}


def hybrid_pool(pool: str, equal_epochs: bool = False, mixing: float = 1.0) -> Callable[[Recipe], Overrides]:
    """Return overrides to pre-train on a pool.

    Training takes the recipe's steps or, with `equal_epochs`, as many epochs as these steps are on the smallest pool.
    """

    def overrides(recipe: Recipe) -> Overrides:
        limits = common.clips_per_action(recipe, POOLS[pool])
        growth = sum(limits.values()) / sum(common.clips_per_action(recipe, POOLS["one"]).values()) if equal_epochs else 1
        return {
            "data.pretrain_sources": list(limits), "data.pretrain_limits": limits, "data.mixing": mixing,
            "pretrain.steps": round(recipe.pretrain.steps * growth),
        }  # fmt: skip

    return overrides


ARMS: dict[str, Arm] = {
    "scratch": common.SCRATCH,
    "one": Arm("one source", BLACK, "o", hybrid_pool("one")),
    "two": Arm("two sources", SKY, "P", hybrid_pool("two")),
    "all": Arm("four sources", BLUE, "D", hybrid_pool("all")),
    "two_epochs": Arm("two sources, equal epochs", ORANGE, "s", hybrid_pool("two", equal_epochs=True)),
    "all_epochs": Arm("four sources, equal epochs", RED, "^", hybrid_pool("all", equal_epochs=True)),
    "all_tempered": Arm("four sources, tempered", PINK, "v", hybrid_pool("all", mixing=0.5)),
    "all_uniform": Arm("four sources, uniform", GREEN, "*", hybrid_pool("all", mixing=0.0)),
}


def stages(recipe: Recipe, arm: Arm, encoder: Stage, seed: int) -> Mapping[str, Stage]:
    """Build frozen readouts on the target source and on the source that is in no pool."""
    return {
        f"probe@{place}": probe_stage(recipe.with_overrides({"evaluate.sources": [source]}), encoder, seed)
        for place, source in PLACES.items()
    }


EXPERIMENT = Experiment(
    "Hybrid data: sources, shares, steps", "Does a mixture of sources help?",
    ARMS, stages, sources=ALL_SOURCES, baseline=BASELINE, metric="probe@target", floor=FLOOR,
)  # fmt: skip


def planned_pools(plan: Plan) -> pd.DataFrame:
    """Return clips of each source and steps of each arm's pre-training. Index: arm."""
    table = {}
    for arm in plan.pretrained:
        recipe = plan.first(arm).recipe
        clips = {source: recipe.data.classes * limit for source, limit in recipe.data.pretrain_limits.items()}
        table[arm] = {**dict.fromkeys(POOLS["all"], 0), **clips, "steps": recipe.pretrain.steps}
    return pd.DataFrame.from_dict(table, orient="index")


def shares(results: Results) -> pd.DataFrame:
    """Return the share of each source in the training samples, in percent. Index: label of the arm; columns: sources."""
    table = {}
    for arm in results.plan.pretrained:
        drawn = results.store.result(results.plan.first(arm).encoder)["samples_by_source"]
        table[results.label(arm)] = {source: 100 * count / sum(drawn.values()) for source, count in drawn.items()}
    return pd.DataFrame.from_dict(table, orient="index").reindex(columns=list(POOLS["all"])).fillna(0.0)


def shares_plot(results: Results) -> Plot:
    figure = charts.stacked_shares(shares(results), "share of the pre-training samples (%)")
    return Plot(figure, "shares", "Share of each source in the samples of pre-training, counted during training.")


def pools_table(results: Results) -> Table:
    """Return one row per arm: clips and steps, epochs of the pool and of the target source, share of each source."""
    share, lines = shares(results), []
    for arm in results.plan.pretrained:
        recipe = results.plan.first(arm).recipe
        limits, classes = recipe.data.pretrain_limits, recipe.data.classes
        samples = recipe.pretrain.steps * recipe.pretrain.batch_size / recipe.pretrain.repeats
        row = share.loc[results.label(arm)]
        lines.append({
            "pre-trained on": results.label(arm), "clips": classes * sum(limits.values()), "steps": recipe.pretrain.steps,
            "epochs of the pool": f"{samples / (classes * sum(limits.values())):.1f}",
            f"epochs of {TARGET}": f"{samples * row[TARGET] / 100 / (classes * limits[TARGET]):.1f}",
            **{f"{source}, % of steps": f"{value:.1f}" for source, value in row.items()},
        })  # fmt: skip
    return Table(pd.DataFrame(lines), "pools", "The pools, and for how many epochs they were trained on.")


def accuracy_plot(results: Results) -> Plot:
    summaries = {NAMES[place]: results.summary(f"{results.probe}@{place}") for place in PLACES}
    figure = charts.dots_by_arm(summaries, results.plan.arms, results.chance, "frozen few-label readout, top-1 (%)")
    return Plot(
        figure, "accuracy", "Frozen readout on the target source and on the unseen one. Bars: 95% t interval over seeds."
    )


def results_table(results: Results) -> Table:
    """Return one row per arm: accuracy on each evaluated source, and the paired difference to the baseline."""
    metrics = {NAMES[place]: f"{results.probe}@{place}" for place in PLACES}
    differences = {name: results.compare(metric, BASELINE, results.plan.pretrained) for name, metric in metrics.items()}
    lines = []
    for arm in results.plan.possible:
        line = {"pre-trained on": results.label(arm)}
        for name, metric in metrics.items():
            line[f"{name}: top-1 %"] = results.value(arm, metric)
            line |= common.comparison_cells(differences[name], arm, ARMS[BASELINE].label, f"{name}: ")
        lines.append(line)
    caption = common.caption(results, *differences.values(), sources=list(NAMES.values()))
    return Table(pd.DataFrame(lines), "hybrid_data", caption)


def conclusions(results: Results) -> list[str]:
    """State what pre-training changes, and the verdicts, for each evaluated source."""
    return [
        f"{name.capitalize()}: {sentence}"
        for place, name in NAMES.items()
        for sentence in common.readout_words(results, f"{results.probe}@{place}", FLOOR, BASELINE)
    ]
