"""What a recommendation measures, and how its bits and losses are counted."""

import itertools
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.profiles import site_profile

from noisescope.analyse import predict
from noisescope.analyse.recommend import frontier
from noisescope.assignment import Assignment
from noisescope.errors import InputError
from noisescope.inject import make_selection
from noisescope.models.weight_groups import WeightGroup
from noisescope.noise import RoundModules, RoundTo
from noisescope.profile import Profile
from noisescope.study.format_options import FormatOptions
from noisescope.study.recommended import candidates

FORMATS = ("mxfp4", "fp8_e4m3", "bf16")
GROUPS = (
    WeightGroup(
        "layers.0.attn.q+k+v",
        ("layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v"),
        ((64, 64), (32, 64), (32, 64)),
    ),
    WeightGroup("layers.0.mlp.experts", ("layers.0.mlp.experts",), ((96, 64),) * 8, 0.25),
    WeightGroup("layers.1.mlp.down", ("layers.1.mlp.down",), ((64, 80),)),
    WeightGroup("lm_head", ("lm_head",), ((512, 64),)),
)
LOSSES = ((0.4, 0.03, 1e-4), (0.02, 0.002, 1e-5), (0.05, 0.01, 1e-5), (0.9, 0.2, 1e-3))
ERRORS = ((1e-2, 7e-4, 1e-6), (1.2e-2, 7e-4, 1e-6), (9e-3, 8e-4, 1e-6), (2e-3, 6e-4, 1e-6))


def options_of(bits=None, kl_nats=None, formats=FORMATS, groups=GROUPS, **more):
    given = {
        "formats": formats,
        "operand": "both",
        "groups": groups,
        "kept": {"layers.0.mlp.gate": "a router"},
        "weight_errors": tuple(row[: len(formats)] for row in ERRORS[: len(groups)]),
        "bits": bits,
        "kl_nats": kl_nats,
        "other_parameters": 1000,
        "model_type": "llama",
    }
    return FormatOptions(**(given | more))


def profile_of(groups=GROUPS, losses=LOSSES, formats=FORMATS, operand="both", rounding="nearest"):
    """The loss of a group is spread over the calls of its modules."""
    sites = []
    for group, row in zip(groups, losses, strict=True):
        for module in group.modules:
            for call in range(2):
                made = site_profile(f"{module}:linear:{call}", 0.0)
                kl_E = np.array(row)[:, None, None] / (2 * len(group.modules))
                sites.append(replace(made, kl_EKN=np.broadcast_to(kl_E, (len(row), 2, 4)).copy()))
    models = tuple({"type": "RoundTo", **asdict(RoundTo(f, operand, rounding))} for f in formats)
    return Profile(tuple(sites), (), tuple("abcd"), (8,) * 4, models, "signs", 2, 0)


def all_assignments(options):
    return itertools.product(range(len(options.formats)), repeat=len(options.groups))


# Bits and losses.


def test_bits_count_scales_and_the_experts_that_a_token_reads():
    options = options_of(bits=6.0)
    choices = options.choices(profile_of())
    # A block of 32 has 8 bits more; an output channel 32, over 64 or 80 inputs; 80 is 2.5 blocks.
    mxfp4 = [4.25, 4.25, 4 + 3 * 8 / 80, 4.25]
    fp8 = [8.5, 8.5, 8.4, 8.5]
    np.testing.assert_allclose(choices.bits_GF.T, [mxfp4, fp8, [16.0] * 4])
    weights = np.array([8192, 8 * 6144, 5120, 32768])
    read = weights * [1, 0.25, 1, 1]
    np.testing.assert_allclose(choices.weights_G, read)
    chosen = (1, 0, 2, 0)
    bits = np.array([8.5, 4.25, 16.0, 4.25])
    assert choices.bits(chosen) == pytest.approx((bits * read).sum() / read.sum())
    assert options.stored_bits(chosen) == pytest.approx((bits * weights).sum() / weights.sum())
    whole = ((bits * weights).sum() + 1000 * 16) / (weights.sum() + 1000)
    assert options.model_bits(chosen, "bfloat16") == pytest.approx(whole)
    wider = ((bits * weights).sum() + 1000 * 32) / (weights.sum() + 1000)
    assert options.model_bits(chosen, "float32") == pytest.approx(wider)


