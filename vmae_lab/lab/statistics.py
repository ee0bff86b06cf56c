"""Statistics over seeds: summaries, comparisons with simultaneous intervals and one verdict each, power, trends.

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

LEVEL = 1 - CONFIDENCE  # of the tests, 5%
# Arms share one error if Levene's test finds no difference of their spreads at this level. Preliminary tests need a high level
# (Bancroft 1964). With fewer seeds than this, no test finds unequal spreads reliably.
POOLING_LEVEL, POOLING_SEEDS = 0.25, 8
POWER = 0.8
MOST = 100  # seeds; no verdict recommends more
HIGHER, LOWER, UNDECIDED, NOT_MEASURED = "higher", "lower", "undecided", "not measured"
COLUMNS = (
    "difference", "low", "high", "p", "p_adjusted", "p_tost", "p_tost_adjusted", "std", "df", "seeds", "pooled", "comparisons",
    "detectable", "more_seeds", "verdict",
)  # fmt: skip


def summarise(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean, standard deviation, t interval and number of seeds. Index: arm, in the rows' order."""
    chosen = rows[rows.metric == metric]
    table = {}
    for arm in chosen.arm.unique():
        values = chosen[chosen.arm == arm].value.to_numpy()
        low, high = t_interval(values)
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        table[arm] = {"mean": values.mean(), "std": spread, "low": low, "high": high, "seeds": len(values)}
    return pd.DataFrame.from_dict(table, orient="index")


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return np.nan, np.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def compare(
    rows: pd.DataFrame, metric: str, baseline: str, margin: float = 2.0, arms: Sequence[str] | None = None
) -> pd.DataFrame:
    """Compare arms with a baseline at the same seeds: one row per arm (the index), columns COLUMNS.

    `difference` is the mean over the seeds that arm and baseline share. `low` and `high` are 95% intervals that hold for all
    rows at once. `std` is the standard deviation of a paired difference that the interval is based on. It comes from the arm's
    own paired differences (Bonferroni over the rows), or, with at least 8 complete seeds and no sign of unequal spread, from
    all arms (`pooled`, Dunnett's critical value).

    `verdict`, the first that applies: `equivalent within 2 points` (two one-sided tests at 5%, Holm over the rows), `higher`
    or `lower` (the interval excludes zero), else `undecided`. `more_seeds` estimates what 80% power takes. `detectable` is the
    smallest true difference that is found with 80% power.

    `arms`: those to compare, by default all that have the metric. An arm without a value is `not measured`. The table is empty
    if the baseline has no value.
    """
    values = _by_seed(rows, metric)
    others = [arm for arm in (values.columns if arms is None else arms) if arm != baseline]
    if baseline not in values:
        return pd.DataFrame(columns=COLUMNS)
    differences = {arm: values[arm] - values[baseline] if arm in values else values[baseline] * np.nan for arm in others}
    return _table(pd.DataFrame(differences, columns=others), margin, one_baseline=True)


def compare_pairs(rows: pd.DataFrame, metric: str, pairs: Sequence[tuple[str, str]], margin: float = 2.0) -> pd.DataFrame:
    """Compare the first arm of each pair with the second, as `compare` does; no error is pooled. Index: the pairs.

    Pairs with an arm that has no value are left out.
    """
    values = _by_seed(rows, metric)
    existing = [pair for pair in pairs if set(pair) <= set(values.columns)]
    differences = pd.DataFrame(
        {place: values[arm] - values[other] for place, (arm, other) in enumerate(existing)}, index=values.index
    )
    return _table(differences, margin, one_baseline=False).set_axis(pd.Index(existing, tupleize_cols=False))


