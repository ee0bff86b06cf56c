"""The statistics compared with scipy and statsmodels, and error rates of verdicts on simulated tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from vmae_lab.lab.statistics import (
    COLUMNS,
    POOLING_LEVEL,
    POOLING_SEEDS,
    compare,
    compare_pairs,
    dunnett_critical,
    evaluate_differences,
    linear_trend,
    pareto_front,
    seeds_needed,
    smallest_detectable,
    summarise,
    t_interval,
)

EQUIVALENT = "equivalent within 2 points"
TABLES = 4000  # of each simulation
RNG = np.random.default_rng


def rows(values: dict[str, list[float]], metric: str = "ridge") -> pd.DataFrame:
    return pd.DataFrame(
        [{"arm": arm, "seed": seed, "metric": metric, "value": v} for arm, vs in values.items() for seed, v in enumerate(vs)]
    )


def drawn(seed: int, seeds: int, spreads: dict[str, float], means: dict[str, float] | None = None) -> pd.DataFrame:
    """Return a table of normal values, with an effect of each seed that all arms share."""
    rng, means = RNG(seed), means or {}
    shared = rng.normal(0, 3, seeds)
    return rows({arm: list(70 + means.get(arm, 0) + shared + rng.normal(0, s, seeds)) for arm, s in spreads.items()})


def values_of(table: pd.DataFrame, arm: str) -> np.ndarray:
    return table[table.arm == arm].sort_values("seed").value.to_numpy()


# ---- Equal to scipy and statsmodels ----


def test_one_comparison_equals_scipys_paired_test():
    a, b = np.array([70.0, 72.0, 75.0, 71.0]), np.array([68.0, 71.5, 73.0, 71.2])
    ours = compare(rows({"a": a.tolist(), "b": b.tolist()}), "ridge", "b").loc["a"]
    test = stats.ttest_rel(a, b)
    expected = test.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high))
    assert (ours.p, ours.p_adjusted) == pytest.approx((test.pvalue, test.pvalue))
    assert ours.difference == pytest.approx((a - b).mean())


@pytest.mark.parametrize("margin", [0.5, 2.0, 5.0])
def test_equivalence_equals_statsmodels(margin):
    table = drawn(1, 5, {"b": 1.0, "a": 1.0})
    ours = compare(table, "ridge", "b", margin).loc["a"]
    p, *_ = ttost_paired(values_of(table, "a"), values_of(table, "b"), -margin, margin)
    assert ours.p_tost == pytest.approx(p)
    assert (ours.verdict == f"equivalent within {margin:g} points") == (p <= 0.05)


def test_adjusted_p_values_of_few_seeds():
    """Bonferroni for differences and their intervals, Holm for equivalence."""
    table = drawn(2, 4, {"b": 1.0, "a": 0.3, "c": 1.0, "d": 0.5}, {"c": 4.0})
    ours = compare(table, "ridge", "b")
    assert not ours.pooled.any()
    for arm in ours.index:
        test = stats.ttest_rel(values_of(table, arm), values_of(table, "b"))
        interval = test.confidence_interval(1 - 0.05 / 3)
        assert (ours.low[arm], ours.high[arm]) == pytest.approx((interval.low, interval.high))
        assert ours.p[arm] == pytest.approx(test.pvalue)
    assert ours.p_adjusted.to_numpy() == pytest.approx(multipletests(ours.p, method="bonferroni")[1])
    assert ours.p_tost_adjusted.to_numpy(float) == pytest.approx(multipletests(ours.p_tost, method="holm")[1])


def test_the_pooled_error_is_that_of_a_two_way_analysis_of_variance():
    """The pooled error is not smaller than that of the comparison's paired differences, or than their average."""
    counted = []
    for seed in range(12):
        table = drawn(seed, 10, {"b": 1.0, "a": 1.0, "c": 1.0, "d": 1.0})
        ours, fit = compare(table, "ridge", "b"), ols("value ~ C(arm) + C(seed)", table).fit()
        if not ours.pooled.any():
            continue
        own = pd.Series({arm: np.std(values_of(table, arm) - values_of(table, "b"), ddof=1) for arm in ours.index})
        average, two_way = np.sqrt((own**2).mean()), np.sqrt(2 * fit.mse_resid)
        assert (ours.df == fit.df_resid).all()
        assert ours["std"].to_numpy() == pytest.approx(own.clip(lower=max(average, two_way)).to_numpy())
        counted.append(two_way > average)
    assert 0 < sum(counted) < len(counted), "each of the two is the larger in some tables"


