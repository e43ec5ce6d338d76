"""Harmful, harmless or inconclusive: how often wrongly, and what would settle it."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescope.analyse import verdicts
from noisescope.analyse.evidence import evidence
from noisescope.analyse.moments import moments_of
from noisescope.analyse.verdict import Losses

MARGIN = 0.01


def one(values, measure="kl", margin=MARGIN, groups=None, **others):
    """The verdict on one condition, among others that matter only to Holm."""
    losses = {"L0": Losses(np.asarray(values, dtype=float), groups)}
    losses |= {name: Losses(np.asarray(x, dtype=float)) for name, x in others.items()}
    return verdicts(losses, measure, margin)["L0"]


def kl(mean, K=1, N=50, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    log = spread * rng.standard_normal((1, N)) + spread * rng.standard_normal((K, N))
    return mean * np.exp(log - spread**2)


def answers(lost, won=0, N=50, K=1):
    return np.tile([1.0] * lost + [-1.0] * won + [0.0] * (N - lost - won), (K, 1))


def test_the_three_outcomes_by_kl():
    harmful, harmless, unsure = one(kl(0.05)), one(kl(0.003)), one(kl(0.0102))
    assert (harmful.outcome, harmless.outcome) == ("harmful", "harmless")
    assert unsure.outcome == "inconclusive" and unsure.needed_samples > 50
    assert harmful.p_harmful < 0.05 < harmful.p_harmless
    assert harmless.p_harmless < 0.05 < harmless.p_harmful
    assert harmful.needed_samples is None and harmless.needed_samples is None
    assert harmful.reason.startswith("harmful: a loss of 0.05")
    assert "nats in this one draw, more than 0.01 nats (p = " in harmful.reason
    assert harmless.reason.endswith(f"less than 0.01 nats (p = {harmless.p_harmless:.2g})")
    assert f"about {unsure.needed_samples} samples would settle it" in unsure.reason


def test_the_three_outcomes_by_accuracy():
    harmful = one(answers(20, 1), "accuracy")
    assert harmful.outcome == "harmful" and "a loss of 38 points" in harmful.reason
    unsure = one(answers(3, 1), "accuracy")
    assert unsure.outcome == "inconclusive" and unsure.needed_samples > 50
    harmless = one(answers(2, 3, N=900), "accuracy")
    assert harmless.outcome == "harmless" and "less than 1 points" in harmless.reason


@pytest.mark.parametrize(("N", "outcome"), [(299, "inconclusive"), (300, "harmless")])
@pytest.mark.parametrize("K", [1, 3])
def test_without_discordant_answers_three_over_n_must_lie_within_the_margin(N, outcome, K):
    found = one(answers(0, N=N, K=K), "accuracy")
    assert found.outcome == outcome
    if outcome == "inconclusive":
        assert found.needed_samples == 300
    wide = one(answers(0, N=100), "accuracy", margin=0.03)
    assert wide.outcome == "harmless"


@pytest.mark.parametrize("measure", ["kl", "accuracy"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_nine_samples_are_never_enough(measure, level):
    few, enough = np.full((3, 9), level), np.full((3, 40), level)
    assert one(few, measure).outcome == "inconclusive"
    assert "9 samples are too few to tell" in one(few, measure).reason
    if measure == "kl" or level:
        assert one(enough, measure).outcome == ("harmful" if level else "harmless")


def test_nine_sources_are_nine_samples():
    groups = [i % 9 for i in range(90)]
    found = one(kl(0.05, N=90), groups=groups)
    assert found.outcome == "inconclusive" and "9 independent samples are too few" in found.reason
    assert one(kl(0.05, N=90)).outcome == "harmful"


def test_sources_widen_the_doubt():
    rng = np.random.default_rng(0)
    source = stats.zscore(rng.standard_normal(12))
    values = np.repeat(source, 20)[None] * 0.02 + 0.014 + 0.001 * rng.standard_normal((1, 240))
    assert one(values).outcome == "harmful"
    assert one(values, groups=np.repeat(np.arange(12), 20).tolist()).outcome == "inconclusive"


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_noise_that_overflowed_is_harmful_and_never_harmless(broken):
    values = kl(0.001, N=40)
    values[0, 3] = broken
    found = one(values)
    assert (found.outcome, found.p_harmful, found.p_harmless) == ("harmful", 0.0, 1.0)
    assert found.reason == "harmful: the logits overflowed in 1 of 40 samples"
    assert one(np.full((1, 40), broken)).outcome == "harmful"
    assert one(np.full((1, 9), broken)).outcome == "inconclusive"
    assert one(np.full((1, 40), math.nan), "accuracy").outcome == "inconclusive"


def test_a_loss_on_the_margin_has_nothing_in_sight():
    values = np.tile([0.005, 0.015], (2, 20))
    found = one(values)
    assert (found.outcome, found.needed_samples, found.needed_draws) == ("inconclusive", None, None)
    assert found.reason.endswith("no number of samples or draws in sight would settle it")


def test_draws_that_differ_too_much_ask_for_draws():
    rng = np.random.default_rng(1)
    values = 0.02 + 0.012 * np.array([[-1], [0.2], [0.8]]) + 0.001 * rng.standard_normal((3, 200))
    found = one(values)
    assert found.outcome == "inconclusive" and found.needed_samples is None
    assert 3 < found.needed_draws <= 20
    assert f"about {found.needed_draws} draws would settle it" in found.reason
    assert "over 3 draws" in found.reason


def test_harm_is_judged_over_all_conditions():
    values = kl(0.0111, N=100)
    alone = one(values)
    others = {f"L{i}": kl(0.001, seed=i) for i in range(1, 28)}
    among = one(values, **others)
    assert (alone.outcome, among.outcome) == ("harmful", "inconclusive")
    assert among.p_harmful == pytest.approx(28 * alone.p_harmful)
    assert among.p_harmless == alone.p_harmless


def kl_studies(studies, K, N, common, rng, draw_sd=0.0):
    """28 layers whose true KL is the margin, as skewed as KL is; questions hard for all of them."""
    shape = (studies, 28, K, N)
    log = math.sqrt(common) * rng.standard_normal((studies, 1, 1, N))
    log = log + 0.6 * rng.standard_normal((studies, 28, 1, N)) + 0.4 * rng.standard_normal(shape)
    log += draw_sd * rng.standard_normal((studies, 28, K, 1))
    return MARGIN * np.exp(log - (common + 0.36 + 0.16 + draw_sd**2) / 2)


@pytest.mark.parametrize("common", [0.0, 0.5])
@pytest.mark.parametrize(("K", "draw_sd"), [(1, 0.0), (2, 0.0), (4, 0.0), (4, 0.3)])
@pytest.mark.parametrize("N", [20, 100])
def test_28_healthy_layers_seldom_raise_an_alarm_by_kl(K, N, common, draw_sd):
    """Holm finds any among 28 just where the least p is below 5 % / 28."""
    rng = np.random.default_rng([K, N])
    values = kl_studies(400, K, N, common, rng, draw_sd)
    alarms = moments_of(values).is_above(MARGIN, 0.05 / 28).any(axis=1)
    assert alarms.mean() <= 0.05
    some = values[0]
    found = verdicts({f"L{i}": Losses(x) for i, x in enumerate(some)}, "kl", MARGIN)
    assert any(v.outcome == "harmful" for v in found.values()) == bool(alarms[0])


def answer_studies(studies, K, N, rate, rng, draw_sd=0.0):
    """28 layers that lose as many answers as they win, on the same hard questions."""
    latent = math.sqrt(0.4) * rng.standard_normal((studies, 1, 1, N))
    latent = latent + math.sqrt(0.3) * rng.standard_normal((studies, 28, 1, N))
    latent = latent + math.sqrt(0.3) * rng.standard_normal((studies, 28, K, N))
    latent += draw_sd * rng.standard_normal((studies, 28, K, 1))
    edge = stats.norm.isf(rate) * math.sqrt(1 + draw_sd**2)
    return 1.0 * (latent > edge) - (latent < -edge)


@pytest.mark.parametrize(("K", "draw_sd"), [(1, 0.0), (4, 0.0), (4, 0.5)])
@pytest.mark.parametrize("rate", [0.03, 0.2])
def test_28_healthy_layers_seldom_raise_an_alarm_by_accuracy(K, draw_sd, rate):
    rng = np.random.default_rng([K, 3])
    alarms = 0
    for study in answer_studies(100, K, 50, rate, rng, draw_sd):
        tests = [evidence(x, MARGIN, is_share=True).test for x in study]
        alarms += any(test.is_above(MARGIN, 0.05 / 28) for test in tests)
    assert alarms / 100 <= 0.05


def test_a_broken_layer_among_28_is_found():
    rng = np.random.default_rng(5)
    values = kl_studies(200, 4, 50, 0.5, rng)
    values[:, 3] *= 2.5
    assert moments_of(values).is_above(MARGIN, 0.05 / 28)[:, 3].mean() > 0.9


SKEWED = {
    "lognormal": lambda rng, shape: rng.lognormal(-0.5, 1.0, shape),
    "exponential": lambda rng, shape: rng.exponential(1, shape),
    "normal": lambda rng, shape: rng.normal(1, 0.5, shape),
    "sparse": lambda rng, shape: rng.gamma(0.2, 5, shape),
}


@pytest.mark.parametrize("kind", SKEWED)
@pytest.mark.parametrize(("K", "N"), [(1, 10), (1, 50), (1, 200), (4, 50)])
def test_a_kl_at_the_margin_is_seldom_called_harmless(kind, K, N):
    rng = np.random.default_rng([K, N])
    values = MARGIN * SKEWED[kind](rng, (1500, K, N))
    worst = values.mean(axis=1).max(axis=1)
    guarded = moments_of(values).with_unseen(2 * worst).is_below(MARGIN, 0.05)
    assert guarded.mean() <= 0.05
    tests = [evidence(study, MARGIN, is_share=False).test for study in values[:100]]
    assert [t.is_below(MARGIN, 0.05) for t in tests] == guarded[:100].tolist()


def test_without_the_guard_it_would_be():
    values = MARGIN * SKEWED["lognormal"](np.random.default_rng(0), (3000, 1, 50))
    assert moments_of(values).is_below(MARGIN, 0.05).mean() > 0.07


@pytest.mark.parametrize("rate", [0.03, 0.1])
@pytest.mark.parametrize(("K", "N"), [(4, 200), (4, 600)])
def test_an_accuracy_at_the_margin_is_seldom_called_harmless_over_draws(K, N, rate):
    """One draw is summed exactly in test_shares."""
    rng = np.random.default_rng([K, N])
    latent = math.sqrt(0.7) * rng.standard_normal((400, 1, N))
    latent = latent + math.sqrt(0.3) * rng.standard_normal((400, K, N))
    studies = 1.0 * (latent > stats.norm.isf(rate + MARGIN)) - (latent < stats.norm.ppf(rate))
    found = [evidence(x, MARGIN, is_share=True).test.is_below(MARGIN, 0.05) for x in studies]
    assert np.mean(found) <= 0.05 + 2.3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(("mean", "K"), [(0.014, 1), (0.013, 4), (0.007, 1), (0.0075, 4)])
def test_the_samples_that_would_settle_it_do_every_other_time(mean, K):
    studies = [kl(mean, K=K, N=30, spread=0.7, seed=seed) for seed in range(16)]
    assert share_settled(studies, "kl", "harmful" if mean > MARGIN else "harmless") >= 0.5


@pytest.mark.parametrize(("won", "outcome"), [(0.04, "harmful"), (0.13, "harmless")])
def test_the_answers_that_would_settle_it_do_every_other_time(won, outcome):
    latent = np.random.default_rng(2).random((16, 1, 50))
    assert share_settled(1.0 * (latent < 0.10) - (latent > 1 - won), "accuracy", outcome) >= 0.5


def share_settled(studies, measure, outcome, repetitions=20):
    """How often as many samples as are asked for settle it, with a study's own for population.

    Columns are drawn with replacement, and each is shuffled, as the draws of these do not differ.
    """
    rng = np.random.default_rng(9)
    settled = []
    for values in studies:
        found = one(values, measure)
        on_side = (values.mean() > MARGIN) == (outcome == "harmful")
        if not on_side or found.needed_samples is None or found.needed_samples > 3000:
            continue
        for _ in range(repetitions):
            columns = values[:, rng.integers(0, values.shape[1], found.needed_samples)]
            again = one(rng.permuted(columns, axis=0), measure)
            settled.append(again.outcome == outcome)
    assert len(settled) >= 4 * repetitions, "too few studies asked for more samples"
    return np.mean(settled)