def test_losses_are_the_sums_of_the_modules_calls():
    options, profile = options_of(bits=6.0), profile_of()
    choices = options.choices(profile)
    np.testing.assert_allclose(choices.kl_GF, LOSSES)
    turned = replace(options, formats=FORMATS[::-1])
    np.testing.assert_allclose(turned.choices(profile).kl_GF, np.array(LOSSES)[:, ::-1])


def test_a_group_that_was_not_profiled_is_told():
    profile = profile_of()
    without = replace(profile, sites=tuple(s for s in profile.sites if "down" not in s.module))
    with pytest.raises(InputError, match=r"no loss is predicted for layers\.1\.mlp\.down"):
        options_of(bits=6.0).choices(without)


def test_an_assignment_is_predicted_by_its_own_formats():
    options, profile = options_of(bits=6.0), profile_of()
    choices = options.choices(profile)
    selection = make_selection(operators="linear")
    for chosen in all_assignments(options):
        error_model = options.error_model(chosen)
        assert error_model == RoundModules(options.modules(chosen), "both")
        entry = {"type": "RoundModules", **asdict(error_model)}
        found = predict(profile, selection, entry)
        assert found.kl_nats == pytest.approx(choices.kl_nats(chosen)) and found.unreached == 0
    some = {"formats": (("lm_head", "mxfp4"),), "operand": "both"}
    assert predict(profile, selection, some).kl_nats == pytest.approx(0.9)
    assert predict(profile, selection, {**some, "operand": "weights"}).sites == 0
    other = {"formats": (("lm_head", "int8"),), "operand": "both"}
    assert np.isnan(predict(profile, selection, other).kl_nats)


def test_rounding_by_chance_is_not_predicted_by_rounding_to_nearest():
    profile, selection = profile_of(), make_selection(operators="linear")
    for rounding in ("nearest", "stochastic"):
        for given in (
            {"type": "RoundTo", **asdict(RoundTo("mxfp4", "both", rounding))},
            asdict(RoundModules({"lm_head": "mxfp4"}, "both", rounding)),
        ):
            found = predict(profile, selection, given).kl_nats
            assert np.isnan(found) == (rounding == "stochastic"), given
    profile = profile_of(rounding="stochastic")
    given = asdict(RoundModules({"lm_head": "mxfp4"}, "both", "stochastic"))
    assert predict(profile, selection, given).kl_nats == pytest.approx(0.9)


# What is measured.


@pytest.mark.parametrize("bits", [4.26, 4.5, 5.0, 6.0, 8.5, 12.0, 16.0])
def test_no_assignment_is_measured_twice_and_all_fit_but_the_next_one(bits):
    options = options_of(bits=bits)
    choices = options.choices(profile_of())
    found = candidates(options, choices)
    assert next(iter(found)) == "recommended"
    assert found["recommended"] == options.best(choices).chosen
    assert len(set(found.values())) == len(found)
    names = {"recommended", "fewer bits", "more bits", "last layers high", "by weight error"}
    assert set(found) <= names | {f"all {f}" for f in FORMATS}
    for name, chosen in found.items():
        if name != "more bits":
            assert choices.bits(chosen) <= bits * (1 + 1e-6), name
    best = choices.kl_nats(found["recommended"])
    for chosen in all_assignments(options):
        if choices.bits(chosen) <= bits:
            assert best <= choices.kl_nats(chosen) * (1 + 1e-9)
    points = frontier(choices)
    for name in {"fewer bits", "more bits"} & set(found):
        assert found[name] in {p.chosen for p in points}
        sign = 1 if name == "more bits" else -1
        assert sign * choices.bits(found[name]) > sign * choices.bits(found["recommended"])
        assert sign * choices.kl_nats(found[name]) < sign * best


