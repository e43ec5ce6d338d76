"""The verdict: each claim with its number and doubt, and advice that goes by what was measured."""

import math
from dataclasses import replace

import pytest
from helpers.diagnoses import whole_diagnosis, with_analysis, with_config, with_findings

from noisescope.analyse import Agreement, Blame, Interval, Target
from noisescope.analyse.critical_scale import CriticalScale
from noisescope.analyse.dose_response import Departure
from noisescope.analyse.intervals import UNKNOWN
from noisescope.report import claims, sentences, verdict
from noisescope.report.conclusion import advice
from noisescope.study.effects import ChannelEffect, Remedy
from noisescope.study.kept_channels import Massive, ModuleChannels
from noisescope.study.steps import BLAMED
from noisescope.study.told import Told

SITE = "model.layers.1.mlp.down_proj:linear:0"
OTHER = "model.layers.0.mlp.up_proj:linear:0"


def interval(mean, low, high):
    return Interval(mean, low, high, 9.0, True)


def remedy(back, **changes):
    made = Remedy(
        everything=interval(1.4, 1.2, 1.6),
        without=interval(0.3, 0.2, 0.4),
        alone=interval(1.1, 0.9, 1.3),
        brought_back=back,
        carried=interval(0.79, 0.7, 0.9),
        answers_brought_back=interval(0.4, 0.3, 0.5),
        answers_lost_alone=interval(0.35, 0.2, 0.5),
        answers_lost=interval(0.6, 0.5, 0.7),
    )
    return replace(made, **changes)


def blaming(found, back=None, cleaned=(SITE,)):
    """A diagnosis that blames so, with the remedy of the sites that were cleaned."""
    diagnosis = whole_diagnosis()
    entry = dict(next(iter(diagnosis.plan.asked.values())))
    entry["selection"] = {**entry["selection"], "sites": list(cleaned)}
    conditions = {n: c for n, c in diagnosis.plan.conditions.items() if n != BLAMED}
    if back is not None:
        conditions[BLAMED] = entry
    plan = replace(diagnosis.plan, conditions=conditions, chosen={**diagnosis.plan.chosen})
    changed = replace(diagnosis, plan=plan)
    return with_findings(changed, blame=found, remedy=None if back is None else remedy(back))


def agreeing(ratio, departing, rank=0.97):
    slope = interval(1.0, 0.9, 1.1)
    return Agreement(62, slope, 0.95, rank, ratio, departing)


def said(claim, diagnosis):
    return " ".join(claim(diagnosis))


def test_the_cost_is_told_with_its_intervals():
    diagnosis = whole_diagnosis()
    text = said(claims.cost, diagnosis)
    assert text.startswith("Noise of scale 0.2 (RelativeGaussian) everywhere costs ")
    assert "nats per token and " in text and text.endswith("of accuracy, of 100.0.")
    summary = next(s for s in diagnosis.summaries if s.condition == "all")
    assert f"{summary.kl_nats.mean:.2g} [{max(0, summary.kl_nats.low):.2g}" in text


def test_where_nothing_was_generated_no_accuracy_is_claimed():
    diagnosis = whole_diagnosis(False, 1)
    text = said(claims.cost, diagnosis)
    assert "nothing was generated, so no accuracy is known" in text
    assert "One draw was measured: this realisation of the noise" in text
    assert "points" not in verdict(diagnosis) and "nan" not in verdict(diagnosis).lower()
    assert "--draws 4" in said(advice, diagnosis)


def test_a_site_that_stands_out_is_kept_exact():
    found = Blame("stands out", (SITE,), 0.9, {SITE: 120.0})
    diagnosis = blaming(found, interval(0.8, 0.7, 0.9))
    text = said(claims.blamed, diagnosis)
    assert f"{SITE} stands out: it costs at least 120 times its peers in other layers" in text
    needed = said(claims.needed, diagnosis)
    assert "With it clean, noise everywhere else costs 0.3 [0.2, 0.4] nats per token" in needed
    assert "instead of 1.4 [1.2, 1.6]: that brings back 80 % [70, 90] of the loss" in needed
    assert "40.0 [30.0, 50.0] points of the 60.0 of accuracy; it helps, beyond chance" in needed
    assert "Noise in it alone costs 1.1 [0.9, 1.3] nats per token and 35.0 [20.0, 50.0]" in needed
    assert f"keep {SITE} exact, which brings back 80 % [70, 90]" in said(advice, diagnosis)


