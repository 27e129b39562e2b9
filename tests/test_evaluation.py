"""Statistics against hand-worked cases, scipy, rliable's metrics and simulated data."""

import json
from itertools import combinations, product

import numpy as np
import pytest
from rliable import metrics
from scipy import integrate, stats

from marl_lib import evaluation as ev

RNG = np.random.default_rng(7)
X = RNG.normal(1.0, 1.0, (10, 4))
Y = RNG.normal(0.5, 2.0, (12, 4))


def test_iqm_by_hand():
    # 8 values: 2 cut at each end, the mean of 3, 4, 5, 6 is left
    assert ev.iqm([100, 1, 3, 5, 4, 6, -50, 7]) == pytest.approx(4.5)
    assert ev.iqm([1, 2, 30]) == pytest.approx(11)  # floor(3 / 4) = 0: nothing is cut


@pytest.mark.parametrize("shape", [(10, 1), (9, 5), (3, 2)])
def test_iqm_agrees_with_rliable(shape):
    scores = RNG.normal(size=shape)
    assert ev.iqm(scores) == pytest.approx(metrics.aggregate_iqm(scores))
    by_column = [metrics.aggregate_iqm(column[:, None]) for column in scores.T]
    np.testing.assert_allclose(ev.iqm(scores, axis=0), by_column)


def test_bootstrap_of_two_runs_by_hand():
    # Resamples of (0, 1) are 00, 01, 10, 11: means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    assert ev.bootstrap_interval([0, 1], np.mean, confidence=0.9) == ev.Interval(0.5, 0, 1)
    assert ev.bootstrap_interval([0, 1], np.mean, confidence=0.4) == ev.Interval(0.5, 0.5, 0.5)