def test_errors_are_pooled_where_levenes_test_allows_it():
    pooled = []
    for seed in range(20):
        table = drawn(seed, 9, {"b": 1.0, "a": 1.0, "c": 2.0})
        fit = ols("value ~ C(arm) + C(seed)", table).fit()
        residuals = [fit.resid[table.arm == arm] for arm in ("b", "a", "c")]
        allowed = stats.levene(*residuals, center="mean").pvalue > POOLING_LEVEL
        assert compare(table, "ridge", "b").pooled.all() == allowed
        pooled.append(allowed)
    assert 0 < sum(pooled) < 20
    assert not compare(drawn(0, POOLING_SEEDS - 1, {"b": 1.0, "a": 1.0, "c": 1.0}), "ridge", "b").pooled.any()


@pytest.mark.parametrize(
    ("comparisons", "df", "published"),
    [(2, 5, 3.03), (3, 16, 2.59), (6, 60, 2.64), (9, 60, 2.77), (2, 120, 2.24), (9, 10, 3.24)],
)
def test_critical_values_are_dunnetts(comparisons, df, published):
    """The values are those of Dunnett (1964), two-sided with joint confidence 95%, and of scipy's multivariate t."""
    ours = dunnett_critical(comparisons, df)
    correlated = stats.multivariate_t(shape=(np.eye(comparisons) + 1) / 2, df=df, seed=0)
    assert ours == pytest.approx(published, abs=0.0051)
    assert correlated.cdf([ours] * comparisons, lower_limit=[-ours] * comparisons) == pytest.approx(0.95, abs=5e-4)


def test_adjusted_p_values_of_a_pooled_table_equal_scipys_multivariate_t():
    table = drawn(5, 10, {"b": 1.0, "a": 1.0, "c": 1.0, "d": 1.0}, {"a": 1.5, "c": 0.8})
    ours = compare(table, "ridge", "b")
    assert ours.pooled.all()
    for row in ours.itertuples():
        size = abs(row.difference) / row.std * np.sqrt(row.seeds)
        correlated = stats.multivariate_t(shape=(np.eye(3) + 1) / 2, df=row.df, seed=0)
        assert row.p_adjusted == pytest.approx(1 - correlated.cdf([size] * 3, lower_limit=[-size] * 3), abs=5e-4)


@pytest.mark.parametrize(("seeds", "comparisons"), [(3, 1), (3, 6), (5, 3), (10, 6)])
def test_the_smallest_detectable_difference_equals_statsmodels(seeds, comparisons):
    """One-sided: the wrong tail is below 1e-8, and SciPy's noncentral t returns NaN for tails near 1e-17 on some processors."""
    found = smallest_detectable(1.5, seeds, comparisons)
    power = TTestPower().power(found / 1.5, seeds, 0.05 / comparisons / 2, alternative="larger")
    assert power == pytest.approx(0.8, abs=1e-5)
    assert seeds_needed(1.5, found * 1.0001, comparisons) == seeds