def test_the_finest_single_format_that_fits_is_measured():
    choices = options_of(bits=9.0).choices(profile_of())
    for bits, name in [(5.0, "mxfp4"), (8.4, "mxfp4"), (9.0, "fp8_e4m3"), (15.9, "fp8_e4m3")]:
        found = candidates(options_of(bits=bits), choices)
        number = FORMATS.index(name)
        assert found.get(f"all {name}", found["recommended"]) == (number,) * 4
        assert [n for n in found if n.startswith("all ")] in ([f"all {name}"], [])


@pytest.mark.parametrize("seed", [0, 9, 14, 18])
def test_a_single_format_of_just_as_many_bits_fits(seed):
    """A mean of equal numbers may be a last digit above them."""
    sizes = np.random.default_rng(seed).integers(1, 200, (6, 2)) * 32
    groups = tuple(
        WeightGroup(f"layers.{n}.up", (f"layers.{n}.up",), ((int(a), int(b)),), 1 / 3)
        for n, (a, b) in enumerate(sizes)
    )
    formats = ("mxfp4_ceil", "mxfp4")
    losses = tuple((n % 2 + 0.1, 0.5) for n in range(6))
    options = options_of(bits=4.25, groups=groups, formats=formats, weight_errors=losses)
    choices = options.choices(profile_of(groups, losses, formats))
    assert (choices.bits_GF == 4.25).all()
    found = candidates(options, choices)
    assert found["recommended"] == (0, 1) * 3 and found["all mxfp4_ceil"] == (0,) * 6


def test_a_bound_on_the_loss_gives_the_budget_of_what_it_is_compared_with():
    options = options_of(kl_nats=0.3)
    choices = options.choices(profile_of())
    found = candidates(options, choices)
    best = found["recommended"]
    assert choices.kl_nats(best) <= 0.3 * (1 + 1e-9)
    budget = choices.bits(best)
    fewest = min(
        choices.bits(c) for c in all_assignments(options) if choices.kl_nats(c) <= 0.3 * (1 + 1e-9)
    )
    assert budget == pytest.approx(fewest)
    for name in ("last layers high", "by weight error"):
        if name in found:
            assert choices.bits(found[name]) <= budget * (1 + 1e-6)


def test_what_nothing_keeps_is_told():
    choices = options_of(bits=6.0).choices(profile_of())
    with pytest.raises(InputError, match="3 bits per weight: the cheapest"):
        candidates(options_of(bits=3.0), choices)
    with pytest.raises(InputError, match="1e-06 nats per token: the most exact"):
        candidates(options_of(kl_nats=1e-6), choices)


def test_one_format_is_one_assignment():
    options = options_of(bits=8.6, formats=("fp8_e4m3",))
    profile = profile_of(losses=tuple(row[1:2] for row in LOSSES), formats=("fp8_e4m3",))
    assert candidates(options, options.choices(profile)) == {"recommended": (0,) * 4}


# The plan.


def test_options_come_back_from_the_plan_as_they_were():
    for options in (options_of(bits=6.0), options_of(kl_nats=0.1)):
        entry = json.loads(json.dumps(asdict(options)))
        plan = SimpleNamespace(about={"config": {"recommendation": entry}})
        assert FormatOptions.of(plan) == options
    assert FormatOptions.of(SimpleNamespace(about={"config": {}})) is None


def test_an_assignment_names_every_module_and_what_runs_as_one():
    found = options_of(bits=6.0).assignment((1, 0, 2, 0), "bfloat16")
    assert found == Assignment(
        formats={
            **{f"layers.0.attn.{x}": "fp8_e4m3" for x in "qkv"},
            "layers.0.mlp.experts": "mxfp4",
            "layers.1.mlp.down": "bf16",
            "lm_head": "mxfp4",
        },
        operand="both",
        kept=("layers.0.mlp.gate",),
        dtype="bfloat16",
        bound=(GROUPS[0].modules,),
        model_type="llama",
    )
    assert list(found.formats)[:3] == list(GROUPS[0].modules)


def test_goals_are_told_in_words():
    assert options_of(bits=4.8).target == "at most 4.8 bits per weight"
    assert options_of(kl_nats=0.02).target == "a predicted loss of at most 0.02 nats per token"