def test_bootstrap_agrees_with_scipy():
    ours = ev.bootstrap_interval(X[:, 0], np.mean, resamples=20_000)
    theirs = stats.bootstrap(
        (X[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert ours.estimate == pytest.approx(X[:, 0].mean())
    np.testing.assert_allclose([ours.low, ours.high], theirs, atol=0.02)


def test_bootstrap_is_stratified():
    # Tasks differ by 1000, runs do not differ: mixing tasks would give a wide interval.
    scores = np.tile([0.0, 1000.0, 2000.0], (5, 1))
    assert ev.bootstrap_interval(scores, np.mean) == ev.Interval(1000, 1000, 1000)
    assert ev.bootstrap_interval(scores.ravel(), np.mean).low < 900


def test_bootstrap_draws_each_task_on_its_own():
    # The errors cancel within a run; drawn independently per task, they do not.
    noise = RNG.normal(size=20)
    interval = ev.bootstrap_interval(np.column_stack([noise, -noise]), np.mean)
    independent = 1.96 * noise.std() / np.sqrt(20) / np.sqrt(2)
    assert interval.estimate == pytest.approx(0)
    assert interval.high == pytest.approx(independent, rel=0.15)


@pytest.mark.parametrize(("runs", "least", "most"), [(10, 0.895, 0.965), (30, 0.915, 0.98)])
def test_bootstrap_covers_the_truth(runs, least, most):
    # bounds: measured 0.93 and 0.945, give or take 3 standard errors of 600 trials
    rng = np.random.default_rng(0)
    intervals = [
        ev.bootstrap_interval(rng.normal(5, 2, runs), resamples=500, seed=s) for s in range(600)
    ]
    assert least < np.mean([i.low <= 5 <= i.high for i in intervals]) < most


def test_every_interval_is_fixed_by_its_seed():
    tau = np.linspace(-1, 3, 9)
    for function in (
        lambda seed: ev.bootstrap_interval(X, seed=seed),
        lambda seed: ev.probability_of_improvement(X, Y, seed=seed),
        lambda seed: ev.compare(X[:, 0], Y[:, 0], seed=seed),
        lambda seed: ev.pointwise_interval(X, seed=seed).low.tolist(),
        lambda seed: ev.performance_profile(X, tau, seed=seed).low.tolist(),
        lambda seed: ev.aggregates(X, seed=seed),
        lambda seed: ev.significance({"x": X[:, 0], "y": Y[:, 0]}, seed=seed),
        lambda seed: ev.summary(X[:, 0], seed=seed),
    ):
        assert function(3) == function(3) != function(4)


def test_confidence_widens_and_runs_narrow():
    scores = np.random.default_rng(1).normal(size=400)
    width = [
        i.high - i.low
        for i in (
            ev.bootstrap_interval(scores),
            ev.bootstrap_interval(scores, confidence=0.5),
            ev.bootstrap_interval(scores[:25]),
        )
    ]
    assert width[1] < width[0] < width[2]


def test_chunks_change_nothing_but_memory(monkeypatch):
    whole = ev.bootstrap_interval(X, resamples=50_000)
    monkeypatch.setattr(ev, "_CHUNK", 1000)
    parts = ev.bootstrap_interval(X, resamples=50_000)
    assert sum(ev._chunks(50_000, X.size)) == 50_000 and len(ev._chunks(50_000, X.size)) == 2000
    np.testing.assert_allclose([whole.low, whole.high], [parts.low, parts.high], atol=0.01)


def test_pointwise_interval_is_the_interval_of_each_point():
    band = ev.pointwise_interval(X, resamples=20_000)
    assert band.estimate.shape == band.low.shape == band.high.shape == (4,)
    for k, column in enumerate(X.T):
        alone = ev.bootstrap_interval(column, resamples=20_000)
        assert band.estimate[k] == pytest.approx(alone.estimate)
        assert [band.low[k], band.high[k]] == pytest.approx([alone.low, alone.high], abs=0.03)


def test_steps_to_threshold_by_hand():
    steps = [10, 20, 30, 40]
    curves = [[0, 5, 1, 5], [0, 1, 2, 3], [9, 0, 0, 0], [1, 2, 3, 4]]
    np.testing.assert_array_equal(ev.steps_to_threshold(steps, curves, 4), [20, np.inf, 10, 40])
    # means of two: [2.5, 3, 3], [.5, 1.5, 2.5], [4.5, 0, 0], [1.5, 2.5, 3.5]
    np.testing.assert_array_equal(
        ev.steps_to_threshold(steps, curves, 3, window=2), [30, np.inf, 20, 40]
    )


def test_probability_of_improvement_by_hand():
    # pairs: 3 > 1, 3 > 2, 3 = 3, 2 > 1, 2 = 2, 2 < 3 -> (3 + 2 / 2) / 6
    assert ev.probability_of_improvement([3, 2], [1, 2, 3]).estimate == pytest.approx(4 / 6)
    assert ev.probability_of_improvement([3, 4], [1, 2]) == ev.Interval(1, 1, 1)


def test_probability_of_improvement_agrees_with_rliable():
    ours = ev.probability_of_improvement(X, Y)
    assert ours.estimate == pytest.approx(metrics.probability_of_improvement(X, Y))
    assert ours.low < ours.estimate < ours.high
    swapped = ev.probability_of_improvement(Y, X)
    assert swapped.estimate == pytest.approx(1 - ours.estimate)


def test_probability_of_improvement_interval_agrees_with_resampled_rliable():
    rng = np.random.default_rng(0)
    columns = np.arange(4)
    draws = [
        metrics.probability_of_improvement(
            X[rng.integers(10, size=(10, 4)), columns], Y[rng.integers(12, size=(12, 4)), columns]
        )
        for _ in range(500)
    ]
    ours = ev.probability_of_improvement(X, Y, resamples=20_000)
    np.testing.assert_allclose([ours.low, ours.high], np.quantile(draws, [0.025, 0.975]), atol=0.03)


def test_performance_profile_by_hand():
    band = ev.performance_profile([[0, 1], [2, 3]], [-1, 0, 1.5, 3])
    np.testing.assert_allclose(band.estimate, [1, 0.75, 0.5, 0])
    np.testing.assert_allclose(band.low[[0, 3]], [1, 0])
    assert (band.low <= band.estimate).all() and (band.estimate <= band.high).all()


def test_performance_profile_interval_by_enumeration():
    # 3 runs: all 27 resamples; at τ = 0 one run of three is above
    shares = [np.mean([run > 0 for run in draw]) for draw in product([-1, -2, 5], repeat=3)]
    low, high = np.quantile(shares, [0.1, 0.9], method="inverted_cdf")
    band = ev.performance_profile([-1, -2, 5], [0.0], confidence=0.8)
    assert (band.low[0], band.high[0]) == pytest.approx((low, high)) == (0, pytest.approx(2 / 3))


def test_performance_profile_averages_tasks_and_bounds_them():
    tau = np.linspace(-3, 5, 30)
    band = ev.performance_profile(X, tau)
    np.testing.assert_allclose(band.estimate, [(t < X).mean() for t in tau])
    assert band.low.min() >= 0 and band.high.max() <= 1 and (band.high - band.low).max() < 0.4


def test_compare_agrees_with_scipy():
    x, y = X[:, 0], Y[:, 0]
    result = ev.compare(x, y, resamples=20_000)
    assert result.welch_p == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)
    assert result.mann_whitney_p == pytest.approx(stats.mannwhitneyu(x, y).pvalue)
    assert result.iqm_difference.estimate == pytest.approx(ev.iqm(x) - ev.iqm(y))
    theirs = stats.bootstrap(
        (x, y), lambda a, b, axis: ev.iqm(a, axis) - ev.iqm(b, axis), method="percentile", rng=0,
        n_resamples=20_000,
    ).confidence_interval  # fmt: skip
    ours = result.iqm_difference
    np.testing.assert_allclose([ours.low, ours.high], theirs, atol=0.05)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("target", [0.5, 1.0])
def test_aggregates_agree_with_rliable(target):
    found = ev.aggregates(X, target)
    theirs = {
        "mean": metrics.aggregate_mean(X),
        "median": metrics.aggregate_median(X),
        "iqm": metrics.aggregate_iqm(X),
        "optimality_gap": metrics.aggregate_optimality_gap(X, target),
    }
    assert {name: i.estimate for name, i in found.items()} == pytest.approx(theirs)
    assert found["iqm"] == ev.bootstrap_interval(X)  # by the same draws
    assert found["mean"] == ev.bootstrap_interval(X, np.mean)


def test_intervals_of_aggregates_agree_with_resampled_rliable():
    rng = np.random.default_rng(0)
    drawn = [X[rng.integers(10, size=(10, 4)), np.arange(4)] for _ in range(4000)]
    found = ev.aggregates(X, resamples=20_000)
    for name in ("median", "optimality_gap"):
        values = [getattr(metrics, f"aggregate_{name}")(table) for table in drawn]
        ours = found[name]
        np.testing.assert_allclose(
            [ours.low, ours.high], np.quantile(values, [0.025, 0.975]), atol=0.03
        )


def test_area_under_curve_is_that_of_scipy():
    steps = np.array([0, 1, 3, 10.0])
    table = RNG.normal(size=(5, 4))
    ours = ev.area_under_curve(steps, table)
    np.testing.assert_allclose(ours, integrate.trapezoid(table, steps) / 10)
    assert ev.area_under_curve([0, 10, 20], [[0, 4, 4], [0, 0, 4]]).tolist() == [3, 1]


def test_convergence_by_hand():
    steps = [0, 10, 20, 30, 40, 50]
    curves = [
        [0, 5, 9, 10, 11, 10],  # within 1 of 10 + 1/3 from step 30
        [0, 11, 9, 10, 11, 9],  # 10 from step 10, though it touches the tolerance
        [0, 0, 0, 10, 20, 30],  # never at rest
        [7, 7, 7, 7, 7, 7],  # at rest from the start
        [0, 10, 10, 10, 10, 14],  # strays at the last point
    ]
    found = ev.convergence(steps, curves, tolerance=1, window=3)
    np.testing.assert_allclose(found.level, [31 / 3, 10, 20, 7, 34 / 3])
    np.testing.assert_array_equal(found.step, [30, 10, np.inf, 0, np.inf])
    np.testing.assert_array_equal(found.converged, [True, True, False, True, False])
    np.testing.assert_allclose(found.slope, [0, -0.05, 1, 0, 0.2], atol=1e-12)
    expected = [np.std([10, 11, 10], ddof=1), np.std([11, 9, 10, 11, 9], ddof=1), np.nan, 0, np.nan]
    np.testing.assert_allclose(found.oscillation, expected)


def test_slope_of_convergence_is_that_of_scipy():
    steps = np.array([0, 3, 4, 9, 12.0])
    table = RNG.normal(size=(4, 5))
    found = ev.convergence(steps, table, 1.0, window=4)
    theirs = [stats.linregress(steps[1:], row[1:]).slope for row in table]
    np.testing.assert_allclose(found.slope, theirs)


def test_the_window_of_convergence_grows_with_the_curve():
    curve = np.zeros((1, 40))
    curve[0, 29] = 5  # one stray point just before the last quarter
    assert ev.convergence(np.arange(40), curve, 1).step == [30]
    curve[0, 30] = 5  # and in it
    assert ev.convergence(np.arange(40), curve, 1).step == [np.inf]
    assert ev.convergence(np.arange(4), curve[:, :4], 1).step == [0]


def test_holm_by_hand():
    # in order .01, .02, .04, .3 times 4, 3, 2, 1: .04, .06, .08, .3
    np.testing.assert_allclose(ev.holm([0.3, 0.01, 0.04, 0.02]), [0.3, 0.04, 0.08, 0.06])
    # .02 × 2 is less than .015 × 3, which came before it
    np.testing.assert_allclose(ev.holm([0.02, 0.015, 0.9]), [0.045, 0.045, 0.9])
    assert ev.holm([0.6, 0.7]).tolist() == [1, 1]
    assert ev.holm([0.03]).tolist() == [0.03]


def test_holm_is_the_closed_test():
    """A hypothesis falls when every intersection that holds it falls by Bonferroni's bound."""
    for _ in range(20):
        p = RNG.uniform(0, 0.3, 5)
        sets = [s for n in range(1, 6) for s in combinations(range(5), n)]
        closed = [max(min(1, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(5)]
        np.testing.assert_allclose(ev.holm(p), closed)


def test_significance_compares_all_pairs_or_with_one():
    scores = {"a": X[:, 0], "b": Y[:, 0], "c": X[:, 1] + 3}
    found = ev.significance(scores)
    assert [(p.first, p.second) for p in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in found:
        assert pair.comparison == ev.compare(scores[pair.first], scores[pair.second])
    for kind in ("welch", "mann_whitney"):
        plain = [getattr(p.comparison, f"{kind}_p") for p in found]
        assert [getattr(p, f"{kind}_holm") for p in found] == ev.holm(plain).tolist()
    found = ev.significance(scores, against="b")
    assert [(p.first, p.second) for p in found] == [("a", "b"), ("c", "b")]
    assert found[1].comparison.iqm_difference.low > 0  # c is the better one
    assert found[0].welch_holm >= found[0].comparison.welch_p


def test_significance_seldom_finds_anything_where_nothing_is():
    rng = np.random.default_rng(5)
    families = [
        ev.significance({str(i): rng.normal(size=8) for i in range(4)}, resamples=2)
        for _ in range(150)
    ]
    corrected = np.mean([min(p.welch_holm for p in pairs) < 0.05 for pairs in families])
    plain = np.mean([min(p.comparison.welch_p for p in pairs) < 0.05 for pairs in families])
    assert corrected < 0.1 < plain  # six tests without correction find something far too often


def test_compare_of_constant_scores_is_defined():
    # Ten seeds that all reach the maximum are common.
    same = ev.compare([500.0] * 10, [500.0] * 10)
    assert same.welch_p == same.mann_whitney_p == 1
    assert same.iqm_difference == ev.Interval(0, 0, 0)
    assert same.probability_of_improvement == ev.Interval(0.5, 0.5, 0.5)
    assert ev.compare([500.0] * 10, [0.1] * 10).welch_p == 0
    assert 0 < ev.compare([500.0] * 10, X[:, 0]).welch_p < 1e-9


def test_compare_seldom_finds_what_is_not_there():
    rng = np.random.default_rng(2)
    pairs = [ev.compare(*rng.normal(size=(2, 10)), resamples=200) for _ in range(200)]
    for found in ([p.welch_p < 0.05 for p in pairs], [p.mann_whitney_p < 0.05 for p in pairs]):
        assert 0 < np.mean(found) < 0.11
    holds = [p.iqm_difference.low < 0 < p.iqm_difference.high for p in pairs]
    assert np.mean(holds) > 0.88


def test_summary_is_ready_for_json():
    result = ev.summary([1, 2, 3, 6])
    assert json.loads(json.dumps(result)) == result
    assert (result["mean"], result["iqm"], result["episodes"]) == (3, 2.5, 4)
    assert result["std"] == pytest.approx(np.sqrt(14 / 3))
    low, high = result["interval"]
    assert 1 <= low < 2.5 < high <= 6
    assert ev.summary([4.0]) == {
        "mean": 4, "std": None, "iqm": 4, "interval": None, "episodes": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((29.41, 29.14, 29.64), "29.4 [29.1, 29.6]"),
        ((475.2, 460.7, 481.1), "475 [461, 481]"),
        ((0.5, 0.441, 0.553), "0.50 [0.44, 0.55]"),
        ((30.0, 30.0, 30.0), "30 [30, 30]"),
        ((-0.2, -9.0, 5.0), "0 [-9, 5]"),
    ],
)
def test_interval_prints_what_its_width_supports(interval, text):
    assert str(ev.Interval(*interval)) == f"{ev.Interval(*interval)}" == text


def test_interval_prints_as_told():
    assert f"{ev.Interval(1, 0.5, 2):.2f}" == "1.00 [0.50, 2.00]"
    assert str(ev.compare([1, 2, 3.0], [1, 2, 3.0])).startswith("difference of IQMs 0.0 [-")


BAD = [[], [np.nan, 1.0], [1.0, np.inf], np.zeros((2, 2, 2)), [1.0], np.zeros((0, 3)), 3.0]


@pytest.mark.parametrize("bad", BAD, ids=lambda b: str(np.shape(b)))
@pytest.mark.parametrize(
    "function",
    [
        ev.bootstrap_interval,
        ev.aggregates,
        ev.pointwise_interval,
        lambda b: ev.probability_of_improvement(b, X),
        lambda b: ev.probability_of_improvement(X[:, 0], b),
        lambda b: ev.performance_profile(b, [0.0]),
        lambda b: ev.compare(b, X[:, 0]),
        lambda b: ev.compare(X[:, 0], b),
    ],
)
def test_bad_scores_are_refused(function, bad):
    with pytest.raises(ValueError, match="scores|curves|x |y "):
        function(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ev.iqm([]), "at least one"),
        (lambda: ev.iqm([1, np.nan]), "NaN"),
        (lambda: ev.bootstrap_interval(X, confidence=95), "between 0 and 1, got 95"),
        (lambda: ev.bootstrap_interval(X, resamples=0), "at least 1, got 0"),
        (lambda: ev.bootstrap_interval([[1, 2], [3, np.nan]]), r"nan at index \(1, 1\)"),
        (lambda: ev.probability_of_improvement(X, Y[:, :3]), "4 tasks, y has 3"),
        (lambda: ev.performance_profile(X, []), "thresholds"),
        (lambda: ev.summary([]), "at least 1 runs"),
        (lambda: ev.summary(X), r"\(runs,\), got \(10, 4\)"),
        (lambda: ev.steps_to_threshold([1, 2], [[1, 2, 3]], 1), r"\(3,\) like a curve, got \(2,\)"),
        (lambda: ev.steps_to_threshold([1, 1], [[1, 2]], 1), "increase"),
        (lambda: ev.steps_to_threshold([1, 2], [[1, 2]], 1, window=3), "the 2 points, got 3"),
        (lambda: ev.convergence([1, 2], [[1, 2]], 1), "between 2 and the 2 points, got 3"),
        (lambda: ev.convergence([1, 2], [[1, 2]], 1, window=1), "the 2 points, got 1"),
        (lambda: ev.convergence([1, 2, 3], [[1, 2, 3]], 0), "tolerance must be positive, got 0"),
        (lambda: ev.convergence([2, 1], [[1, 2]], 1), "increase"),
        (lambda: ev.area_under_curve([1], [[1]]), "at least 2 points"),
        (lambda: ev.area_under_curve([1, 2], [1, 2]), r"\(runs, columns\), got \(2,\)"),
        (lambda: ev.holm([0.1, 1.2]), r"\[0, 1\], got \[0.1, 1.2\]"),
        (lambda: ev.holm([]), "p_values"),
        (lambda: ev.holm([0.1, np.nan]), "p_values"),
        (lambda: ev.significance({"a": [1, 2]}), "at least two labels, got a"),
        (lambda: ev.significance({"a": [1, 2], "b": [1, 3]}, "c"), "one of a, b, got 'c'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