def test_a_trend_equals_statsmodels_and_scipy():
    rng = RNG(0)
    design = pd.DataFrame({"size": np.tile([0.0, 1.0, 2.0], 4), "data": np.repeat([0.0, 2.0], 6)})
    values = 3 + 5 * design["size"].to_numpy() - design.data.to_numpy() + rng.normal(size=12)
    slope, line = linear_trend(design[["size"]], values).loc["size"], stats.linregress(design["size"], values)
    half = stats.t.ppf(0.975, 10) * line.stderr
    assert (slope.slope, slope.low, slope.high) == pytest.approx((line.slope, line.slope - half, line.slope + half))
    both, fit = linear_trend(design, values), ols("y ~ size + data", design.assign(y=values)).fit()
    assert list(both.index) == ["size", "data"]
    assert both[["low", "high"]].to_numpy() == pytest.approx(fit.conf_int(0.025).loc[["size", "data"]].to_numpy())
    assert list(both.verdict) == ["higher", EQUIVALENT]


@pytest.mark.parametrize(
    "design", [{"x": [1.0, 1.0, 1.0, 1.0]}, {"x": [1.0, 2.0, 3.0, 4.0], "y": [2.0, 4.0, 6.0, 8.0]}, {"x": [1.0, 2.0]}]
)
def test_a_trend_that_the_runs_do_not_determine_is_refused(design):
    """A constant column, two dependent columns, too few runs: least squares would still return numbers."""
    frame = pd.DataFrame(design)
    with pytest.raises(ValueError, match="to determine the coefficients of"):
        linear_trend(frame, np.arange(len(frame), dtype=float))


# ---- Error rates, by simulation ----


def simulated(seed: int, seeds: int, spreads: list[float], means: list[float]) -> np.ndarray:
    """Return paired differences `(TABLES, seeds, arms - 1)` to the first arm. All arms have a spread and a mean."""
    values = RNG(seed).normal(size=(TABLES, seeds, len(spreads))) * spreads + means
    return values[..., 1:] - values[..., :1]


def at_most(rate: float) -> float:
    """Return the limit that the observed rate in TABLES tables does not exceed, with 99.9% probability."""
    return stats.binom.ppf(0.999, TABLES, rate) / TABLES


SPREADS = {
    "equal": lambda arms: [1.0] * arms,
    "one arm twice": lambda arms: [1.0] * (arms - 1) + [2.0],
    "one arm five times": lambda arms: [1.0] * (arms - 1) + [5.0],
    "baseline twice": lambda arms: [2.0] + [1.0] * (arms - 1),
    "baseline five times": lambda arms: [5.0] + [1.0] * (arms - 1),
    "from one to four": lambda arms: list(np.linspace(1, 4, arms)),
}


@pytest.mark.parametrize("spreads", SPREADS)
@pytest.mark.parametrize("seeds", [3, POOLING_SEEDS, 10])
@pytest.mark.parametrize("arms", [2, 3, 6])
def test_equal_arms_are_rarely_called_different(arms, seeds, spreads):
    """Family-wise: any false `higher` or `lower` in the table counts. The margin is too small for `equivalent`."""
    found = evaluate_differences(simulated(arms * seeds, seeds, SPREADS[spreads](arms), [0.0] * arms), margin=1e-9)
    wrong = np.isin(found["verdict"], ["higher", "lower"]).any(-1)
    assert wrong.mean() <= at_most(0.05)
    assert found["pooled"].any() == (seeds >= POOLING_SEEDS and arms > 2), "both ways of the error are tried"


@pytest.mark.parametrize("spreads", SPREADS)
@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("arms", [2, 6])
def test_arms_at_the_margin_are_rarely_called_equivalent(arms, seeds, spreads):
    """Family-wise, for arms at the margin above and below the baseline. With small spreads the tests reach their level."""
    signs = np.resize([1.0, -1.0], arms - 1)
    spread = np.array(SPREADS[spreads](arms)) / 10
    found = evaluate_differences(simulated(arms * seeds, seeds, list(spread), [0.0, *(2.0 * signs)]), margin=2.0)
    assert (found["verdict"] == EQUIVALENT).any(-1).mean() <= at_most(0.05)


