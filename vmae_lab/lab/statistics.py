"""Statistics over seeds: summaries, comparisons with simultaneous intervals and verdicts, power, trends.

`compare` makes all verdicts in reports. docs/statistics.md describes the method and its measured error rates.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtr
from statsmodels.regression.linear_model import OLS

from vmae_lab.evaluation.classification import CONFIDENCE
from vmae_lab.utils.counts import counted

LEVEL = 1 - CONFIDENCE  # significance level of the tests: 5%
# The error is pooled over arms if Levene's test at this level does not find unequal spreads. A preliminary test needs a high
# level (Bancroft 1964), and with fewer seeds than this none finds unequal spreads reliably.
POOLING_LEVEL, POOLING_SEEDS = 0.25, 8
POWER = 0.8
MAX_MORE_SEEDS = 100  # the largest number that a verdict recommends
HIGHER, LOWER, UNDECIDED, NOT_MEASURED = "higher", "lower", "undecided", "not measured"
COLUMNS = (
    "difference", "low", "high", "p", "p_adjusted", "p_tost", "p_tost_adjusted", "std", "df", "seeds", "pooled", "comparisons",
    "detectable", "more_seeds", "verdict",
)  # fmt: skip


def summarise(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return mean, standard deviation, t interval and number of seeds of each arm (the index), in the order of the rows."""
    table = {}
    for arm, group in rows[rows.metric == metric].groupby("arm", sort=False):
        values = group.value.to_numpy()
        low, high = t_interval(values)
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        table[arm] = {"mean": values.mean(), "std": spread, "low": low, "high": high, "seeds": len(values)}
    return pd.DataFrame.from_dict(table, orient="index")


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Return Student's 95% interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return np.nan, np.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def compare(
    rows: pd.DataFrame, metric: str, baseline: str, margin: float = 2.0, arms: Sequence[str] | None = None,
    required: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Compare arms with a baseline at the same seeds. Return one row per arm (the index) with the columns COLUMNS.

    `difference` is the mean over the seeds that arm and baseline share. `low` and `high` are 95% intervals, simultaneous over
    all rows. `std` is the standard deviation of a paired difference on which the interval is based: that of the arm's own
    paired differences (Bonferroni over the rows), or, with at least 8 complete seeds and no sign of unequal spread, one from
    all arms (`pooled`, with Dunnett's critical value).

    `verdict` is the first that applies: `equivalent within 2 points` (two one-sided tests at 5%, Holm over the rows), `higher`
    or `lower` (the interval excludes zero), or `undecided`. `more_seeds` estimates how many more seeds decide it with 80%
    power. `detectable` is the smallest true difference that is found with 80% power.

    `arms`: the arms to compare, by default all that have the metric. An arm without a value is `not measured`. `margin`: of
    equivalence, in points. Raises ValueError if the baseline has no value of the metric; if it is not `required`, the table is
    empty instead.
    """
    values = _by_seed(rows, metric)
    others = [arm for arm in (values.columns if arms is None else arms) if arm != baseline]
    if baseline not in values:
        if required:
            raise ValueError(_not_measured(rows, metric, baseline))
        return pd.DataFrame(columns=COLUMNS)
    differences = {arm: values[arm] - values[baseline] if arm in values else values[baseline] * np.nan for arm in others}
    return compare_differences(pd.DataFrame(differences, columns=others), margin)


def compare_pairs(rows: pd.DataFrame, metric: str, pairs: Sequence[tuple[str, str]], margin: float = 2.0) -> pd.DataFrame:
    """Compare the first arm of each pair (the index) with the second, as `compare` does, without pooling the error.

    Pairs are left out if one of their arms has no value.
    """
    values = _by_seed(rows, metric)
    pairs = [pair for pair in pairs if set(pair) <= set(values.columns)]
    differences = pd.DataFrame({i: values[arm] - values[other] for i, (arm, other) in enumerate(pairs)}, index=values.index)
    return compare_differences(differences, margin, one_baseline=False).set_axis(pd.Index(pairs, tupleize_cols=False))


def _not_measured(rows: pd.DataFrame, metric: str, baseline: str) -> str:
    """Describe why a metric of a baseline is missing, and which metrics or arms can be used instead."""
    measured = rows.dropna(subset="value")
    arms = measured[measured.metric == metric].arm.unique()
    if len(arms):
        return f"baseline '{baseline}' has no value of metric '{metric}'; arms that have one: {', '.join(arms)}"
    return f"no arm has a value of metric '{metric}'; metrics of these rows: {', '.join(measured.metric.unique()) or 'none'}"


def _by_seed(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the values of a metric: one row per seed, one column per arm."""
    chosen = rows[rows.metric == metric].dropna(subset="value")
    return chosen.pivot(index="seed", columns="arm", values="value")[list(chosen.arm.unique())]


def compare_differences(differences: pd.DataFrame, margin: float = 2.0, one_baseline: bool = True) -> pd.DataFrame:
    """Return the comparisons of one table, as `compare` does. differences: one row per seed, one column per comparison.

    `one_baseline`: all comparisons have the same baseline, so the error may be pooled.
    """
    measured = differences.dropna(axis=1, how="all").dropna(axis=0, how="all")
    if measured.empty:
        return pd.DataFrame({"verdict": NOT_MEASURED, "seeds": 0, "pooled": False}, differences.columns, COLUMNS)
    found = evaluate_differences(measured.to_numpy(), margin, one_baseline)
    table = pd.DataFrame(found, measured.columns)
    count, pooled = len(table), bool(table.pooled.any())
    size = (table.difference / table["std"]).abs() * np.sqrt(table.seeds)
    dunnett = [_dunnett(t, count, df) for t, df in zip(size, table.df, strict=True)] if pooled else None
    table["p_adjusted"] = dunnett or (count * table.p).clip(upper=1.0)
    table["comparisons"] = count
    table["detectable"] = [
        smallest_detectable(sd, seeds, count, pooled=pooled) for sd, seeds in zip(table["std"], table.seeds, strict=True)
    ]
    table["more_seeds"] = np.nan
    for name, row in table[table.verdict == UNDECIDED].iterrows():
        table.loc[name, ["more_seeds", "verdict"]] = _undecided(row, margin)
    table = table.reindex(index=differences.columns, columns=COLUMNS)
    return table.fillna({"verdict": NOT_MEASURED, "seeds": 0, "pooled": False}).astype({"seeds": int, "pooled": bool})


def evaluate_differences(differences: np.ndarray, margin: float, one_baseline: bool = True) -> dict[str, np.ndarray]:
    """Return estimates, tests and verdicts of comparisons, as arrays `(..., comparisons)`: also for many tables at once.

    differences: paired, `(..., seeds, comparisons)`; NaN if a seed is missing. `one_baseline`: see `compare_differences`.
    """
    count, values = differences.shape[-1], np.ma.masked_invalid(differences)
    seeds, difference, own = values.count(-2), values.mean(-2).filled(np.nan), values.std(-2, ddof=1).filled(np.nan)
    pooled = (_equal_spread(differences) if one_baseline else np.zeros(differences.shape[:-2], bool))[..., None]
    # A pooled error is the largest of three estimates. The two-way residual error assumes equal spread; the other two account
    # for a baseline or an arm with a larger spread. So pooling only adds degrees of freedom.
    common = np.sqrt(np.maximum(2 * _two_way_error(differences), (own**2).mean(-1)))[..., None]
    std = np.where(pooled, np.maximum(own, common), own)
    std = np.where(std > 1e-9, std, np.nan)  # if all differences are equal, their error is unknown
    df = np.where(pooled, count * (differences.shape[-2] - 1), seeds - 1)
    critical = stats.t.ppf(1 - LEVEL / 2 / count, np.maximum(df, 1))
    if pooled.any():
        critical = np.where(pooled, dunnett_critical(count, count * (differences.shape[-2] - 1)), critical)
    error = std / np.sqrt(np.maximum(seeds, 1))
    low, high = difference - critical * error, difference + critical * error
    p_tost = np.asarray(stats.t.sf((margin - np.abs(difference)) / error, np.maximum(df, 1)))
    p_holm = _holm(p_tost)
    return {
        "difference": difference, "low": low, "high": high, "p": 2 * stats.t.sf(np.abs(difference) / error, np.maximum(df, 1)),
        "p_tost": p_tost, "p_tost_adjusted": p_holm, "std": std, "df": df, "seeds": seeds,
        "pooled": np.broadcast_to(pooled, difference.shape), "verdict": _verdicts(low, high, p_holm, margin),
    }  # fmt: skip


def _verdicts(low: np.ndarray, high: np.ndarray, p_equivalence: np.ndarray, margin: float) -> np.ndarray:
    """Return verdicts. Equivalence comes first: a significant difference inside the margin is equivalent."""
    equivalent = f"equivalent within {points(margin)}"
    return np.select([p_equivalence <= LEVEL, low > 0, high < 0], [equivalent, HIGHER, LOWER], UNDECIDED)


def points(count: float) -> str:
    """Return `1 point`, `2 points` and so on."""
    return counted(count, "point", "g")


def _holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p values over the last axis. Unlike statsmodels, for many tables at once; NaN counts as a test."""
    order = np.argsort(p, -1)  # NaN last
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1, np.maximum.accumulate(steps, -1)), -1)
    return adjusted


def _residuals(differences: np.ndarray) -> np.ndarray:
    """Return the residuals of the table without the effects of arm and seed: `(..., seeds, comparisons + 1)`, baseline first.

    Differences are enough: the values of the baseline are part of the effects of the seeds.
    """
    table = np.concatenate([np.zeros_like(differences[..., :1]), differences], -1)
    table = table - table.mean(-1, keepdims=True)
    return table - table.mean(-2, keepdims=True)


def _two_way_error(differences: np.ndarray) -> np.ndarray:
    """Return the residual mean square of the two-way layout (arm, seed): `(...)`. NaN with a missing value or only one seed."""
    seeds, comparisons = differences.shape[-2:]
    squares = (_residuals(differences) ** 2).sum((-1, -2))
    return squares / (comparisons * (seeds - 1)) if seeds > 1 else squares * np.nan


def _equal_spread(differences: np.ndarray) -> np.ndarray:
    """Return whether the error may be pooled, `(...)`: enough complete seeds, and Levene's test finds no unequal spread."""
    seeds, comparisons = differences.shape[-2:]
    if seeds < POOLING_SEEDS or comparisons < 2:
        return np.zeros(differences.shape[:-2], bool)
    sizes = np.abs(_residuals(differences))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = stats.f_oneway(*np.moveaxis(sizes, -1, 0), axis=-1).pvalue
    return p > POOLING_LEVEL  # False for NaN, if a value is missing


@cache
def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights to integrate over a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(96)
    return nodes, weights / weights.sum()


@cache
def _error_nodes(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights to integrate over the estimated error in units of the true error: chi / sqrt(df)."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    return np.sqrt(stats.chi2.ppf((nodes + 1) / 2, df) / df), weights / 2


def _dunnett(size: float, comparisons: int, df: int) -> float:
    """Return P(max |t| > size) over comparisons with one baseline, whose t statistics have correlation 1/2."""
    if np.isnan(size):
        return np.nan
    (normal, weights), (errors, others) = _normal_nodes(), _error_nodes(df)
    limits = np.sqrt(2) * size * errors[:, None]
    inside = (ndtr(normal + limits) - ndtr(normal - limits)) ** comparisons @ weights
    return float(max(0.0, 1 - others @ inside))


@cache
def dunnett_critical(comparisons: int, df: int) -> float:
    """Return the two-sided 95% point of max |t| over comparisons with one baseline (Dunnett 1964)."""
    return float(brentq(lambda size: _dunnett(size, comparisons, df) - LEVEL, 1, 100))


def _critical(seeds: int, comparisons: int, pooled: bool) -> tuple[float, int]:
    """Return the critical value of a comparison's t statistic, and its degrees of freedom."""
    if pooled:
        return dunnett_critical(comparisons, comparisons * (seeds - 1)), comparisons * (seeds - 1)
    return float(stats.t.ppf(1 - LEVEL / 2 / comparisons, seeds - 1)), seeds - 1


def smallest_detectable(sd: float, seeds: int, comparisons: int, power: float = POWER, pooled: bool = False) -> float:
    """Return the smallest true difference that is found with a given power; NaN with one seed or if `sd` is NaN.

    `sd`: standard deviation of the paired differences.
    """
    if seeds < 2 or np.isnan(sd):
        return np.nan
    critical, df = _critical(int(seeds), comparisons, pooled)
    errors = brentq(lambda shift: _power(critical, df, shift) - power, 0, 10 * critical + 10)
    return float(errors * sd / np.sqrt(seeds))


def _power(critical: float, df: int, shift: float) -> float:
    """Return P(|t| > critical). `shift`: the true difference in standard errors."""
    errors, weights = _error_nodes(df)
    return float(weights @ _beyond(critical * errors, shift))


def _beyond(limits: np.ndarray, shift: float) -> np.ndarray:
    """Return P(|x| > limit) for each limit, with x normal of mean `shift` and variance 1."""
    return ndtr(shift - limits) + ndtr(-shift - limits)


def _power_to_decide(critical: float, one_sided: float, df: int, shift: float, margin: float) -> float:
    """Return P(|t| > critical, or both one-sided tests find equivalence). `shift` and `margin` are in standard errors."""
    errors, weights = _error_nodes(df)
    equivalent = 1 - _beyond(np.maximum(0, margin - one_sided * errors), shift)
    return float(weights @ np.minimum(1, _beyond(critical * errors, shift) + equivalent))


def seeds_needed(sd: float, points: float, comparisons: int) -> int:
    """Return the smallest number of seeds that finds a true difference of `points` with 80% power. `sd`: as above."""

    def enough(seeds: int) -> bool:
        return smallest_detectable(sd, seeds, comparisons) <= points

    upper = 2
    while not enough(upper):
        upper *= 2
    return 2 + bisect_left(range(2, upper), True, key=enough)


def _undecided(row: pd.Series, margin: float) -> tuple[float, str]:
    """Return how many more seeds decide a comparison with 80% power, and the verdict that says so.

    It assumes that the observed difference and spread are the true ones.
    """
    if row.seeds < 2:
        return np.nan, f"{UNDECIDED} (one seed)"
    if np.isnan(row["std"]):
        return np.nan, f"{UNDECIDED} (no spread over seeds)"
    size = abs(row.difference)

    def decided(seeds: int) -> bool:
        critical, df = _critical(seeds, row.comparisons, row.pooled)
        error = row["std"] / np.sqrt(seeds)
        one_sided = float(stats.t.ppf(1 - LEVEL / row.comparisons, df))
        return _power_to_decide(critical, one_sided, df, size / error, margin / error) >= POWER

    more = 1 + bisect_left(range(row.seeds + 1, row.seeds + MAX_MORE_SEEDS + 1), True, key=decided)
    if more > MAX_MORE_SEEDS:
        return np.inf, f"{UNDECIDED} (more than {MAX_MORE_SEEDS} more seeds needed)"
    return more, f"{UNDECIDED} (about {counted(more, 'more seed')} needed)"


def linear_trend(design: pd.DataFrame, values: np.ndarray, margin: float = 2.0) -> pd.DataFrame:
    """Fit values to the columns of a design and a constant by least squares. Return one row per column of the design.

    The 95% intervals `low` and `high` of the slopes are simultaneous (Bonferroni). Verdicts are those of `compare`. Every run
    counts as an independent observation. Raises ValueError if the runs do not determine the slopes and their errors.
    """
    columns = np.column_stack([np.ones(len(values)), design.to_numpy(dtype=float)])
    freedom = len(values) - columns.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(columns) < columns.shape[1]:
        names = ", ".join(design.columns)
        raise ValueError(f"too few different runs ({len(values)}) to determine the coefficients of {names}, constant")
    fit = OLS(values, columns).fit()
    low, high = fit.conf_int(LEVEL / len(design.columns))[1:].T
    p_tost = stats.t.sf((margin - np.abs(fit.params)) / fit.bse, freedom)[1:]
    table = {"slope": fit.params[1:], "low": low, "high": high, "verdict": _verdicts(low, high, _holm(p_tost), margin)}
    return pd.DataFrame(table, index=design.columns)


def pareto_front(cost: pd.Series, value: pd.Series) -> list[str]:
    """Return the names on the Pareto front, cheapest first: those for which no other has a higher value at the same cost."""
    order = pd.DataFrame({"cost": cost, "value": value}).sort_values(["cost", "value"], ascending=[True, False])
    best = order.value.cummax().shift(fill_value=-np.inf)
    return list(order.index[order.value > best])