def test_the_largest_are_said_to_be_no_more_than_that():
    found = Blame("largest", (SITE, OTHER), 0.61, {}, ("model.layers.2.x:linear:0",))
    diagnosis = blaming(found, interval(0.03, -0.03, 0.08), cleaned=(SITE, OTHER))
    text = said(claims.blamed, diagnosis)
    assert f"No site stands out from its peers in other layers; {SITE}, {OTHER} cost most" in text
    assert "carry 61 % of the KL" in text
    assert "x:linear:0 was predicted to stand out, which measurement did not confirm" in text
    assert "inconclusive: that cannot be told from nothing" in said(claims.needed, diagnosis)
    assert "there is no single site to protect" in said(advice, diagnosis)


@pytest.mark.parametrize(
    ("back", "part"),
    [
        (interval(0.3, -0.1, 0.7), "is open (30 % [-10, 70] of the loss comes back)"),
        (interval(0.05, 0.02, 0.08), "there is no single site to protect"),
        (replace(UNKNOWN, mean=0.3), "is open (30 % [too few data]"),
    ],
)
def test_what_is_not_shown_to_help_is_not_advised(back, part):
    diagnosis = blaming(Blame("largest", (SITE,), 0.6, {}), back)
    assert part in said(advice, diagnosis)


def test_a_spread_loss_names_nobody():
    diagnosis = blaming(Blame("spread", (), math.nan, {}))
    assert "The loss is spread: no site stands out" in said(claims.blamed, diagnosis)
    assert said(claims.needed, diagnosis) == ""
    assert said(advice, diagnosis).startswith("What to do: there is no single site to protect.")


def test_sites_that_were_cleaned_by_an_earlier_choice_are_named():
    found = Blame("largest", (SITE,), 0.6, {})
    diagnosis = blaming(found, interval(0.8, 0.7, 0.9), cleaned=(OTHER,))
    text = said(claims.needed, diagnosis)
    assert text.startswith(f"Cleaned were, by what was known when they were chosen: {OTHER}.")
    assert f"keep {OTHER} exact" in said(advice, diagnosis)


def test_without_a_prediction_nobody_is_blamed_and_nothing_is_confirmed():
    diagnosis = replace(with_findings(whole_diagnosis(), blame=None, agreement=None), told=Told())
    assert "Nobody is blamed: nothing was predicted" in said(claims.blamed, diagnosis)
    assert "nothing confirms or contradicts" in said(claims.held, diagnosis)


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (agreeing(1.02, {}), "The prediction held: measured is 1 times the predicted KL in the"),
        (agreeing(1.02, {"L3": 1.6}), "held for most: measured is 1 times"),
        (agreeing(1.5, {}), "Whether the prediction held is inconclusive: measured is 1.5 times"),
        (agreeing(16.0, {"all": 843.0}), "At this scale the prediction is off: measured is 16 tim"),
        (agreeing(16.0, {"all": 843.0}), "farthest all (840 times); it ranks them well"),
        (agreeing(16.0, {"all": 8.0}, rank=0.4), "it does not rank them well (rank correlation 0."),
    ],
)
def test_whether_the_prediction_held_is_said_plainly(found, part):
    assert part in said(claims.held, with_findings(whole_diagnosis(), agreement=found))


def at_scales(*places):
    """The dose and response of everything, with these places from the smallest scale on."""
    diagnosis = whole_diagnosis()
    response = diagnosis.findings.responses["all"]
    some = [
        replace(point, place=place, ratio=interval(0.9, 0.4, 2.0))
        for point, place in zip(response.scales, places, strict=False)
    ]
    off = agreeing(16.0, {"all": 843.0})
    changed = replace(response, scales=tuple(some), departure=Departure(0.0, 1.0, "above"))
    return with_findings(diagnosis, agreement=off, responses={"all": changed})