@pytest.mark.parametrize("seeds", [3, 10])
def test_a_difference_rarely_has_the_wrong_sign(seeds):
    """Small true differences of both signs, for which a wrong sign is most likely."""
    means = [0.0, 0.3, -0.3, 0.3, -0.3]
    verdict = evaluate_differences(simulated(seeds, seeds, [1.0] * 5, means), margin=1e-9)["verdict"]
    wrong = (verdict == np.where(np.array(means[1:]) > 0, "lower", "higher")).any(-1)
    assert wrong.mean() <= at_most(0.05)


@pytest.mark.parametrize(("sd", "comparisons"), [(1.0, 1), (2.0, 1), (1.0, 5)])
def test_the_seeds_that_are_planned_have_the_planned_power(sd, comparisons):
    """One seed less has less than 80% power, this number has 80% or a little more. Errors are not pooled."""
    seeds = seeds_needed(sd, 2.0, comparisons)
    spreads = [1e-6] + [sd] * comparisons  # the spread of paired differences
    power = {}
    for n in (seeds - 1, seeds):
        differences = simulated(n, n, spreads, [0.0] + [2.0] * comparisons)
        found = evaluate_differences(differences, margin=1e-9, one_baseline=False)
        power[n] = (found["verdict"] == "higher").mean()
    assert power[seeds - 1] - 0.02 < 0.8 < power[seeds] + 0.02
    assert power[seeds] < 0.92


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 3.0), (1.2, 2.0), (3.0, 4.0)])
def test_the_seeds_that_a_verdict_recommends_decide_it(mean, sd):
    """If difference and spread are the true ones, about 80% of tables are decided, and fewer with one seed less."""
    values = RNG(3).normal(size=6)
    values = mean + sd * (values - values.mean()) / values.std(ddof=1)
    row = compare(rows({"b": [0.0] * 6, "a": values.tolist()}), "ridge", "b").loc["a"]
    assert row.verdict == f"undecided (about {row.more_seeds:.0f} more seeds needed)"
    power = {}
    for seeds in (5 + int(row.more_seeds), 6 + int(row.more_seeds)):
        found = evaluate_differences(simulated(seeds, seeds, [1e-6, sd], [0.0, mean]), margin=2.0)
        power[seeds] = (found["verdict"] != "undecided").mean()
    fewer, enough = power.values()
    assert fewer - 0.02 < 0.8 < enough + 0.02
    assert enough < 0.9


# ---- Verdicts ----


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([5.0, 5.1, 4.9, 5.2], "higher"),
        ([-5.0, -5.1, -4.9, -5.2], "lower"),
        ([0.1, -0.1, 0.2, 0.0], EQUIVALENT),
        ([1.0, 1.1, 0.9, 1.05], EQUIVALENT),  # not zero, but inside the margin
        ([2.5, 2.6, 2.4, 2.55], "higher"),
    ],
)
def test_verdicts(differences, verdict):
    baseline = np.array([50.0, 60.0, 70.0, 80.0])
    row = compare(rows({"b": list(baseline), "a": list(baseline + differences)}), "ridge", "b").loc["a"]
    assert row.verdict == verdict
    assert np.isnan(row.more_seeds)


