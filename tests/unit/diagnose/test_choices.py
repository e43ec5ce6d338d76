import dataclasses

import pytest
from helpers.profiles import layered, profile_of_sites, site_profile

from noisescope.diagnose.avalanche import avalanche_steps
from noisescope.diagnose.channels import choose_channels, top_channels
from noisescope.diagnose.choices import choose_blamed, choose_parts, choose_sites
from noisescope.diagnose.scales import choose_scales
from noisescope.diagnose.scene import Scene
from noisescope.errors import InputError
from noisescope.inject import Site
from noisescope.noise import AbsoluteGaussian, RelativeGaussian
from noisescope.records import CLEAN, Record
from noisescope.study.steps import BLAMED, all_but, scale_of_name

FRAGILE = "model.layers.3.mlp.down_proj:linear:0"
COSTS = layered([1.0, 1.2, 0.8, 100.0, 1.1, 0.9]) | {"lm_head:linear:0": 3.0}


def sites_of(profile):
    return tuple(Site(s.region, s.module, s.operator, s.index) for s in profile.sites)


def scene(costs=COSTS, measured=None, **changes):
    profile = profile_of_sites(costs)
    found = Scene(
        error_model=RelativeGaussian(0.05),
        operators=("linear",),
        sites=sites_of(profile),
        conditions={},
        records=records(measured or {}),
        profile=profile,
    )
    return dataclasses.replace(found, **changes)


def records(measured):
    made = [Record(CLEAN, 0, str(n), 4, 0.0, 0.0, 1.0, None) for n in range(12)]
    for name, kl in measured.items():
        for n in range(12):
            made.append(Record(name, 0, str(n), 4, kl * (1 + 0.01 * n), 0.0, 1.0, None))
    return made


def names(conditions):
    return [condition.name for condition in conditions]


def test_the_predicted_worst_standouts_with_peers_and_controls_are_chosen():
    chosen = names(choose_sites(scene()))
    assert chosen[:3] == [FRAGILE, "lm_head:linear:0", "model.layers.1.mlp.down_proj:linear:0"]
    assert len(chosen) == len(set(chosen)) == 7  # of seven sites


def test_controls_are_the_same_for_the_same_seed_and_others_for_another():
    costs = layered([1.0] * 40)
    one, same, other = (names(choose_sites(scene(costs, seed=s))) for s in (0, 0, 1))
    assert one == same != other


def test_the_worst_region_as_measured_is_looked_into():
    costs = layered([1.0] * 8) | layered([2.0] * 8, module="mlp.up_proj")
    without = names(choose_sites(scene(costs)))
    looked = names(choose_sites(scene(costs, {"L5": 9.0, "L1": 1.0})))
    inside = {"model.layers.5.mlp.up_proj:linear:0", "model.layers.5.mlp.down_proj:linear:0"}
    assert inside <= set(looked) and not inside <= set(without)


def test_sites_where_rows_are_lost_are_not_chosen():
    lost = site_profile("model.layers.0.mlp.experts:linear:0", 50.0, rows="row")
    kept = [site_profile(name, kl) for name, kl in COSTS.items()]
    assert lost.name not in names(choose_sites(scene([lost, *kept])))


def test_without_a_prediction_no_site_is_chosen_but_parts_are():
    blind = scene(profile=None)
    assert choose_sites(blind) == [] == choose_blamed(blind) == choose_channels(blind)
    assert "L3" in names(choose_parts(blind))


def test_parts_are_each_alone_all_and_all_but_one():
    chosen = names(choose_parts(scene()))
    alone = [*(f"L{n}" for n in range(6)), "head"]
    assert chosen == [*alone, "all", *map(all_but, alone)]


def test_layers_alone_make_all_layers():
    assert "all layers" in names(choose_parts(scene(layered([1.0] * 3))))


def test_of_many_parts_the_costliest_are_left_out_one_at_a_time():
    costs = layered([float(n) for n in range(1, 31)])
    chosen = names(choose_parts(scene(costs)))
    left_out = [name for name in chosen if name.startswith("all but")]
    assert left_out == [all_but(f"L{n}") for n in range(18, 30)]


def test_the_blamed_alone_and_all_but_them():
    measured = dict(COSTS)
    only, without = choose_blamed(scene(measured=measured))
    assert (only.name, without.name) == (BLAMED, all_but(BLAMED))
    assert only.selection.sites == (FRAGILE,)
    assert without.selection.without == (FRAGILE,)


def test_where_nobody_is_to_blame_nothing_is_cleaned():
    assert choose_blamed(scene(layered([1.0] * 20))) == []


@pytest.mark.parametrize(
    ("kl", "error_model", "dtype", "expected"),
    [
        (0.01, RelativeGaussian(0.05), "float32", [0.0031, 0.0063, 0.013, 0.025, 0.1, 0.2]),
        (2.0, RelativeGaussian(0.05), "float32", [0.0031, 0.0063, 0.013, 0.025]),
        (0.01, RelativeGaussian(0.01), "bfloat16", [0.0025, 0.005, 0.02, 0.04]),
        (
            0.01,
            RelativeGaussian(0.01, "stochastic"),
            "bfloat16",
            [6.2e-4, 0.0013, 0.0025, 0.005, 0.02, 0.04],
        ),
        (0.01, AbsoluteGaussian(0.0), "float32", []),
    ],
)
def test_scales_lie_around_the_studys_own(kl, error_model, dtype, expected):
    here = scene(measured={"all": kl}, error_model=error_model, dtype=dtype)
    whole = here.on_regions("all", here.regions)
    chosen = choose_scales(here, [whole], None)
    assert [scale_of_name(c.name) for c in chosen] == pytest.approx(expected, rel=0.05)
    assert all(c.selection == whole.selection for c in chosen)
    assert [c.error_model.scale for c in chosen] == [scale_of_name(c.name) for c in chosen]


def test_given_scales_are_taken_as_they_are_but_the_studys_own():
    here = scene()
    chosen = choose_scales(here, [here.on_regions("all", here.regions)], [0.01, 0.05, 0.5])
    assert names(chosen) == ["all @ 0.01", "all @ 0.5"]


@pytest.mark.parametrize("scales", [[], [0.0], [-1.0], [float("inf")], [float("nan")]])
def test_scales_that_cannot_be_used_are_refused(scales):
    with pytest.raises(InputError, match="--scales"):
        avalanche_steps(scales, None, is_chosen=False)


def test_outlier_channels_come_first_then_where_few_carry_half():
    few = site_profile("model.layers.0.a:linear:0", 9.0, channels=[1, 1, 10, 1])
    flat = site_profile("model.layers.0.b:linear:0", 20.0, channels=[1.0] * 64)
    loud = site_profile("model.layers.0.c:linear:0", 1.0, channels=[1.0] * 64)
    here = scene([few, flat, loud], outliers={"model.layers.0.c": (7, 9)})
    chosen = choose_channels(here)
    assert [c.selection.sites[0] for c in chosen[::3]] == [loud.name, few.name]
    these, others = chosen[1], chosen[2]
    assert these.selection.channels == (7, 9) and others.selection.without_channels == (7, 9)
    assert top_channels(here, here.sites[0]) == (2,)
    assert len(top_channels(here, here.sites[1])) == 32
