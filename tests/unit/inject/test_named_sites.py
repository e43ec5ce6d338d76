"""Sites that are selected, or left out, by name; and what a selection refuses."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.injection import OneOperator, fired
from helpers.small_models import small_model
from torch import nn

from noisescope.errors import SelectionError
from noisescope.inject import Selection, Site, inject, make_selection
from noisescope.inject.probe import list_sites
from noisescope.measure import Condition
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import RelativeGaussian
from noisescope.study.plan import conditions_json

IDS = torch.tensor([[5, 9, 11, 3]])
LLAMA = small_model("llama")
DOWN = "model.layers.1.mlp.down_proj:linear"
ATTENTION = "model.layers.2.self_attn"


def start(model=LLAMA, scale=0.05, **selection):
    return inject(model, RelativeGaussian(scale), **selection)


def run(model=LLAMA, **selection):
    session = start(model, **selection)
    with torch.no_grad(), session:
        logits = model(input_ids=IDS).logits
    return logits, session


def refuses(text):
    return pytest.raises(SelectionError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        (DOWN, {f"{DOWN}:0"}),
        ([f"{DOWN}:0"], {f"{DOWN}:0"}),
        (f"{ATTENTION}:matmul", {f"{ATTENTION}:matmul:0", f"{ATTENTION}:matmul:1"}),
        (f"{ATTENTION}:matmul:1", {f"{ATTENTION}:matmul:1"}),
        ([DOWN, f"{ATTENTION}:softmax"], {f"{DOWN}:0", f"{ATTENTION}:softmax:0"}),
        ("lm_head:linear", {"lm_head:linear:0"}),
    ],
)
def test_named_sites_are_perturbed_and_no_others(sites, expected):
    noisy, session = run(sites=sites)
    assert set(fired(session)) == expected
    with torch.no_grad():
        assert not torch.equal(noisy, LLAMA(input_ids=IDS).logits)


def test_a_named_site_gets_the_noise_it_gets_by_its_operator_and_module():
    by_name, _ = run(sites=f"{DOWN}:0")
    by_pattern, _ = run(layers=1, operators="linear", modules="down_proj")
    assert torch.equal(by_name, by_pattern)


def test_regions_without_a_named_site_run_untouched():
    _, session = run(sites=[DOWN, "lm_head:linear:0"])
    assert session.region_names == ("1", "head")
    assert {r.site.region for r in session.records} == {"1", "head"}


@pytest.mark.parametrize("without", [DOWN, [f"{DOWN}:0"]])
def test_sites_that_are_left_out_stay_clean(without):
    _, everything = run(layers=1)
    _, session = run(layers=1, without=without)
    assert set(fired(everything)) - set(fired(session)) == {f"{DOWN}:0"}


def test_one_call_of_several_is_left_out():
    _, session = run(sites=f"{ATTENTION}:matmul", without=f"{ATTENTION}:matmul:0")
    assert set(fired(session)) == {f"{ATTENTION}:matmul:1"}


def test_all_named_sites_and_none_left_out_are_the_whole_model():
    names = [r.site.name for r in list_sites(LLAMA, IDS[0].tolist())]
    whole, _ = run()
    named, session = run(sites=names)
    assert torch.equal(named, whole)
    half = names[::2]
    _, some = run(sites=half)
    _, others = run(without=half)
    assert sorted([*fired(some), *fired(others)]) == sorted(fired(session)) == sorted(names)


def test_what_is_selected_is_what_every_field_allows():
    _, session = run(sites=[DOWN, f"{ATTENTION}:matmul"], operators=["linear", "matmul"])
    assert set(fired(session)) == {f"{DOWN}:0", f"{ATTENTION}:matmul:0", f"{ATTENTION}:matmul:1"}
    with pytest.raises(SelectionError, match=f"site '{DOWN}' never ran in the selection"):
        run(sites=[DOWN, f"{ATTENTION}:matmul"], operators="matmul")
    with pytest.raises(SelectionError, match="no selected operator ran in layer 2"):
        run(sites=DOWN, layers=[1, 2])


def test_named_sites_get_backward_noise_too():
    model = small_model("llama")
    session = start(model, sites=DOWN, phases="backward")
    with session:
        model(input_ids=IDS).logits.sum().backward()
    assert set(fired(session, "backward")) == {f"{DOWN}:0"}
    embedding = "model.embed_tokens:embedding"
    model.model.embed_tokens.requires_grad_(False)
    text = f"site '{embedding}' never got a gradient in the selection"
    with pytest.raises(SelectionError, match=text):
        with start(model, sites=[DOWN, embedding], phases="backward"):
            model(input_ids=IDS).logits.sum().backward()


def test_the_root_module_is_named_by_nothing_before_the_colon():
    class Root(nn.Module):
        def forward(self, x):
            return F.relu(F.relu(x))

    model = Root()
    with start(model, sites=":relu:1") as session:
        model(torch.ones(2, 3))
    assert set(fired(session)) == {":relu:1"}


@pytest.mark.parametrize(
    ("selection", "asked", "expected"),
    [
        ({}, ("m", "linear"), True),
        ({"sites": ["m:linear:3"]}, ("m", "linear"), True),
        ({"sites": ["m:linear"]}, ("m", "linear"), True),
        ({"sites": ["m:linear:3"]}, ("m", "bmm"), False),
        ({"sites": ["m:linear:3"]}, ("n", "linear"), False),
        ({"without": ["m:linear"]}, ("m", "linear"), False),
        ({"without": ["m:linear:0"]}, ("m", "linear"), True),
    ],
)
def test_an_operator_of_a_module_is_touched_where_any_call_can_be_meant(selection, asked, expected):
    assert make_selection(**selection).touches(*asked) is expected


def test_one_call_in_the_experts_is_known_to_touch_them():
    model = small_model("mixtral")
    records = [r for r in list_sites(model, [5, 6, 7]) if ".experts" in r.site.module]
    name = next(r.site.name for r in records if r.site.index)
    apart = TakenApart(model)
    assert apart.must_ride_alone(start(model, sites=name))
    assert not apart.must_ride_alone(start(model, sites="lm_head:linear"))


def test_flash_attention_refuses_named_sites_inside_it():
    model = small_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(SelectionError, match=f"^matmul is selected in {re.escape(ATTENTION)}, but"):
        start(model, sites=f"{ATTENTION}:matmul:1")
    start(model, sites=DOWN)


OPERATORS = "linear, matmul, bmm, softmax, silu, gelu, relu, layer_norm, rms_norm, embedding"
LIST_THEM = "List them with 'noisescope sites MODEL'."
NO_COLON = (
    "accepted are 'module:operator' and 'module:operator:index', as in "
    f"'model.layers.3.mlp.down_proj:linear:0'. {LIST_THEM}"
)
NO_INDEX = "whole numbers from 0 to 4194303 are accepted; the first is 0."
BOTH = (
    "channels and without_channels are both given: name the channels that get noise, "
    "or those that do not."
)


def backward(names):
    return (
        f"{names} with backward noise: only forward noise can be restricted; "
        f"leave phases at ('forward',), or leave {names} out."
    )


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ({"sites": []}, "sites=[] selects nothing: name at least one, or leave it out."),
        ({"channels": []}, "channels=[] selects nothing: name at least one, or leave it out."),
        ({"positions": []}, "positions=[] selects nothing: name at least one, or leave it out."),
        ({"sites": "mlp.down_proj"}, f"site 'mlp.down_proj': {NO_COLON}"),
        ({"without": "mlp.down_proj"}, f"site 'mlp.down_proj': {NO_COLON}"),
        ({"sites": [3]}, f"site 3: {NO_COLON}"),
        (
            {"sites": "m:liner:0"},
            f"site 'm:liner:0': unknown operator 'liner'; did you mean 'linear'? "
            f"Accepted: {OPERATORS}.",
        ),
        ({"sites": "m:0"}, f"site 'm:0': unknown operator '0'. Accepted: {OPERATORS}."),
        (
            {"without": "m:linear:-1"},
            f"site 'm:linear:-1': unknown operator '-1'. Accepted: {OPERATORS}.",
        ),
        (
            {"sites": "m:linear:0", "without": "m:linear"},
            "site 'm:linear:0' is selected by sites and left out by without: "
            "leave it out of one of the two.",
        ),
        ({"channels": -1}, f"channels -1: {NO_INDEX}"),
        ({"without_channels": [0, -2]}, f"without_channels -2: {NO_INDEX}"),
        ({"positions": [1 << 22]}, f"positions 4194304: {NO_INDEX}"),
        ({"channels": [1.0]}, f"channels 1.0: {NO_INDEX}"),
        ({"channels": [True]}, f"channels True: {NO_INDEX}"),
        ({"positions": "12"}, f"positions '1': {NO_INDEX}"),
        ({"channels": 1, "without_channels": 2}, BOTH),
        ({"channels": 1, "phases": "backward"}, backward("channels")),
        (
            {"without_channels": 1, "positions": 2, "phases": ["forward", "backward"]},
            backward("without_channels and positions"),
        ),
    ],
)
def test_a_selection_that_cannot_be_is_refused_when_it_is_made(selection, text):
    with refuses(text):
        make_selection(**selection)
    with refuses(text):
        start(**selection)


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": (-1,)},
        {"positions": (0.5,)},
        {"sites": ("m",)},
        {"channels": (0,), "phases": ("backward",)},
        {"channels": (0,), "without_channels": (1,)},
    ],
)
def test_a_selection_made_past_make_selection_is_refused_too(fields):
    with pytest.raises(SelectionError):
        Selection(**fields)


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (
            {"sites": "model.layers.1.mlp.donw_proj:linear"},
            "no module 'model.layers.1.mlp.donw_proj' in the selected layers; did you mean "
            "'model.layers.1.mlp.down_proj' or 'model.layers.2.mlp.down_proj' or "
            f"'model.layers.0.mlp.down_proj'? {LIST_THEM}",
        ),
        (
            {"sites": "mlp.down_proj:linear:0", "layers": 1},
            "no module 'mlp.down_proj' in the selected layers; did you mean "
            f"'model.layers.1.mlp.down_proj'? {LIST_THEM}",
        ),
        (
            {"sites": DOWN, "layers": [0, "head"]},
            "no module 'model.layers.1.mlp.down_proj' in the selected layers; did you mean "
            "'model.layers.0.mlp.down_proj' or 'model.layers.0.mlp.up_proj' or "
            f"'model.layers.0.mlp.gate_proj'? {LIST_THEM}",
        ),
        ({"without": "zzz:relu"}, f"no module 'zzz' in the model. {LIST_THEM}"),
    ],
)
def test_a_named_site_without_a_module_is_refused_when_the_session_is_made(selection, text):
    with refuses(text):
        start(**selection)


def test_a_site_of_another_layer_may_be_left_out_of_a_window():
    _, session = run(layers=0, without=DOWN)
    assert len(fired(session)) > 5


def test_a_named_site_that_never_ran_is_an_error_at_the_end():
    advice = "Operators that ran there: rms_norm, linear, matmul, softmax, silu. " + LIST_THEM
    for name in ("model.layers.1.mlp.down_proj:linear:1", "model.layers.1.mlp.down_proj:matmul"):
        with refuses(f"site '{name}' never ran in the selection. {advice}"):
            run(sites=[DOWN, name])


def test_leaving_out_a_site_that_never_ran_is_an_error_at_the_end():
    name = "model.layers.1.mlp.down_proj:matmul"
    text = (
        f"site '{name}' is left out and never ran: in that module ran {DOWN}:0. "
        "Name one of these in without."
    )
    with refuses(text):
        run(layers=1, without=name)


def channels_text(channel, where, count):
    return (
        f"no channel {channel} in {where}: there are {count} channels, 0 to {count - 1}; "
        "name some of these."
    )


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ({"sites": DOWN, "channels": 5000}, channels_text(5000, "the selection", 32)),
        ({"sites": DOWN, "channels": [0, 32]}, channels_text(32, "the selection", 32)),
        ({"sites": DOWN, "without_channels": 40}, channels_text(40, "the selection", 32)),
        ({"operators": "softmax", "channels": 4}, channels_text(4, "the selection", 4)),
        (
            {"operators": ["linear", "softmax"], "channels": 5},
            channels_text(5, "operator 'softmax'", 4),
        ),
        ({"layers": [0, "head"], "channels": 60}, channels_text(60, "layer 0", 48)),
        (
            {"modules": ["down_proj", "up_proj"], "channels": 40},
            channels_text(40, "the modules 'down_proj'", 32),
        ),
        (
            {"sites": [DOWN, "lm_head:linear:0"], "channels": 60},
            channels_text(60, f"site '{DOWN}'", 32),
        ),
        (
            {"operators": "softmax", "without_channels": range(4)},
            "without_channels leaves none of the 4 channels of the selection: leave out fewer.",
        ),
        (
            {"sites": DOWN, "positions": [4, 9]},
            "no token at positions [4, 9] ran in the selection: "
            "name positions that the samples have; the first is 0.",
        ),
    ],
)
def test_channels_and_positions_that_touch_nothing_are_an_error_at_the_end(selection, text):
    with refuses(text):
        run(**selection)


def test_channels_that_some_sites_have_are_enough_where_none_is_named():
    _, session = run(layers=0, channels=40)
    touched = {name for name, dose in session.doses().items() if dose.elements}
    assert touched == {
        "model.layers.0.mlp.gate_proj:linear:0",
        "model.layers.0.mlp.up_proj:linear:0",
        "model.layers.0.mlp.act_fn:silu:0",
    }


@pytest.mark.parametrize("scale", [0.0, 0.05])
def test_a_restriction_is_attested_at_scale_0_as_at_any_other(scale):
    model = OneOperator(nn.Linear(4, 4))
    with refuses(channels_text(9, "the selection", 4)), start(model, scale, channels=9):
        model(torch.ones(2, 4))
    session = start(scale=scale, channels=[1])  # attention stays fused at scale 0
    with torch.no_grad(), session:
        LLAMA(input_ids=IDS)


# As JSON.

SELECTIONS = [
    {},
    {"layers": [0, "head"], "operators": ["linear"], "phases": ["forward", "backward"]},
    {"sites": [DOWN, f"{ATTENTION}:matmul:1"], "without": [f"{ATTENTION}:softmax"]},
    {"channels": np.array([3, 1]), "positions": torch.tensor([0, 2])},
    {"without_channels": range(3)},
    {"channels": np.int64(2), "positions": 1},
]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_selection_comes_back_from_a_studys_json(selection):
    given = Condition("c", RelativeGaussian(0.1), make_selection(**selection))
    entry = json.loads(json.dumps(conditions_json([given])))["c"]
    assert Condition.from_json("c", entry) == given


def test_a_selection_of_an_older_manifest_still_loads():
    selection = make_selection(layers=[0], operators="linear")
    new = ("sites", "without", "channels", "without_channels", "positions")
    old = {key: value for key, value in asdict(selection).items() if key not in new}
    assert len(old) == 4
    entry = {
        "error_model": {"type": "RelativeGaussian", "scale": 0.1, "rounding": "nearest"},
        "selection": json.loads(json.dumps(old)),
    }
    assert Condition.from_json("c", entry).selection == selection


def test_a_selection_is_hashable_and_asks_for_elements_only_where_it_restricts_them():
    assert len({make_selection(), make_selection(), make_selection(channels=1)}) == 2
    assert make_selection(sites=DOWN).elements is None
    assert make_selection(positions=1).elements.positions == (1,)
    assert make_selection().includes(Site("0", "m", "linear", 0))