def test_no_verdict_contradicts_its_interval():
    """`higher` and `lower` exclude zero; `undecided` includes zero and exceeds the margin; p values agree."""
    seen = set()
    for seed in range(24):
        spread, means = (0.5, 2.5)[seed // 4 % 2], {"a": 0.5 * (seed % 5), "c": -4.0, "d": 4.0}
        table = compare(drawn(seed, (3, 10, 5, 10)[seed % 4], dict.fromkeys("bacd", spread), means), "ridge", "b")
        for row in table.itertuples():
            kind = row.verdict.split(" ")[0]
            seen.add((kind, row.pooled))
            assert (row.low > 0 or row.high < 0) == (row.p_adjusted < 0.05)
            if kind in ("higher", "lower"):
                assert (row.low > 0, row.high < 0) == (kind == "higher", kind == "lower")
            elif kind == "undecided":
                assert row.low <= 0 <= row.high
                assert not -2 < row.low < row.high < 2
            else:
                assert abs(row.difference) < 2
                assert row.p_tost_adjusted <= 0.05
    assert seen == {(kind, pooled) for kind in ("higher", "lower", "equivalent", "undecided") for pooled in (True, False)}


# ---- Tables with gaps ----


def test_a_pair_needs_both_of_its_seeds():
    """An arm with more seeds than the baseline is compared at the seeds that both have."""
    paired = compare(rows({"a": [10.0, 20.0, 90.0], "b": [1.0, 2.0]}), "ridge", "b").loc["a"]
    assert (paired.difference, paired.seeds) == (13.5, 2)


def test_a_seed_that_one_arm_lacks_shifts_no_pair():
    """The baseline has three seeds, the arm lacks the second: 10 - 1 and 30 - 4. NaN counts as a missing value."""
    table = rows({"a": [10.0, 20.0, 30.0], "b": [1.0, 2.0, 4.0]})
    lacks = (table.arm == "a") & (table.seed == 1)
    for gap in (table[~lacks], table.assign(value=table.value.mask(lacks))):
        paired = compare(gap, "ridge", "b").loc["a"]
        assert (paired.difference, paired.seeds) == (17.5, 2)


def test_seeds_are_paired_by_number_not_by_order():
    table = rows({"a": [10.0, 20.0], "b": [1.0, 2.0]})
    assert compare(table.sample(frac=1, random_state=1), "ridge", "b").difference["a"] == 13.5


def test_a_gap_in_one_arm_leaves_the_others_as_they_are():
    """The error is not pooled, and each arm is compared at its own seeds."""
    table = drawn(5, 10, {"b": 1.0, "a": 1.0, "c": 1.0})
    assert compare(table, "ridge", "b").pooled.all()
    gap = table[(table.arm != "c") | (table.seed > 1)]
    ours = compare(gap, "ridge", "b")
    assert not ours.pooled.any()
    assert (ours.seeds["a"], ours.seeds["c"]) == (10, 8)
    expected = stats.ttest_rel(values_of(table, "c")[2:], values_of(table, "b")[2:]).confidence_interval(0.975)
    assert (ours.low["c"], ours.high["c"]) == pytest.approx((expected.low, expected.high))


def test_arms_without_values_are_not_measured_and_not_counted():
    table = rows({"a": [70.0, 71.0, 73.0], "b": [68.0, 70.0, 69.0]})
    ours = compare(table, "ridge", "b", arms=["missing", "a", "b"])
    assert list(ours.index) == ["missing", "a"]
    assert (ours.verdict["missing"], ours.seeds["missing"], ours.comparisons["a"]) == ("not measured", 0, 1)
    assert ours.loc["a"].equals(compare(table, "ridge", "b").loc["a"])
    for empty in (
        compare(table, "ridge", "missing", required=False),
        compare(table, "other", "b", required=False),
        compare(table, "ridge", "b", arms=[]),
    ):
        assert empty.empty
        assert list(empty.columns) == list(COLUMNS)
    apart = pd.concat([table[(table.arm == "b") & (table.seed == 0)], table[(table.arm == "a") & (table.seed == 1)]])
    assert compare(apart, "ridge", "b").verdict["a"] == "not measured", "no seed is shared"


@pytest.mark.parametrize(
    ("metric", "baseline", "message"),
    [
        ("rigde", "b", "no arm has a value of metric 'rigde'; metrics of these rows: ridge, knn"),
        ("ridge", "nope", "baseline 'nope' has no value of metric 'ridge'; arms that have one: a, b"),
        ("knn", "b", "baseline 'b' has no value of metric 'knn'; arms that have one: a"),
        ("lost", "a", "no arm has a value of metric 'lost'; metrics of these rows: ridge, knn"),
    ],
)
def test_a_wrong_metric_or_baseline_is_an_error_that_lists_the_right_ones(metric, baseline, message):
    table = pd.concat([rows({"a": [1.0, 2.0], "b": [3.0, 5.0]}), rows({"a": [1.0, 2.0]}, "knn"), rows({"a": [np.nan]}, "lost")])
    with pytest.raises(ValueError, match=f"^{message}$"):
        compare(table, metric, baseline)


def test_one_seed_gives_a_difference_and_no_interval():
    row = compare(rows({"a": [3.0], "b": [1.0]}), "ridge", "b").loc["a"]
    assert (row.difference, row.verdict) == (2.0, "undecided (one seed)")
    assert row[["low", "high", "p", "p_tost", "detectable", "more_seeds"]].isna().all()


@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0])
def test_equal_differences_at_all_seeds_decide_nothing(shift):
    """With few clips, accuracies are multiples of a large step, and differences are often equal by chance."""
    values = [12.5, 37.5, 25.0]
    row = compare(rows({"a": [x + shift for x in values], "b": values}), "ridge", "b").loc["a"]
    assert (row.difference, row.verdict) == (shift, "undecided (no spread over seeds)")
    assert np.isnan(row.low)


