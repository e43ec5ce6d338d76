import math

import numpy as np
import pytest
from helpers.profiles import layered, profile_of_sites, site_profile

from noisescope.analyse import (
    LARGEST,
    SPREAD,
    STANDS_OUT,
    Interval,
    blame,
    candidates,
    standouts,
    worst_sites,
)

LINEAR = ("linear",)
FRAGILE = "model.layers.3.mlp.down_proj:linear:0"


def interval(mean: float, share: float = 0.1) -> Interval:
    return Interval(mean, mean * (1 - share), mean * (1 + share), 10, True)


def fragile(times: float = 100.0) -> dict[str, float]:
    return layered([1.0, 1.2, 0.8, times, 1.1, 0.9])


def test_a_site_that_costs_far_more_than_its_peers_stands_out():
    (found,) = standouts(profile_of_sites(fragile()))
    assert found.site.name == FRAGILE
    assert found.ratio == pytest.approx(100.0)
    assert len(found.peers) == 5 and FRAGILE not in found.peers


@pytest.mark.parametrize(
    "costs",
    [
        [1.0, 1.2, 0.8, 5.0, 1.1, 0.9],  # not far more
        [1.0, 100.0, 1.0, 100.0, 0.01, 0.01],  # its peers differ as much
        [1.0, 100.0],  # too few peers
        [0.0, 0.0, 0.0],
    ],
)
def test_what_is_not_far_beyond_its_peers_does_not(costs):
    assert standouts(profile_of_sites(layered(costs))) == ()


def test_a_head_has_no_peers_and_is_not_judged():
    sites = layered([1.0, 1.1, 0.9]) | {"lm_head:linear:0": 1e4}
    assert standouts(profile_of_sites(sites)) == ()


def test_peers_are_the_same_module_operator_and_call():
    sites = layered([1.0, 1.0, 1.0]) | layered([100.0, 100.0, 100.0], module="self_attn.o_proj")
    assert standouts(profile_of_sites(sites)) == ()


def test_random_layers_hardly_ever_stand_out():
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        costs = layered(np.exp(0.4 * generator.normal(size=8)))
        alarms += bool(standouts(profile_of_sites(costs)))
    assert alarms <= 3


def test_a_standout_is_blamed_when_injection_confirms_it():
    profile = profile_of_sites(fragile())
    measured = {name: interval(kl) for name, kl in fragile().items()}
    found = blame(profile, measured, LINEAR)
    assert (found.kind, found.sites) == (STANDS_OUT, (FRAGILE,))
    assert found.ratios[FRAGILE] == pytest.approx(90.0)  # the lower bound, over its peers' middle
    assert found.share == pytest.approx(100 / 105)


@pytest.mark.parametrize("measured", [{FRAGILE: interval(1.5)}, {FRAGILE: interval(90, 0.99)}, {}])
def test_a_standout_that_injection_does_not_confirm_is_said_to_be_so(measured):
    found = blame(profile_of_sites(fragile()), measured, LINEAR)
    assert found.kind != STANDS_OUT
    assert found.unconfirmed == (FRAGILE,)


def test_a_standout_that_carries_hardly_anything_is_nobodys_problem():
    profile = profile_of_sites(fragile() | {"lm_head:linear:0": 1e4})
    assert [s.site.name for s in standouts(profile)] == [FRAGILE]
    assert candidates(profile, LINEAR) == []
    found = blame(profile, {}, LINEAR)
    assert (found.kind, found.sites, found.unconfirmed) == (LARGEST, ("lm_head:linear:0",), ())


def test_many_alike_are_nobody():
    found = blame(profile_of_sites(layered([1.0] * 12)), {}, LINEAR)
    assert (found.kind, found.sites) == (SPREAD, ())
    assert math.isnan(found.share)


def test_what_was_measured_counts_before_what_was_predicted():
    sites = layered([1.0] * 8)
    measured = {name: interval(1.0) for name in list(sites)[:3]} | {FRAGILE: interval(50.0)}
    found = blame(profile_of_sites(sites), measured, LINEAR)
    assert (found.kind, found.sites) == (LARGEST, (FRAGILE,))


def test_only_the_operators_that_are_looked_at_are_blamed():
    sites = fragile() | layered([1.0, 1.0, 5000.0], module="act_fn", operator="silu")
    measured = {name: interval(kl) for name, kl in sites.items()}
    assert blame(profile_of_sites(sites), measured, LINEAR).sites == (FRAGILE,)
    both = blame(profile_of_sites(sites), measured, ("linear", "silu"))
    assert both.sites == ("model.layers.2.act_fn:silu:0",)


def test_worst_sites_come_by_their_predicted_cost():
    profile = profile_of_sites(
        [
            site_profile("a:linear:0", 1.0),
            site_profile("b:linear:0", 3.0),
            site_profile("c:silu:0", 9.0),
            site_profile("d:linear:0", math.nan),
        ]
    )
    assert [site.name for site in worst_sites(profile, LINEAR, 9)] == ["b:linear:0", "a:linear:0"]
