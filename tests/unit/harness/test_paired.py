"""Pairs of clean and noisy samples: differences, intervals and verdicts, against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.harness import run_of
from scipy import special, stats

from noisescope.errors import InputError
from noisescope.harness.paired import EvaluationMargins, changes_of
from noisescope.harness.pairs import choice_kl

MARGINS = EvaluationMargins()


def change(*runs, conditions=("noise",), margins=MARGINS):
    (found,) = changes_of(runs, conditions, margins)
    return found


def test_right_answers_of_one_draw_are_judged_by_the_exact_mcnemar_test():
    clean = [1.0] * 30 + [0.0] * 10
    noisy = [0.0] * 9 + [1.0] * 21 + [1.0] * 2 + [0.0] * 8  # nine lost, two won
    found = change(run_of(values=clean), run_of("noise", values=noisy))
    assert (found.clean, found.noisy) == (0.75, 0.575)
    assert found.difference.mean == pytest.approx(-7 / 40)
    assert found.flips == (9 / 40, 2 / 40)
    assert found.p == pytest.approx(2 * stats.binom.cdf(2, 11, 0.5))
    assert found.difference.low < -7 / 40 < found.difference.high
    assert not found.difference.includes_draws
    assert found.kind == "share" and found.samples == 40 and found.draws == 1


def test_numbers_get_the_paired_t_interval():
    generator = np.random.default_rng(0)
    clean = generator.normal(size=200)
    noisy = clean + generator.normal(0.1, 1.0, size=200)
    found = change(
        run_of(values=tuple(map(float, clean)), metric="score"),
        run_of("noise", values=tuple(map(float, noisy)), metric="score"),
    )
    low, high = stats.t.interval(0.95, 199, (noisy - clean).mean(), stats.sem(noisy - clean))
    assert found.kind == "number"
    # The interval is freed of skewness besides, of which there is hardly any.
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=0.02)
    assert "nats" not in found.verdict.reason and found.verdict.margin == 0.01


def test_draws_and_samples_are_crossed():
    # One draw loses nearly everything, the other nothing: forty samples do not tell of a third.
    draws = [[0.0] * 38 + [1.0] * 2, [1.0] * 40]
    runs = [run_of("noise", k, values) for k, values in enumerate(draws)]
    found = change(run_of(values=[1.0] * 40), *reversed(runs))
    assert found.draws == 2 and found.difference.includes_draws
    assert found.difference.mean == pytest.approx(-0.475)
    assert found.difference.high - found.difference.low > 1
    assert found.verdict.outcome == "inconclusive"


def test_harm_is_a_loss_whichever_way_is_better():
    values = [1.0] * 60
    up = run_of(values=values), run_of("noise", values=[0.0] * 60)
    assert change(*up).verdict.outcome == "harmful"
    fewer = [
        run_of(c, values=v, higher_is_better={"acc": False})
        for c, v in (("clean", values), ("noise", [0.0] * 50 + [1.0] * 10))
    ]
    assert change(*fewer, margins=EvaluationMargins(0.1)).verdict.outcome == "harmless"
    unsaid = [
        run_of(c, values=v, higher_is_better={}) for c, v in (("clean", values), ("noise", values))
    ]
    assert change(*unsaid).verdict is None


def test_harm_is_told_over_all_tasks_and_conditions_together():
    lost = [0.0] * 6 + [1.0] * 54  # p = 1/64 alone, not beyond chance over eight conditions
    names = [f"c{n}" for n in range(8)]
    margins = EvaluationMargins(accuracy=1e-6)
    runs = [run_of(values=[1.0] * 60), *(run_of(name, values=lost) for name in names)]
    alone = changes_of(runs[:2], names[:1], margins)
    assert alone[0].verdict.outcome == "harmful"
    together = changes_of(runs, names, margins)
    assert {found.verdict.outcome for found in together} == {"inconclusive"}
    assert [found.condition for found in together] == names


def test_one_document_asked_often_counts_once():
    values, other = [1.0] * 40, [0.0] * 20 + [1.0] * 20
    apart = change(run_of(values=values), run_of("noise", values=other))
    hashes = [f"h{n // 20}" for n in range(40)]
    same = change(
        run_of(values=values, hashes=hashes), run_of("noise", values=other, hashes=hashes)
    )
    assert apart.verdict.outcome == "harmful" and same.verdict.outcome == "inconclusive"
    assert "2 independent samples are too few" in same.verdict.reason
    assert same.difference.high - same.difference.low > 1 > apart.difference.high + 0.75


def test_log_likelihoods_become_nats_lost_per_unit():
    clean = [(-20.0, 10.0), (-30.0, 10.0)] * 10
    noisy = [(-22.0, 10.0), (-34.0, 10.0)] * 10
    runs = [
        run_of(c, values=v, metric="bits_per_byte") for c, v in (("clean", clean), ("noise", noisy))
    ]
    found = change(*runs)
    assert found.kind == "nats" and found.is_higher_better is False
    assert (found.clean, found.noisy) == pytest.approx((2.5, 2.8))
    assert found.difference.mean == pytest.approx(0.3) and found.verdict.outcome == "harmful"
    assert found.name == "bits_per_byte, nats"
    plain = [
        run_of(c, values=[v, v], metric="perplexity") for c, v in (("clean", -3.0), ("noise", -4.0))
    ]
    assert change(*plain).difference.mean == pytest.approx(1.0)


def test_metrics_of_a_whole_corpus_have_figures_and_no_claim():
    runs = [
        run_of(c, k, values=[None, None], metric="bleu", aggregates={"bleu,none": figure})
        for c, k, figure in (("clean", 0, 30.0), ("noise", 0, 20.0), ("noise", 1, 24.0))
    ]
    found = change(*runs)
    assert (found.kind, found.clean, found.noisy) == ("corpus", 30.0, 22.0)
    assert found.difference.mean == -8.0 and math.isnan(found.difference.low)
    assert found.verdict is None and math.isnan(found.p) and found.draws == 2


def test_the_kl_of_choices_is_that_of_their_softmax():
    clean = [[-1.0, False], [-2.0, True], [-4.0, False]]
    noisy = [[-2.0, False], [-1.5, True], [-3.0, False]]
    p, q = (special.softmax([ll for ll, _ in side]) for side in (clean, noisy))
    assert choice_kl(clean, noisy) == pytest.approx(stats.entropy(p, q))
    assert choice_kl(clean, clean) == 0
    assert choice_kl(clean, [[-math.inf, False], *noisy[1:]]) == math.inf
    assert math.isnan(choice_kl([[math.nan, True], *clean[1:]], noisy))
    assert math.isnan(choice_kl(["a text"], ["a text"])) and math.isnan(choice_kl(clean, noisy[:2]))


def test_of_multiple_choice_the_kl_of_choices_is_told_too():
    sides = [[[-1.0, True], [-2.0, False]]] * 20, [[[-2.0, False], [-1.0, True]]] * 20
    runs = [
        run_of(c, values=[v] * 20, responses=r, output_type="multiple_choice")
        for c, v, r in (("clean", 1.0, sides[0]), ("noise", 0.0, sides[1]))
    ]
    acc, kl = changes_of(runs, ["noise"], MARGINS)
    assert (acc.metric, kl.metric, kl.kind) == ("acc", "choice_kl", "nats")
    assert kl.clean == 0 and kl.noisy == pytest.approx(choice_kl(sides[0][0], sides[1][0]))
    assert kl.verdict.outcome == "harmful"


def test_what_overflows_is_harm_and_what_is_unknown_is_left_out():
    def responses(value):
        return [[[value, True], [-2.0, False]]] * 20

    runs = [
        run_of(c, values=[1.0] * 20, responses=responses(v), output_type="multiple_choice")
        for c, v in (("clean", -1.0), ("noise", math.nan))
    ]
    kl = changes_of(runs, ["noise"], MARGINS)[1]
    assert kl.verdict.outcome == "harmful" and "overflowed" in kl.verdict.reason
    unknown = [run_of(c, values=v) for c, v in (("clean", [math.nan, 1.0]), ("noise", [1.0, 1.0]))]
    assert change(*unknown).clean == 1.0


def test_one_sample_gives_no_interval():
    found = change(run_of(values=[1.0]), run_of("noise", values=[0.0]))
    assert math.isnan(found.difference.low) and found.verdict.outcome == "inconclusive"


def test_other_prompts_are_not_paired():
    with pytest.raises(InputError, match="did not ask the noisy model what it asked the clean one"):
        changes_of([run_of(), run_of("noise", prompt="q")], ["noise"], MARGINS)
    with pytest.raises(InputError, match="did not ask"):
        changes_of([run_of(), run_of("noise", hashes=["h0", "h2"])], ["noise"], MARGINS)


@pytest.mark.parametrize("margins", [{"accuracy": 0.0}, {"nats": -1.0}, {"nats": math.inf}])
def test_a_margin_is_above_zero(margins):
    with pytest.raises(InputError, match="a number above 0 is needed"):
        EvaluationMargins(**margins)


# What is lost, lacking, or told twice.


def test_what_a_metric_is_all_conditions_decide_together():
    names = ("a", "b")
    for values, kind in ((1.0, "share"), (math.nan, "share"), (0.2, "number")):
        runs = [run_of(values=[1.0] * 20), run_of("a", values=[1.0] * 20)]
        runs.append(run_of("b", values=[values] + [0.0] * 19))
        assert [c.kind for c in changes_of(runs, names, MARGINS)] == [kind, kind], values


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_samples_without_a_number_under_noise_are_no_proof_of_harmlessness(kept):
    clean = run_of(values=[kept] * 1000)
    found = change(clean, run_of("noise", values=[math.nan] * 500 + [kept] * 500))
    assert found.lost == 500 and found.samples == 1000 and math.isnan(found.p)
    said = "no number under noise in 500 of 1000 samples"
    assert found.verdict.outcome == "inconclusive" and said in found.verdict.reason
    assert math.isnan(found.verdict.p_harmless) and said in found.difference.caution
    assert change(clean, run_of("noise", values=[kept] * 1000)).verdict.outcome == "harmless"


def test_what_harms_whatever_the_lost_answers_were_is_harmful():
    values = [math.nan] + [0.0] * 99
    found = change(run_of(values=[1.0] * 100), run_of("noise", values=values))
    assert found.verdict.outcome == "harmful" and found.lost == 1
    rising = [
        run_of(c, values=v, higher_is_better={"acc": False})
        for c, v in (("clean", [0.0] * 100), ("noise", [math.nan] + [1.0] * 99))
    ]
    assert change(*rising).verdict.outcome == "harmful"


def test_log_likelihoods_that_are_lost_are_harm():
    values = [math.nan] * 5 + [-3.0] * 95
    sides = ("clean", [-3.0] * 100), ("noise", values)
    found = change(*(run_of(c, values=v, metric="perplexity") for c, v in sides))
    assert found.verdict.outcome == "harmful" and "5 of 100" in found.verdict.reason
    assert found.lost == 5 and math.isnan(found.p)


def test_what_the_clean_model_lacks_is_no_loss_and_enters_no_test():
    found = change(run_of(values=[math.nan, 1.0, 1.0, 0.0]), run_of("noise", values=[0.0] * 4))
    assert found.lost == 0 and found.p == 0.5  # two lost of two that changed


@pytest.mark.parametrize(
    ("better", "flips"), [(True, (0.3, 0.1)), (False, (0.1, 0.3)), (None, None)]
)
def test_made_wrong_is_what_became_worse(better, flips):
    clean, noisy = [1.0] * 5 + [0.0] * 5, [0.0] * 3 + [1.0] * 2 + [1.0] + [0.0] * 4
    runs = [
        run_of(c, values=v, higher_is_better={"acc": better})
        for c, v in (("clean", clean), ("noise", noisy))
    ]
    assert change(*runs).flips == flips


def test_of_mutual_information_the_choices_alone_are_compared():
    sides = [[-1.0, True], [-2.0, False]], [[-2.0, False], [-1.0, True]]
    more = [[-9.0, False], [-0.1, False]]  # the choices without their question
    runs = [
        run_of(
            c,
            values=[1.0] * 20,
            responses=[side + more] * 20,
            output_type="multiple_choice",
            higher_is_better={"acc": True, "acc_mutual_info": True},
        )
        for c, side in zip(("clean", "noise"), sides, strict=True)
    ]
    kl = changes_of(runs, ["noise"], MARGINS)[1]
    assert kl.metric == "choice_kl" and kl.noisy == pytest.approx(choice_kl(*sides))


def test_a_metric_of_some_samples_is_paired_where_the_clean_model_has_it():
    def of(condition, without):
        run = run_of(condition, values=[1.0] * 10)
        answers = [
            replace(a, metrics={"acc": 1.0} if n in without else {"acc": 1.0, "b": 1.0})
            for n, a in enumerate(run.answers)
        ]
        return replace(run, answers=tuple(answers))

    acc, b = changes_of([of("clean", {0}), of("noise", {0})], ["noise"], MARGINS)
    assert (acc.samples, b.samples, b.lost) == (10, 9, 0)
    assert "9 of 10 samples have this metric" in b.difference.caution
    acc, b = changes_of([of("clean", {}), of("noise", {0, 3})], ["noise"], MARGINS)
    assert (b.samples, b.lost, b.kind) == (10, 2, "share")


def test_one_number_under_two_names_counts_once():
    def of(condition, loss, *metrics):
        values = [(-20.0 - loss * (n % 2), 10.0) for n in range(40)]
        run = run_of(condition, values=values)
        answers = [
            replace(answer, metrics=dict.fromkeys(metrics, value))
            for answer, value in zip(run.answers, values, strict=True)
        ]
        return replace(run, answers=tuple(answers))

    names = ("byte_perplexity", "bits_per_byte")
    one, two = changes_of([of("clean", 0.0, *names), of("noise", 0.5, *names)], ["noise"], MARGINS)
    alone = change(of("clean", 0.0, names[0]), of("noise", 0.5, names[0]))
    assert one.verdict == two.verdict == alone.verdict and 0 < alone.verdict.p_harmful < 1


def test_a_loss_below_zero_is_a_gain_and_one_point_is_a_point():
    found = change(run_of(values=[0.0] * 3 + [1.0] * 37), run_of("noise", values=[1.0] * 40))
    said = "a gain of 7.5 points in this one draw, not to be told from a loss of 1 point; about"
    assert found.verdict.reason.startswith(f"inconclusive: {said}")
    same = change(run_of(values=[1.0] * 1000), run_of("noise", values=[1.0] * 1000))
    assert "a loss of 0 points" in same.verdict.reason and "than 1 point (" in same.verdict.reason