def test_a_comparison_that_needs_too_many_seeds():
    row = compare(rows({"a": [50.0, 60.0, 90.0], "b": [62.0, 58.0, 70.0]}), "ridge", "b").loc["a"]
    assert (row.verdict, row.more_seeds) == ("undecided (more than 100 more seeds needed)", np.inf)


def test_pairs_of_several_baselines_share_the_error_rate():
    table = drawn(4, 10, {"a": 1.0, "b": 1.0, "c": 1.0}, {"c": 3.0})
    ours = compare_pairs(table, "ridge", [("c", "a"), ("c", "b"), ("b", "missing")])
    assert list(ours.index) == [("c", "a"), ("c", "b")]
    assert not ours.pooled.any()
    expected = stats.ttest_rel(values_of(table, "c"), values_of(table, "b")).confidence_interval(0.975)
    row = ours.iloc[1]
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high))
    assert compare_pairs(table, "ridge", []).empty


# ---- Summaries ----


def test_the_interval_of_a_mean_equals_scipys():
    values = np.array([1.0, 2.0, 4.0])
    assert t_interval(values) == pytest.approx(stats.t.interval(0.95, 2, values.mean(), stats.sem(values)))
    assert np.isnan(t_interval(values[:1])).all(), "one seed gives no interval"


def test_a_summary_holds_scipys_interval_of_each_arm():
    values = {"a": [70.0, 72.0, 75.0], "b": [50.0, 50.5, 52.0]}
    table = summarise(rows(values), "ridge")
    for arm, seen in values.items():
        low, high = stats.t.interval(0.95, 2, np.mean(seen), stats.sem(seen))
        assert (table.low[arm], table.high[arm]) == pytest.approx((low, high))
        assert (table["mean"][arm], table["std"][arm], table.seeds[arm]) == pytest.approx((np.mean(seen), stats.tstd(seen), 3))


def test_the_pareto_front():
    cost = pd.Series({"dear": 9.0, "cheap": 1.0, "beaten": 5.0, "fair": 4.0, "wasteful": 9.0, "no better": 6.0})
    value = pd.Series({"dear": 80.0, "cheap": 50.0, "beaten": 60.0, "fair": 70.0, "wasteful": 75.0, "no better": 70.0})
    assert pareto_front(cost, value) == ["cheap", "fair", "dear"]


def test_summary_keeps_the_order_of_arms():
    table = summarise(rows({"z": [1.0, 3.0], "a": [5.0, 5.0]}), "ridge")
    assert list(table.index) == ["z", "a"]
    assert table["std"]["z"] == pytest.approx(np.sqrt(2))


def test_one_seed_has_a_mean_and_no_interval():
    summary = summarise(rows({"a": [3.0]}), "ridge").loc["a"]
    assert summary["mean"] == 3
    assert summary[["std", "low", "high"]].isna().all()
