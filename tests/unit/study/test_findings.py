import dataclasses
import math

import numpy as np
import pytest
from helpers.profiles import profile_of_sites, site_profile

from noisescope.inject import make_selection
from noisescope.measure import Condition
from noisescope.noise import RelativeGaussian
from noisescope.records import CLEAN, Record
from noisescope.study import Layout, SampleKey, StudyPlan, Told, conditions_json, make_diagnosis
from noisescope.study.kept_channels import Massive, ModuleChannels
from noisescope.study.steps import BLAMED, OTHERS, THESE, all_but, at_scale, channels_of

SCALE, SAMPLES = 0.05, 20
SITES = {f"layers.{n}.x:linear:0": 0.01 * (n + 1) for n in range(4)}
FIRST = "layers.0.x:linear:0"


def condition(name, scale=SCALE, **selection):
    return Condition(name, RelativeGaussian(scale), make_selection(**selection))


def parts():
    whole = [condition("all layers", layers=[0, 1, 2, 3])]
    alone = [condition(f"L{n}", layers=[n]) for n in range(4)]
    others = [condition(all_but(f"L{n}"), layers=[m for m in range(4) if m != n]) for n in range(4)]
    return [*whole, *alone, *others]


def plan(conditions, **settings):
    return StudyPlan(
        kind="diagnose",
        conditions=conditions_json(conditions),
        draws=2,
        seed=0,
        samples=tuple(SampleKey(str(n), None, "") for n in range(SAMPLES)),
        layout=Layout(32),
        settings=settings,
        has_steps=True,
        about={
            "config": {"max_new_tokens": None},
            "notes": [],
            "operators": ["linear"],
            "regions": ["0", "1", "2", "3"],
        },
    )


def records(kls, drops=None):
    """Returns records whose KL spreads by a tenth over samples, and answers lost by their share."""
    has_answers = drops is not None
    made = [
        Record(CLEAN, 0, str(n), 4, 0.0, 0.0, 1.0, True if has_answers else None, nll_nats=1.0)
        for n in range(SAMPLES)
    ]
    for number, (name, kl) in enumerate(kls.items()):
        for draw in range(2):
            for n in range(SAMPLES):
                spread = 1 + 0.05 * math.sin((number + 1) * (n + 20 * draw + 1))
                right = None
                if has_answers and name in drops:
                    right = n >= drops[name] * SAMPLES
                made.append(Record(name, draw, str(n), 4, kl * spread, 0.0, 1.0, right))
    return made


def found(conditions, kls, profile=True, modules=(), drops=None, **settings):
    told = Told(
        profile_of_sites(SITES, SCALE, samples=SAMPLES) if profile is True else profile, modules
    )
    made = make_diagnosis(plan(conditions, **settings), records(kls, drops), {}, (), None, told)
    return made.findings


def test_predictions_are_those_of_the_conditions_selections():
    findings = found(parts(), {"L0": 0.01})
    assert findings.predictions["L2"].kl_nats == pytest.approx(0.03)
    assert findings.predictions["all layers"].kl_nats == pytest.approx(0.1)
    assert findings.agreement.conditions == 1


def test_without_a_profile_nothing_is_predicted_or_blamed():
    findings = found(parts(), {"L0": 0.01}, profile=None)
    assert findings.predictions == {} and findings.agreement is None and findings.blame is None


@pytest.mark.parametrize(("whole", "outcome"), [(0.1, "add"), (0.3, "compound"), (0.05, "cancel")])
def test_whether_parts_add_is_told_from_the_whole(whole, outcome):
    kls = {f"L{n}": 0.01 * (n + 1) for n in range(4)} | {"all layers": whole}
    kls |= {all_but(f"L{n}"): whole * (1 - 0.1 * (n + 1)) for n in range(4)}
    findings = found(parts(), kls)
    assert findings.additivity.outcome == outcome
    assert findings.additivity.ratio.mean == pytest.approx(whole / 0.1, rel=0.05)


def test_a_part_that_is_not_measured_leaves_it_open():
    assert found(parts(), {"all layers": 0.1, "L0": 0.01}).additivity is None