def _by_seed(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    chosen = rows[rows.metric == metric].dropna(subset="value")
    return chosen.pivot(index="seed", columns="arm", values="value")[list(chosen.arm.unique())]


def _table(differences: pd.DataFrame, margin: float, one_baseline: bool) -> pd.DataFrame:
    """The comparisons of one table, from paired differences: a row per seed, a column per comparison."""
    measured = differences.dropna(axis=1, how="all").dropna(axis=0, how="all")
    if measured.empty:
        return pd.DataFrame({"verdict": NOT_MEASURED, "seeds": 0, "pooled": False}, differences.columns, COLUMNS)
    found = judge(measured.to_numpy(), margin, one_baseline)
    table = pd.DataFrame({name: np.broadcast_to(value, measured.shape[1:]) for name, value in found.items()}, measured.columns)
    count, pooled = len(table), bool(table.pooled.any())
    size = (table.difference / table["std"]).abs() * np.sqrt(table.seeds)
    table["p_adjusted"] = [_dunnett(t, count, df) for t, df in zip(size, table.df, strict=True)] if pooled else (
        (count * table.p).clip(upper=1.0)
    )  # fmt: skip
    table["comparisons"] = count
    table["detectable"] = [
        smallest_detectable(sd, seeds, count, pooled=pooled) for sd, seeds in zip(table["std"], table.seeds, strict=True)
    ]
    table["more_seeds"] = np.nan
    for name, row in table[table.verdict == UNDECIDED].iterrows():
        table.loc[name, ["more_seeds", "verdict"]] = _undecided(row, margin)
    table = table.reindex(index=differences.columns, columns=COLUMNS)
    return table.fillna({"verdict": NOT_MEASURED, "seeds": 0, "pooled": False}).astype({"seeds": int, "pooled": bool})


def judge(differences: np.ndarray, margin: float, one_baseline: bool = True) -> dict[str, np.ndarray]:
    """Estimates, tests and verdicts of comparisons from paired differences `(..., seeds, comparisons)`; NaN: no such pair.

    Returns arrays `(..., comparisons)`, for many tables at once. `one_baseline`: all comparisons have one baseline, so that the
    error may be pooled.
    """
    count = differences.shape[-1]
    seeds = np.isfinite(differences).sum(-2)
    total = np.nansum(differences, -2)
    difference = np.divide(total, seeds, out=np.full(total.shape, np.nan), where=seeds > 0)
    squares = np.nansum((differences - difference[..., None, :]) ** 2, -2)
    own = np.sqrt(np.divide(squares, seeds - 1, out=np.full(total.shape, np.nan), where=seeds > 1))
    pooled = _equal_spread(differences) if one_baseline else np.zeros(differences.shape[:-2], bool)
    # If errors are pooled, the comparison takes the largest of three estimates: the two-way residual error assumes equal
    # spread, and the other two include a baseline or an arm that varies more. So pooling only adds degrees of freedom.
    common = np.sqrt(np.maximum(2 * _two_way_error(differences), (own**2).mean(-1)))[..., None]
    pooled = pooled[..., None]
    std = np.where(pooled, np.maximum(own, common), own)
    std = np.where(std > 1e-9, std, np.nan)  # equal differences give no estimate of their error
    df = np.where(pooled, count * (differences.shape[-2] - 1), seeds - 1)
    critical = stats.t.ppf(1 - LEVEL / 2 / count, np.maximum(df, 1))
    if pooled.any():
        critical = np.where(pooled, dunnett_critical(count, count * (differences.shape[-2] - 1)), critical)
    error = std / np.sqrt(np.maximum(seeds, 1))
    low, high = difference - critical * error, difference + critical * error
    p_tost = stats.t.sf((margin - np.abs(difference)) / error, np.maximum(df, 1))
    p_holm = _holm(p_tost)
    return {
        "difference": difference, "low": low, "high": high, "p": 2 * stats.t.sf(np.abs(difference) / error, np.maximum(df, 1)),
        "p_tost": p_tost, "p_tost_adjusted": p_holm, "std": std, "df": df, "seeds": seeds,
        "pooled": np.broadcast_to(pooled, difference.shape), "verdict": _verdicts(low, high, p_holm, margin),
    }  # fmt: skip


def _verdicts(low: np.ndarray, high: np.ndarray, p_equivalence: np.ndarray, margin: float) -> np.ndarray:
    """Verdicts. Equivalence comes first: a difference that is not zero but inside the margin is equivalent."""
    equivalent = f"equivalent within {points(margin)}"
    return np.select([p_equivalence <= LEVEL, low > 0, high < 0], [equivalent, HIGHER, LOWER], UNDECIDED)


def points(count: float) -> str:
    """`1 point`, `2 points`."""
    return f"{count:g} point{'' if count == 1 else 's'}"


def _holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values over the last axis, for many tables at once; NaN counts as a test that was made."""
    order = np.argsort(p, -1)  # NaN last
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1, np.maximum.accumulate(steps, -1)), -1)
    return adjusted


def _residuals(differences: np.ndarray) -> np.ndarray:
    """Residuals of the table after the effects of arm and seed: `(..., seeds, comparisons + 1)`, the baseline first.

    The baseline's own values are part of the seeds' effects, so differences are enough.
    """
    table = np.concatenate([np.zeros_like(differences[..., :1]), differences], -1)
    table = table - table.mean(-1, keepdims=True)
    return table - table.mean(-2, keepdims=True)


def _two_way_error(differences: np.ndarray) -> np.ndarray:
    """Residual mean square of the two-way layout (arm, seed): `(...)`. NaN if a seed is missing or alone."""
    seeds, comparisons = differences.shape[-2:]
    squares = (_residuals(differences) ** 2).sum((-1, -2))
    return squares / (comparisons * (seeds - 1)) if seeds > 1 else squares * np.nan


def _equal_spread(differences: np.ndarray) -> np.ndarray:
    """Whether the error may be pooled: enough seeds, all complete, and Levene's test finds no unequal spread: `(...)`."""
    seeds, comparisons = differences.shape[-2:]
    if seeds < POOLING_SEEDS or comparisons < 2:
        return np.zeros(differences.shape[:-2], bool)
    sizes = np.abs(_residuals(differences))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = stats.f_oneway(*np.moveaxis(sizes, -1, 0), axis=-1).pvalue
    return p > POOLING_LEVEL  # NaN is not: a seed is missing


@cache
def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights to integrate over a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(96)
    return nodes, weights / weights.sum()


@cache
def _error_nodes(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights to integrate over the estimated error in units of the true one: chi / sqrt(df)."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    return np.sqrt(stats.chi2.ppf((nodes + 1) / 2, df) / df), weights / 2


def _dunnett(size: float, comparisons: int, df: int) -> float:
    """P(the largest of |t| over the comparisons with one baseline exceeds a size); the t's have correlation 1/2."""
    if np.isnan(size):
        return np.nan
    (normal, weights), (errors, others) = _normal_nodes(), _error_nodes(df)
    limits = np.sqrt(2) * size * errors[:, None]
    inside = (ndtr(normal + limits) - ndtr(normal - limits)) ** comparisons @ weights
    return float(max(0.0, 1 - others @ inside))


@cache
def dunnett_critical(comparisons: int, df: int) -> float:
    """Two-sided 95% point of the largest |t| over comparisons with one baseline (Dunnett 1964)."""
    return float(brentq(lambda size: _dunnett(size, comparisons, df) - LEVEL, 1, 100))


def _critical(seeds: int, comparisons: int, pooled: bool) -> tuple[float, int]:
    """Critical value of a comparison's t, and its degrees of freedom."""
    if pooled:
        return dunnett_critical(comparisons, comparisons * (seeds - 1)), comparisons * (seeds - 1)
    return float(stats.t.ppf(1 - LEVEL / 2 / comparisons, seeds - 1)), seeds - 1


def smallest_detectable(sd: float, seeds: int, comparisons: int, power: float = POWER, pooled: bool = False) -> float:
    """The smallest true difference that is found with some power. `sd`: standard deviation of the paired differences.

    NaN if there are fewer than two seeds, or if `sd` is NaN.
    """
    if seeds < 2 or np.isnan(sd):
        return np.nan
    critical, df = _critical(int(seeds), comparisons, pooled)
    errors = brentq(lambda shift: _power(critical, df, shift) - power, 0, 10 * critical + 10)
    return float(errors * sd / np.sqrt(seeds))


def _power(critical: float, df: int, shift: float) -> float:
    """P(|t| > critical). `shift`: the true difference in standard errors."""
    errors, weights = _error_nodes(df)
    return float(weights @ _beyond(critical * errors, shift))


def _beyond(limits: np.ndarray, shift: float) -> np.ndarray:
    """P(|a normal variable with this mean| > limit), for each limit."""
    return ndtr(shift - limits) + ndtr(-shift - limits)


def _power_to_decide(critical: float, one_sided: float, df: int, shift: float, margin: float) -> float:
    """P(|t| > critical, or both one-sided tests find equivalence). `shift` and `margin` in standard errors."""
    errors, weights = _error_nodes(df)
    equivalent = 1 - _beyond(np.maximum(0, margin - one_sided * errors), shift)
    return float(weights @ np.minimum(1, _beyond(critical * errors, shift) + equivalent))


def seeds_needed(sd: float, points: float, comparisons: int, power: float = POWER, pooled: bool = False) -> int:
    """The fewest seeds that find a true difference of some points with some power. `sd`: as in `smallest_detectable`."""
    most = 2
    while smallest_detectable(sd, most, comparisons, power, pooled) > points:
        most *= 2
    return 2 + bisect_left(range(2, most), True, key=lambda n: smallest_detectable(sd, n, comparisons, power, pooled) <= points)


def _undecided(row: pd.Series, margin: float) -> tuple[float, str]:
    """How many more seeds would decide a comparison with 80% power if the observed difference and spread are the true ones."""
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

    more = 1 + bisect_left(range(row.seeds + 1, row.seeds + MOST + 1), True, key=decided)
    if more > MOST:
        return np.inf, f"{UNDECIDED} (more than {MOST} more seeds needed)"
    return more, f"{UNDECIDED} (about {more} more seed{'' if more == 1 else 's'} needed)"


def linear_trend(design: pd.DataFrame, values: np.ndarray, margin: float = 2.0) -> pd.DataFrame:
    """Least squares of values on the design's columns and a constant: per column `slope`, `low`, `high` and `verdict`.

    The 95% intervals hold for all slopes at once (Bonferroni), and verdicts are those of `compare`. Every run counts as one
    independent observation. Raises ValueError if the runs do not determine the slopes and their errors.
    """
    columns = np.column_stack([np.ones(len(values)), design.to_numpy(dtype=float)])
    freedom = len(values) - columns.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(columns) < columns.shape[1]:
        raise ValueError(
            f"{len(values)} runs do not determine {columns.shape[1]} numbers: {', '.join(design.columns)}, constant"
        )
    fit = OLS(values, columns).fit()
    low, high = fit.conf_int(LEVEL / len(design.columns))[1:].T
    p_tost = stats.t.sf((margin - np.abs(fit.params)) / fit.bse, freedom)[1:]
    table = {"slope": fit.params[1:], "low": low, "high": high, "verdict": _verdicts(low, high, _holm(p_tost), margin)}
    return pd.DataFrame(table, index=design.columns)


def pareto_front(cost: pd.Series, value: pd.Series) -> list[str]:
    """Names on the Pareto front: no other one costs as little or less and has as high a value or higher. Cheapest first."""
    order = pd.DataFrame({"cost": cost, "value": value}).sort_values(["cost", "value"], ascending=[True, False])
    best = order.value.cummax().shift(fill_value=-np.inf)
    return list(order.index[order.value > best])
