"""Greedy answers equal an argmax loop that runs one row at a time, without cache or padding."""

import pytest
import torch
from helpers.small_models import small_model
from transformers import GenerationConfig

from noisescope.inject import inject
from noisescope.measure import greedy_answers
from noisescope.noise import RelativeGaussian

FAMILIES = ["llama", "qwen2", "gemma3_text", "gpt2", "gpt_neox", "mixtral"]
PROMPTS = [[5], [7, 8, 9, 10, 11], [3, 4], [20, 21, 22, 23, 24, 25, 26, 27, 28]]


def argmax_loop(model, prompt, count, context_length=None, ends=()):
    ids, answer = list(prompt), []
    while len(answer) < count and (context_length is None or len(ids) <= context_length):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        ids.append(token)
        answer.append(token)
        if token in ends:
            break
    return answer


def without_end(family, **overrides):
    model = small_model(family, **overrides)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_mixed_lengths_answers_as_each_row_alone(family):
    model = without_end(family)
    expected = [argmax_loop(model, prompt, 8) for prompt in PROMPTS]
    assert greedy_answers(model, PROMPTS, 8, None) == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_an_answer_stops_at_its_end_token_and_holds_it():
    model = without_end("llama")
    free = [argmax_loop(model, prompt, 12) for prompt in PROMPTS]
    end = free[1][4]
    model.generation_config.eos_token_id = [end, 63]
    expected = [argmax_loop(model, prompt, 12, ends={end, 63}) for prompt in PROMPTS]
    assert greedy_answers(model, PROMPTS, 12, None) == expected
    assert len(expected[1]) <= 5 and expected[1][-1] == end


@pytest.mark.parametrize("end", [17, [17]])
def test_one_end_token_may_be_given_alone(end):
    model = without_end("llama")
    model.generation_config.eos_token_id = end
    expected = [argmax_loop(model, prompt, 6, ends={17}) for prompt in PROMPTS]
    assert greedy_answers(model, PROMPTS, 6, None) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_answer_fills_what_its_own_prompt_leaves_of_the_context(family):
    size = {"n_positions": 12} if family == "gpt2" else {"max_position_embeddings": 12}
    model = without_end(family, **size)
    answers = greedy_answers(model, PROMPTS, 50, 12)
    assert answers == [argmax_loop(model, prompt, 50, context_length=12) for prompt in PROMPTS]
    assert [len(answer) for answer in answers] == [12, 8, 11, 4]


def test_the_context_limits_nobody_whose_answer_is_short():
    model = without_end("llama")
    answers = greedy_answers(model, PROMPTS, 4, 12)
    assert answers == [argmax_loop(model, prompt, 4) for prompt in PROMPTS]


def test_a_prompt_that_fills_the_context_gets_one_token():
    model = without_end("gpt2", n_positions=9)
    assert [len(a) for a in greedy_answers(model, PROMPTS, 5, 9)] == [5, 5, 5, 1]


SKEWED = {
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 1,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "min_new_tokens": 3,
    "forced_eos_token_id": 2,
}


@pytest.mark.parametrize("name", [*SKEWED, "suppress_tokens", "bad_words_ids"])
def test_the_models_own_generation_defaults_change_nothing(name):
    model = without_end("llama")
    expected = [argmax_loop(model, prompt, 6) for prompt in PROMPTS]
    values = {
        **SKEWED,
        "suppress_tokens": expected[1][:3],
        "bad_words_ids": [[expected[1][0]]],
    }
    model.generation_config = held = GenerationConfig(**{name: values[name]}, eos_token_id=None)
    assert greedy_answers(model, PROMPTS, 6, None) == expected
    assert model.generation_config is held


def test_the_models_defaults_are_back_after_an_error():
    model = without_end("llama")
    held = model.generation_config
    with pytest.raises(IndexError):
        greedy_answers(model, [[4000]], 3, None)
    assert model.generation_config is held


def test_in_an_open_session_answers_are_those_of_the_noisy_model():
    model = without_end("gpt2", n_positions=12)

    def noisy(prompts):
        with inject(model, RelativeGaussian(0.3), operators="linear", seed=5):
            return greedy_answers(model, prompts, 50, 12)

    assert noisy([PROMPTS[1]]) == noisy([PROMPTS[1]]) != greedy_answers(model, [PROMPTS[1]], 50, 12)