def test_dose_and_response_are_held_against_the_predicted_line():
    scales = (0.025, 0.1, 0.2)
    more = [condition(at_scale("all layers", s), s, layers=[0, 1, 2, 3]) for s in scales]
    line = {at_scale("all layers", s): 0.1 * (s / SCALE) ** 2 for s in scales}
    line["all layers"] = 0.1
    line[at_scale("all layers", 0.2)] *= 3
    (response,) = found([*parts(), *more], line).responses.values()
    assert [s.scale for s in response.scales] == [0.025, 0.05, 0.1, 0.2]
    assert [s.place for s in response.scales] == ["on", "on", "on", "above"]
    assert (response.departure.last_on, response.departure.first_off) == (0.1, 0.2)


def test_the_scale_of_a_loss_is_read_from_everything_at_once():
    scales = (0.025, 0.1, 0.2)
    more = [condition(at_scale("all layers", s), s, layers=[0, 1, 2, 3]) for s in scales]
    line = {at_scale("all layers", s): 0.1 * (s / SCALE) ** 2 for s in scales} | {"all layers": 0.1}
    findings = found([*parts(), *more], line, **{"--until": "kl=0.2"})
    assert findings.target.loss == 0.2
    assert 0.05 < findings.critical.estimate < 0.1
    assert found(parts(), {"L0": 0.1}, **{"--until": "kl=0.2"}).critical is None


def blamed():
    return [
        *parts(),
        condition(BLAMED, sites=[FIRST]),
        condition(all_but(BLAMED), without=[FIRST]),
    ]


def test_what_cleaning_brings_back_and_what_noise_there_costs():
    kls = {"all layers": 0.4, BLAMED: 0.3, all_but(BLAMED): 0.1}
    drops = {"all layers": 0.5, BLAMED: 0.25, all_but(BLAMED): 0.1}
    remedy = found(blamed(), kls, drops=drops).remedy
    assert remedy.brought_back.mean == pytest.approx(0.75, rel=0.05)
    assert remedy.carried.mean == pytest.approx(0.75, rel=0.05)
    assert remedy.answers_lost.mean == pytest.approx(0.5)
    assert remedy.answers_lost_alone.mean == pytest.approx(0.25)
    assert remedy.answers_brought_back.mean == pytest.approx(0.4)


def test_a_remedy_that_was_not_measured_is_none():
    assert found(blamed(), {"all layers": 0.4}).remedy is None
    alone = found(blamed(), {"all layers": 0.4, BLAMED: 0.4}).remedy
    assert math.isnan(alone.without.mean)


def test_channels_are_compared_with_all_others_of_their_site():
    conditions = [
        condition(channels_of(THESE, FIRST), sites=[FIRST], channels=[3]),
        condition(channels_of(OTHERS, FIRST), sites=[FIRST], without_channels=[3]),
    ]
    kls = {channels_of(THESE, FIRST): 0.3, channels_of(OTHERS, FIRST): 0.1}
    massive = Massive(300.0, 4000.0, 3, 1, 0, 7)
    module = ModuleChannels("layers.0.x", 8, (3,), (50.0,), 50.0, (massive,))
    site = site_profile(FIRST, 0.01, channels=[1, 1, 1, 5])
    (effect,) = found(conditions, kls, profile_of_sites([site]), (module,)).channels
    assert effect.channels == (3,) and effect.is_outlier and effect.max_ratio == 50.0
    assert effect.share.mean == pytest.approx(0.75, rel=0.05)
    assert effect.predicted.kl_nats == pytest.approx(0.01 * 5 / 8)
    (plain,) = found(conditions, kls, profile_of_sites([site])).channels
    assert not plain.is_outlier and math.isnan(plain.max_ratio)


def test_layers_that_amplify_are_read_from_the_residual_stream():
    steps = [1.0] * 4 + [2.0] * 4
    at_exit = 1.0 / np.cumprod([1.0, *steps])
    jitter = np.random.default_rng(0)
    residuals = tuple(
        site_profile(
            f"layers.{n}:residual:0", value * (1 + 0.02 * jitter.normal(size=(4, SAMPLES)))
        )
        for n, value in enumerate(at_exit)
    )
    profile = dataclasses.replace(
        profile_of_sites(SITES, SCALE, samples=SAMPLES), residuals=residuals
    )
    findings = found(parts(), {"L0": 0.1}, profile)
    assert findings.amplification.onset.layer == 4
    assert [round(f.mean, 1) for f in findings.amplification.factors] == steps
