"""Multipliers by a study's map, beside the closed form on a profile made by hand."""

import math

import pytest
from helpers.profiles import layered, profile_of_sites

from noisescope.errors import InputError
from noisescope.study.kept_profile import write_profile
from noisescope.training import layer_multipliers


def test_a_layer_that_costs_four_times_the_mean_gets_half_the_noise():
    found = layer_multipliers(profile_of_sites(layered([4.0, 1.0, 0.25])))
    assert found == pytest.approx({"0": 0.5, "1": 1.0, "2": 2.0})
    assert list(found) == ["0", "1", "2"]


def test_layers_that_are_not_clipped_cost_the_same_afterwards():
    costs = [0.3, 0.02, 0.11, 0.06]
    found = layer_multipliers(profile_of_sites(layered(costs)))
    after = [kl * found[str(n)] ** 2 for n, kl in enumerate(costs)]
    assert after == pytest.approx([math.prod(costs) ** (1 / 4)] * 4)
    assert math.prod(found.values()) == pytest.approx(1)


def test_extremes_are_clipped_and_a_layer_that_costs_nothing_gets_the_most():
    profile = profile_of_sites(layered([1e4, 1e-4, 0.0]))
    assert layer_multipliers(profile) == {"0": 0.25, "1": 4.0, "2": 4.0}
    assert layer_multipliers(profile, least=0.01, most=100.0) == pytest.approx(
        {"0": 0.01, "1": 100.0, "2": 100.0}
    )
    assert layer_multipliers(profile_of_sites(layered([9.0, 1.0])), power=0) == {"0": 1, "1": 1}


def test_sites_of_a_layer_add_up_operators_choose_and_the_rest_of_the_model_is_left_out():
    sites = layered([1.0, 1.0]) | layered([15.0, 0.0], "mlp.act_fn", "silu")
    profile = profile_of_sites(sites | {"lm_head:linear:0": 100.0})
    assert layer_multipliers(profile) == pytest.approx({"0": 0.5, "1": 2.0})
    assert layer_multipliers(profile, operators="linear") == {"0": 1.0, "1": 1.0}
    with pytest.raises(InputError, match=r"no layer with operators \('gelu',\): it has linear, si"):
        layer_multipliers(profile, operators="gelu")


def test_the_map_comes_from_a_studys_directory(tmp_path):
    profile = profile_of_sites(layered([4.0, 0.25]))
    write_profile(tmp_path, profile, {"seed": 0})
    assert layer_multipliers(tmp_path) == layer_multipliers(profile)
    assert layer_multipliers(str(tmp_path)) == pytest.approx({"0": 0.5, "1": 2.0})


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no profile\.safetensors: name the directory of a"):
        layer_multipliers(tmp_path)
    with pytest.raises(InputError, match=r"nowhere has no profile\.safetensors"):
        layer_multipliers(tmp_path / "nowhere")
    profile = profile_of_sites(layered([0.0, 0.0]))
    with pytest.raises(InputError, match="no layer of the study costs anything"):
        layer_multipliers(profile)
    for given in ({"power": -1}, {"least": 0}, {"least": 2, "most": 1}, {"most": math.inf}):
        with pytest.raises(InputError, match="power of at least 0 and 0 < least <= most"):
            layer_multipliers(profile, **given)
