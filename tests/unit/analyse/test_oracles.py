"""Intervals, tests and corrections against statsmodels, which is no part of the program."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from noisescope.analyse import crossed_interval, holm, mcnemar_p, t_test_p
from noisescope.analyse.moments import by_group, moments_of


def clustered(seed, N=60, G=13):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, G, N)
    return rng.standard_normal(G)[groups] + rng.standard_normal(N) + 0.4, groups


@pytest.mark.parametrize("seed", range(4))
def test_one_draw_with_sources_is_the_cluster_robust_regression(seed):
    values, groups = clustered(seed)
    fit = sm.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}, use_t=True
    )
    found = crossed_interval(values[None], groups=groups.tolist())
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)
    assert t_test_p(values[None], groups.tolist()) == pytest.approx(fit.pvalues[0], rel=1e-7)
    assert found.degrees == len(set(groups.tolist())) - 1


@pytest.mark.parametrize("seed", range(3))
def test_one_draw_without_sources_is_the_t_interval(seed):
    values = np.random.default_rng(seed).exponential(1, 40)
    found = crossed_interval(values[None])
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_mean_squares_are_those_of_a_two_way_analysis_of_variance(seed):
    rng = np.random.default_rng(seed)
    K, N = 4, 15
    values = rng.standard_normal((K, 1)) + rng.standard_normal((1, N)) + rng.standard_normal((K, N))
    draws, questions = np.indices((K, N))
    data = pd.DataFrame({"y": values.ravel(), "k": draws.ravel(), "i": questions.ravel()})
    table = sm.stats.anova_lm(smf.ols("y ~ C(k) + C(i)", data).fit())
    found = moments_of(values)
    expected = table["sum_sq"] / table["df"]
    assert float(found.ms_draw) == pytest.approx(expected["C(k)"], rel=1e-8)
    assert float(found.ms_question) == pytest.approx(expected["C(i)"], rel=1e-8)
    assert float(found.ms_rest) == pytest.approx(expected["Residual"], rel=1e-8)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 0), (9, 2), (6, 6), (1, 14)])
def test_mcnemar_is_theirs(b, c):
    first = [True] * b + [False] * c + [True] * 20 + [False] * 5
    second = [False] * b + [True] * c + [True] * 20 + [False] * 5
    expected = mcnemar(np.array([[20, b], [c, 5]]), exact=True).pvalue
    assert mcnemar_p(first, second) == pytest.approx(expected, abs=1e-12)


def test_holm_is_theirs():
    p = np.random.default_rng(0).uniform(0, 0.2, 28) ** 2
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_draws_with_sources_reduce_to_draws_with_questions_where_sources_are_equal():
    """Equal sources: the value of a source in a draw is its mean, whatever the draw."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 24))
    means = values.reshape(3, 8, 3).mean(axis=2)
    assert by_group(values, np.repeat(np.arange(8), 3).tolist()) == pytest.approx(means)
