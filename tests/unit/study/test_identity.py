"""What a study stems from: configuration, end tokens, attention, and the scoring function."""

import functools
import subprocess
import sys
import types

import pytest
import torch
from helpers.model_dirs import as_loaded, reload, save_model
from helpers.small_models import small_model

from noisescope.models.fingerprint import configuration_fingerprint
from noisescope.study import fingerprints_of, scoring_of
from noisescope.tasks import make_task, score_answer

SAMPLES = [{"name": "a", "prompt_ids": (4, 5), "truth": "1"}]


def fingerprints(model):
    return fingerprints_of(as_loaded(model), make_task(SAMPLES))


def configuration(model):
    return fingerprints(model)["configuration"]


def test_the_fingerprints_are_of_model_configuration_and_data():
    found = fingerprints(small_model("llama"))
    assert list(found) == ["model", "configuration", "data"]
    assert all(text.startswith("sha256:") for text in found.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"hidden_act": "gelu"},
        {"attn_implementation": "eager"},
        {"max_position_embeddings": 128},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_weights_do_not_tell_is_in_the_configuration(changes):
    assert configuration(small_model("llama")) == configuration(small_model("llama", seed=1))
    assert configuration(small_model("llama", **changes)) != configuration(small_model("llama"))


def test_end_tokens_count_from_wherever_they_come():
    model = small_model("llama")
    before = configuration(model)
    model.generation_config.eos_token_id = [2, 3]
    assert configuration(model) != before
    model.generation_config.eos_token_id = [2]
    assert configuration(model) == before


def test_another_family_with_the_same_configuration_is_another_model():
    llama, mistral = small_model("llama"), small_model("mistral")
    mistral.config = llama.config
    assert configuration_fingerprint(llama, ()) != configuration_fingerprint(mistral, ())


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "qwen3_moe"])
def test_place_dtype_and_what_saved_it_are_no_difference(family, tmp_path):
    saved = small_model(family)
    found = [
        configuration(reload(save_model(tmp_path / name, saved)).model) for name in ("one", "two")
    ]
    assert found[0] == found[1]
    model = reload(tmp_path / "one").model
    before = configuration(model)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.config.transformers_version = "4.0"
    model.config._name_or_path = "elsewhere"
    model.config.architectures = None
    assert configuration(model) == before


def scored(score):
    return scoring_of(make_task(SAMPLES, score))


def is_one(answer, sample):
    return answer == [1] or answer in {"1", "one", "I"}


def test_scoring_is_named_and_hashed():
    assert scoring_of(make_task([{"name": "a", "prompt_ids": (4, 5)}])) is None
    ours = {"function": "noisescope.tasks.samples.score_answer", "code": None}
    assert scored(None) == scored(score_answer) == ours
    told = scored(is_one)
    assert told["function"] == f"{__name__}.is_one"
    assert len(told["code"]) == 12


def test_a_change_in_a_scoring_function_is_seen():
    def within(limit):
        return lambda answer, sample: len(answer) < limit

    class Within:
        def __call__(self, answer, sample):
            return len(answer) < 3

    functions = [
        lambda answer, sample: int(answer[0]) == 1,
        lambda answer, sample: int(answer[0]) == 2,
        lambda answer, sample: abs(answer[0]) == 1,
        lambda answer, sample: int(answer[0]) != 1,
        lambda answer, sample, limit=1: int(answer[0]) == limit,
        lambda answer, sample, limit=2: int(answer[0]) == limit,
        lambda answer, sample: any(int(a) == 1 for a in answer),
        lambda answer, sample: any(int(a) == 2 for a in answer),
        within(3),
        within(4),
        functools.partial(is_one),
        functools.partial(within(3), limit=2),
        Within(),
    ]
    codes = [scored(function)["code"] for function in functions]
    assert len(set(codes)) == len(codes)
    assert scored(within(3))["code"] == codes[8]
    assert scored(Within())["code"] == codes[-1]


def test_a_function_that_holds_itself_comes_to_an_end():
    def last(answer, sample):
        return answer[0] == 1 if len(answer) == 1 else last(answer[1:], sample)

    assert scored(last) == scored(last)


def with_words(*words):
    """A function with a set of words in its code, put in in this order."""
    code = is_one.__code__
    constants = tuple(
        frozenset(words) if isinstance(value, frozenset) else value for value in code.co_consts
    )
    return types.FunctionType(code.replace(co_consts=constants), is_one.__globals__, "is_one")


def test_the_digest_does_not_depend_on_the_order_in_a_set():
    """That order is another one in each process; here it is another one for numbers that clash."""
    assert list(frozenset((0, 8))) != list(frozenset((8, 0)))
    assert scored(with_words(0, 8)) == scored(with_words(8, 0)) != scored(with_words(0, 16))


@pytest.mark.slow
def test_the_digest_is_the_same_in_every_process():
    source = (
        "from noisescope.study import scoring_of; from noisescope.tasks import make_task\n"
        "def f(answer, sample): return answer in {'1', 'one', 'I', 'eins'}\n"
        "print(scoring_of(make_task([{'prompt_ids': (4, 5), 'truth': '1'}], f)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", source],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1