@pytest.mark.parametrize(
    ("places", "part"),
    [
        (("on", "above"), "With noise everywhere it holds at 0.013."),
        (("above", "above"), "No scale was found at which it holds, down to 0.013."),
        (("unknown", "above"), "At the smallest scale, 0.013, measured is 0.9 [0.4, 2] times"),
    ],
)
def test_where_a_prediction_that_is_off_holds_is_said(places, part):
    assert part in said(claims.held, at_scales(*places))


def test_a_prediction_that_is_off_says_where_to_look_if_no_scale_was_measured():
    off = with_findings(whole_diagnosis(), agreement=agreeing(16.0, {"all": 8.0}), responses={})
    assert "was not looked at: --scales tells" in said(claims.held, off)


def test_channels_are_told_with_what_noise_there_costs():
    peak = Massive(-812.0, 2300.0, 7, 1, 0, 1)
    module = ModuleChannels("model.layers.1.mlp.down_proj", 32, (5,), (40.0,), 40.0, (peak,))
    effect = ChannelEffect(
        SITE, (5,), True, 40.0, None, interval(0.5, 0.4, 0.6), interval(0.1, 0.05, 0.2),
        interval(0.83, 0.7, 0.9),
    )  # fmt: skip
    diagnosis = replace(whole_diagnosis(), told=Told(None, (module,)))
    text = said(claims.channels, with_findings(diagnosis, channels=(effect,)))
    assert "Outlier channels are in 1 module of 1, the largest channel 5" in text
    assert "40 times the middle channel" in text
    assert "largest 2,300 times the middle, in channel 7" in text and "at position 0" in text
    assert "noise in the 1 outlier channel alone costs 0.5 [0.4, 0.6]" in text
    assert "in all others alone 0.1 [0.05, 0.2]: 83 % [70, 90] of both" in text
    assert said(claims.channels, with_findings(replace(diagnosis, told=Told()), channels=())) == ""


def test_scales_to_stay_below_are_those_that_were_measured():
    critical = CriticalScale(0.06, 0.05, 0.08, True, "kl=0.1 is reached at 0.06", (0.05, 0.08))
    changed = with_findings(whole_diagnosis(), critical=critical, target=Target("kl", 0.1))
    assert "Stay at or below 0.05 to stay below kl=0.1." in said(advice, changed)
    assert "Critical scale: kl=0.1 is reached at 0.06." in said(claims.avalanche, changed)
    unplaced = with_findings(changed, critical=None)
    assert "kl=0.1 is open, since nothing measured tells" in said(claims.avalanche, unplaced)


def test_where_the_loss_is_no_harm_there_is_nothing_to_do():
    diagnosis = whole_diagnosis()
    some = [
        replace(s, kl_verdict=replace(s.kl_verdict, outcome="harmless"))
        for s in diagnosis.analysis.summaries
    ]
    harmless = with_analysis(diagnosis, summaries=tuple(some))
    assert said(advice, harmless).startswith("What to do: nothing; the loss lies within the margin")


def test_what_is_open_is_said_with_what_would_settle_it():
    diagnosis = whole_diagnosis()
    some = [
        replace(s, kl_verdict=replace(s.kl_verdict, outcome="inconclusive", needed_samples=190))
        if s.condition == "linear"
        else replace(s, kl_verdict=replace(s.kl_verdict, outcome="harmful", needed_samples=None))
        for s in diagnosis.analysis.summaries
    ]
    text = said(advice, with_analysis(diagnosis, summaries=tuple(some)))
    assert "Open by KL: whether linear harms; about 190 samples would settle it." in text
    assert "2 draws hardly tell how draws differ" in text


def test_noise_of_nothing_needs_no_advice():
    assert advice(with_config(whole_diagnosis(), noise_scale=0.0)) == []


def test_what_is_not_measured_yet_is_said():
    diagnosis = with_analysis(whole_diagnosis(), summaries=())
    assert said(claims.cost, diagnosis) == "What noise everywhere costs is not measured yet."
    assert advice(diagnosis) == []


def test_the_paragraph_is_its_sentences_and_the_same_every_time():
    diagnosis = whole_diagnosis()
    assert verdict(diagnosis) == " ".join(sentences(diagnosis)) == verdict(whole_diagnosis())
    assert all(s.endswith(".") for s in sentences(diagnosis))
