"""Every selection that means nothing is told, in one line that says what to do."""

import re
import warnings

import pytest
import torch
from helpers.injection import OneOperator
from helpers.small_models import small_model
from torch import nn

from noisescope.errors import DoseWarning, InputError, NoisescopeWarning, SelectionError
from noisescope.inject import Session, inject, make_selection
from noisescope.noise import RelativeGaussian

IDS = torch.tensor([[5, 9, 11, 3]])
LLAMA = small_model("llama")


def start(model=LLAMA, scale=0.05, **selection):
    return inject(model, RelativeGaussian(scale), **selection)


def refuses(text, error=SelectionError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (
            {"operators": "sofmax"},
            "unknown operator 'sofmax'; did you mean 'softmax'? Accepted: linear, matmul, bmm, "
            "softmax, silu, gelu, relu, layer_norm, rms_norm, embedding.",
        ),
        (
            {"operators": ["linear", "zzzz"]},
            "unknown operator 'zzzz'. Accepted: linear, matmul, bmm, "
            "softmax, silu, gelu, relu, layer_norm, rms_norm, embedding.",
        ),
        (
            {"layers": 3},
            "no layer 3: this model has layers 0 to 2 and embed, norm, head. "
            "List them with 'noisescope sites MODEL'.",
        ),
        (
            {"layers": [0, -1]},
            "no layer -1: this model has layers 0 to 2 and embed, norm, head. "
            "List them with 'noisescope sites MODEL'.",
        ),
        (
            {"layers": "tail"},
            "no layer tail: this model has layers 0 to 2 and embed, norm, head. "
            "List them with 'noisescope sites MODEL'.",
        ),
        ({"layers": []}, "layers=[] selects nothing: name at least one, or leave it out."),
        ({"operators": []}, "operators=[] selects nothing: name at least one, or leave it out."),
        ({"modules": []}, "modules=[] selects nothing: name at least one, or leave it out."),
        ({"phases": []}, "phases=[] selects nothing: name at least one, or leave it out."),
        ({"phases": "sideways"}, "unknown phase 'sideways': accepted are forward and backward."),
        (
            {"modules": "mlp.donw_proj"},
            "no module matches 'mlp.donw_proj' in the selected layers; did you mean "
            "'mlp.down_proj' or 'mlp.up_proj' or 'down_proj'? "
            "List them with 'noisescope sites MODEL'.",
        ),
        (
            {"modules": "lm_head", "layers": 0},
            "no module matches 'lm_head' in the selected layers. "
            "List them with 'noisescope sites MODEL'.",
        ),
    ],
)
def test_a_selection_that_names_nothing_is_refused_when_the_session_is_made(selection, text):
    with refuses(text):
        start(**selection)


def test_a_layer_of_a_model_without_layers_is_refused():
    with refuses(
        "no layer 0: no layers are known for this model. "
        "Name them once with noisescope.register_family(model_type, layers=...)."
    ):
        start(nn.Linear(2, 2), layers=0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": -1}, "seed -1: an integer from 0 to 4294967295 is needed; try 0"),
        ({"draw": 2**32}, "draw 4294967296: an integer from 0 to 4294967295 is needed; try 0"),
    ],
)
def test_seed_and_draw_are_checked_when_the_session_is_made(change, text):
    with refuses(text, InputError):
        start(**change)
    session = start()
    if "draw" in change:
        with refuses(text, InputError):
            session.draw = change["draw"]


def test_a_number_is_no_error_model():
    with refuses(
        "error model 0.05: an ErrorModel is needed; try RelativeGaussian(0.05)", InputError
    ):
        inject(LLAMA, 0.05)


def test_one_name_for_all_rows_is_refused():
    with refuses("names 'ab': give a list with one name per row, such as ['ab']", InputError):
        start().name_samples("ab")


@pytest.mark.parametrize("operator", ["gelu", "layer_norm", "relu", "bmm"])
def test_an_operator_that_the_model_never_runs_is_an_error_at_the_end(operator):
    advice = (
        f"operator '{operator}' never ran in the selection. Operators that ran there: embedding, "
        "rms_norm, linear, matmul, softmax, silu. List them with 'noisescope sites MODEL'."
    )
    with refuses(advice), start(operators=["linear", operator]):
        LLAMA(input_ids=IDS)


def test_a_layer_in_which_nothing_selected_runs_is_an_error_at_the_end():
    text = "no selected operator ran in layer head. Operators that ran there: "
    with pytest.raises(SelectionError, match=text), start(layers=[0, "head"], operators="silu"):
        LLAMA(input_ids=IDS)


def test_a_module_in_which_nothing_selected_runs_is_an_error_at_the_end():
    text = r"no selected operator ran in the modules 'input_layernorm'\. Operators that ran"
    selection = {"modules": ["down_proj", "input_layernorm"], "operators": "linear"}
    with pytest.raises(SelectionError, match=text), start(**selection):
        LLAMA(input_ids=IDS)


def test_a_selection_in_which_no_operator_runs_is_an_error_at_the_end():
    model = nn.Sequential(nn.Tanh())
    text = r"the selection matched no site that ran\. Operators that ran there: none\."
    with pytest.raises(SelectionError, match=text), start(model):
        model(torch.ones(2, 2))


def test_backward_noise_without_a_backward_pass_is_an_error_at_the_end():
    text = (
        "backward noise was asked for, but no backward pass reached a selected site: "
        "call backward() inside the session, or leave 'backward' out of phases."
    )
    with refuses(text), start(phases=("forward", "backward")):
        LLAMA(input_ids=IDS)


def test_an_operator_that_no_gradient_reaches_is_an_error_at_the_end():
    model = nn.Sequential(nn.Embedding(60, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    text = "operator 'embedding' never got a gradient in the selection"
    selection = {"operators": ["embedding", "linear"], "phases": "backward"}
    with pytest.raises(SelectionError, match=text), start(model, **selection):
        model(IDS).sum().backward()


def test_a_session_in_which_the_model_never_ran_warns():
    text = "the model never ran in the session: nothing was perturbed"
    with pytest.warns(NoisescopeWarning, match=text), start():
        pass


def test_an_error_of_the_users_own_is_not_hidden_by_the_check():
    with pytest.raises(ZeroDivisionError), start(operators="gelu"):
        LLAMA(input_ids=IDS)
        raise ZeroDivisionError


def test_a_session_that_does_not_attest_says_nothing_until_it_is_asked():
    session = Session(LLAMA, RelativeGaussian(0.05), make_selection(operators="gelu"), attest=False)
    with session:
        LLAMA(input_ids=IDS)
    with pytest.raises(SelectionError, match="'gelu' never ran"):
        session.check()


def test_a_dose_that_rounding_erased_warns_and_says_what_to_do():
    model = small_model("llama").bfloat16()
    text = (
        r"under half of the forward noise arrived \(\d\.\d% of elements changed, relative L2 "
        r"\S+ of \S+ asked\): rounding erased it\. Use a larger scale, float32, or "
    )
    with pytest.warns(DoseWarning, match=text), start(model, 1e-3, operators="linear"):
        model(input_ids=IDS)


@pytest.mark.parametrize(("scale", "rounding"), [(0.05, "nearest"), (1e-3, "stochastic")])
def test_a_dose_that_arrived_does_not_warn(scale, rounding):
    model = small_model("llama").bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with inject(model, RelativeGaussian(scale, rounding), operators="linear"):
            model(input_ids=IDS)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention"])
def test_attention_in_kernels_without_operators_cannot_be_selected(kernel):
    model = small_model("llama")
    model.config._attn_implementation = kernel
    text = (
        "matmul is selected in model.layers.0.self_attn, but attention runs as "
        f"'{kernel}', which shows no operators: load the model with "
        "attn_implementation='sdpa', or select other operators."
    )
    for selection in ({}, {"operators": ["linear", "matmul"]}, {"layers": 0}):
        with refuses(text):
            start(model, **selection)
    for selection in ({"operators": "linear"}, {"modules": "mlp"}, {"layers": "head"}):
        start(model, **selection)


def test_data_parallel_over_devices_is_refused():
    model = nn.DataParallel(OneOperator(nn.Linear(2, 2)))
    start(model)
    model.device_ids = [0, 1]
    with pytest.raises(InputError, match="copies of the model in threads"):
        start(model)


@pytest.mark.parametrize("word", ["core", "all"])
def test_words_of_the_command_line_are_told_as_such(word):
    with pytest.raises(SelectionError, match=rf"^'{word}' is a word of the command line: give noi"):
        inject(small_model("llama"), RelativeGaussian(0.05), operators=word)
