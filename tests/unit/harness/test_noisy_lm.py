"""A model of lm-evaluation-harness under noise: equal to our own scoring, whatever the batch."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.harness import loaded_for_tasks, requests
from helpers.one_by_one import CPU
from helpers.small_models import small_model

from noisescope import NoisyLM
from noisescope.errors import DoseError, InputError, SelectionError
from noisescope.harness.noisy_lm import rows_by_memory
from noisescope.inject import inject
from noisescope.measure import greedy_answers, make_sequences, score_riders
from noisescope.measure.taken_apart import TakenApart
from noisescope.models.in_memory import in_memory
from noisescope.noise import RelativeGaussian

NOISE = RelativeGaussian(0.2)
PAIRS = [(f"the {w} has {n}+2 legs: ", f"{n}2") for n, w in enumerate(("dog", "cat", "old owl"))]
PAIRS += [(PAIRS[0][0], "9"), ("", "owl 3")]
TEXTS = [("the dog ran 3 times",), ("a cat",)]
PROMPTS = [
    (text, {"until": ["#"], "do_sample": False, "max_gen_toks": 7})
    for text, _ in (*PAIRS[:3], ("one 1", ""))
]


@pytest.fixture(scope="module")
def loaded():
    return loaded_for_tasks()


def ids_of(loaded, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens as the harness joins them; it puts the first token before a text without context."""
    encode = loaded.tokenizer.encode
    # Blanks at the end of a context go with the continuation.
    bare = context.rstrip()
    whole = encode(bare + context[len(bare) :] + continuation)
    return (
        ([loaded.tokenizer.bos_token_id], whole)
        if not bare
        else (
            whole[: len(encode(bare))],
            whole[len(encode(bare)) :],
        )
    )


def own_likelihood(loaded, context: list[int], answer: list[int], noise: bool) -> float:
    """The sum of log-probabilities of one text in a batch of its own, in float64."""
    session = inject(loaded.model, NOISE, seed=3, draw=1)
    ids = torch.tensor([context + answer])
    with torch.no_grad():
        if noise:
            with session:
                logits = loaded.model(input_ids=ids).logits
        else:
            logits = loaded.model(input_ids=ids).logits
    before = logits[0, len(context) - 1 : -1].double().log_softmax(dim=-1)
    return float(before.gather(1, torch.tensor(answer)[:, None]).sum())


@pytest.mark.parametrize("noise", [False, True])
def test_log_likelihoods_are_those_of_our_own_scoring(loaded, noise):
    lm = NoisyLM(loaded, NOISE if noise else None, seed=3, draw=1, batch_size=4)
    found = [value for value, _ in lm.loglikelihood(requests("loglikelihood", PAIRS))]
    expected = [own_likelihood(loaded, *ids_of(loaded, *pair), noise) for pair in PAIRS]
    assert found == pytest.approx(expected, rel=1e-5)


def test_clean_log_likelihoods_are_those_of_a_study(loaded):
    found = NoisyLM(loaded, batch_size=2).loglikelihood(requests("loglikelihood", PAIRS))
    pairs = [ids_of(loaded, *pair) for pair in PAIRS]
    names = [str(n) for n in range(len(pairs))]
    sequences = make_sequences(names, [a for a, _ in pairs], [b for _, b in pairs], CPU)
    (scores,) = score_riders(TakenApart(loaded.model), sequences, [], rows=8)
    expected = [-score.nll_nats * score.tokens for score in scores]
    assert [value for value, _ in found] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("noise", [False, True])
def test_whole_texts_are_scored_as_we_score_them(loaded, noise):
    lm = NoisyLM(loaded, NOISE if noise else None, seed=3, draw=1, batch_size=2)
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", TEXTS))
    start = [lm.prefix_token_id]
    texts = [loaded.tokenizer.encode(text) for (text,) in TEXTS]
    assert found == pytest.approx([own_likelihood(loaded, start, t, noise) for t in texts], 1e-5)


def without_cache(model, ids: list[int], most: int) -> list[int]:
    """Greedy tokens, each from a pass over the whole text, up to and with the end token."""
    answer: list[int] = []
    while len(answer) < most and answer[-1:] != [model.generation_config.eos_token_id]:
        logits = model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("noise", [False, True])
def test_answers_are_those_of_our_own_decoding_token_for_token(loaded, noise):
    lm = NoisyLM(loaded, NOISE if noise else None, seed=3, draw=1, batch_size=3)
    found = lm.generate_until(requests("generate_until", PROMPTS))
    prompts = [loaded.tokenizer.encode(text) for text, _ in PROMPTS]
    with torch.no_grad(), inject(loaded.model, NOISE, seed=3, draw=1) if noise else nullcontext():
        # One by one: unnamed samples cannot be followed where rows leave a cache that is shared.
        answers = [greedy_answers(loaded.model, [ids], 7, 256)[0] for ids in prompts]
        assert answers == [without_cache(loaded.model, ids, 7) for ids in prompts]
    texts = [loaded.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    assert found == [text.split("#")[0] for text in texts]
    assert any(len(text) > 3 for text in texts)


def test_neither_batch_nor_order_changes_the_noise(loaded):
    def measured(size: int, step: int):
        lm = NoisyLM(loaded, NOISE, batch_size=size)
        likelihoods = lm.loglikelihood(requests("loglikelihood", PAIRS[::step]))[::step]
        answers = lm.generate_until(requests("generate_until", PROMPTS[::step]))[::step]
        assert {row.rows for row in lm.coverage()} == {"token"}
        return [value for value, _ in likelihoods], answers

    likelihoods, answers = measured(1, 1)
    for size, step in ((3, 1), (8, -1)):
        again, spoken = measured(size, step)
        assert again == pytest.approx(likelihoods, rel=1e-5)
        assert spoken == answers


def test_seed_draw_and_selection_make_other_noise_and_scale_zero_none(loaded):
    def likelihoods(*noise, **options):
        lm = NoisyLM(loaded, *noise, batch_size=8, **options)
        return lm.loglikelihood(requests("loglikelihood", PAIRS))

    found = [likelihoods(NOISE, **o) for o in ({}, {"seed": 1}, {"draw": 1}, {"layers": [1]})]
    assert len({str(values) for values in found}) == 4
    assert likelihoods(RelativeGaussian(0.0)) == likelihoods()


def test_the_model_is_as_it_was_and_the_dose_is_told(loaded):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    lm = NoisyLM(loaded, NOISE, layers=[1], operators="linear", batch_size=8)
    assert lm.dose().elements == 0
    lm.loglikelihood(requests("loglikelihood", PAIRS))
    assert lm.dose().relative_l2 == pytest.approx(0.2, rel=0.05)
    assert [(row.operator, row.perturbed) for row in lm.coverage() if row.perturbed] == [
        ("linear", 7)
    ]
    now = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())
    assert hooks == now
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items()
    )


def test_no_requests_is_no_run(loaded):
    assert NoisyLM(loaded, NOISE, batch_size=1).loglikelihood([]) == []


def test_it_is_a_model_of_the_harness_and_one_of_ours(loaded):
    from lm_eval.models.huggingface import HFLM

    class Mine(NoisyLM):
        def loglikelihood(self, requests, **options):
            return ["mine", *super().loglikelihood(requests, **options)]

    lm = Mine(loaded, NOISE, batch_size=1, max_length=77)
    assert isinstance(lm, HFLM) and isinstance(lm, NoisyLM) and isinstance(lm, Mine)
    assert lm.max_length == 77 and type(lm).__name__ == "Mine"
    assert lm.loglikelihood([]) == ["mine"]


# The harness's request cache.


class Hooked:
    """The plain model of the harness with noise by hooks, as one would write it."""

    def __new__(cls, loaded, session):
        from lm_eval.models.huggingface import HFLM

        class Made(HFLM):
            def loglikelihood(self, requests, **options):
                with session:
                    return super().loglikelihood(requests, **options)

        return Made(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)


def cached(lm, path):
    """The model behind the harness's cache, as `simple_evaluate(use_cache=path)` puts it there."""
    from lm_eval.api.model import CachingLM

    return CachingLM(lm, f"{path}_rank0.db")


def answers_through_cache(lm, path) -> list[float]:
    found = cached(lm, path)
    try:
        return [value for value, _ in found.loglikelihood(requests("loglikelihood", PAIRS))]
    finally:
        found.dbdict.close()


def test_the_cache_of_the_harness_answers_a_noisy_run_with_clean_answers(loaded, tmp_path):
    clean, noisy = (inject(loaded.model, RelativeGaussian(s)) for s in (0.0, 0.2))
    path = tmp_path / "cache"
    first = answers_through_cache(Hooked(loaded, clean), path)
    assert answers_through_cache(Hooked(loaded, noisy), path) == first  # the trap


def test_ours_refuses_that_cache_and_takes_one_that_is_keyed_by_the_condition(loaded, tmp_path):
    clean, noisy = NoisyLM(loaded, batch_size=4), NoisyLM(loaded, NOISE, batch_size=4)
    for lm in (clean, noisy):
        with pytest.raises(InputError, match=r"knows no noise .* give use_cache=lm.cache_path"):
            cached(lm, tmp_path / "cache")
    paths = [lm.cache_path(tmp_path / "keyed") for lm in (clean, noisy)]
    first = [answers_through_cache(lm, p) for lm, p in zip((clean, noisy), paths, strict=True)]
    assert first[0] != pytest.approx(first[1], rel=1e-3)
    again = NoisyLM(loaded, NOISE, batch_size=1)
    assert answers_through_cache(again, again.cache_path(tmp_path / "keyed")) == first[1]
    assert again.dose().elements == 0  # all of it came out of the cache


def test_a_key_names_all_that_an_answer_depends_on(loaded):
    def path(given=loaded, noise=NOISE, **options) -> str:
        return NoisyLM(given, noise, batch_size=1, **options).cache_path("c")

    keys = {
        path(),
        path(noise=None),
        path(noise=RelativeGaussian(0.21)),
        path(seed=1),
        path(draw=1),
        path(layers=[1]),
        path(operators="linear"),
        path(given=replace(loaded, fingerprint="sha256:1")),
        path(max_length=99),
        path(softmax_dtype="float64"),
    }
    assert len(keys) == 10
    assert path() == path() and Path(path()).name.startswith("c-")


# What a user can cause.


def test_a_dose_that_rounding_erased_is_an_error():
    halves = loaded_for_tasks()
    halves = replace(halves, model=halves.model.bfloat16(), dtype=torch.bfloat16)
    lm = NoisyLM(halves, RelativeGaussian(1e-5), operators="linear", batch_size=8)
    with pytest.raises(DoseError, match="rounding erased all of it"):
        lm.loglikelihood(requests("loglikelihood", PAIRS[:1]))


def test_a_selection_that_names_nothing_is_an_error(loaded):
    with pytest.raises(SelectionError, match="no layer 9"):
        NoisyLM(loaded, NOISE, layers=[9], batch_size=1)
    lm = NoisyLM(loaded, NOISE, operators="gelu", batch_size=1)
    with pytest.raises(SelectionError, match="gelu"):
        lm.loglikelihood(requests("loglikelihood", PAIRS[:1]))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "auto"])
def test_a_batch_size_is_a_whole_number(loaded, size):
    with pytest.raises(InputError, match=r"batch size .*: a whole number of at least 1"):
        NoisyLM(loaded, NOISE, batch_size=size)


def test_rows_by_memory_are_some(loaded):
    assert 1 <= rows_by_memory(loaded) <= 32
    assert NoisyLM(loaded).batch_size == rows_by_memory(loaded)


def test_a_model_without_tokenizer_or_without_next_token_is_refused(loaded):
    with pytest.raises(InputError, match=r"no tokenizer beside .* --tokenizer DIR"):
        NoisyLM(replace(loaded, tokenizer=None), batch_size=1)
    with pytest.raises(InputError, match="BertForMaskedLM predicts no next token"):
        NoisyLM(in_memory(small_model("bert"), loaded.tokenizer), batch_size=1)


def test_a_tokenizer_without_padding_pads_with_what_the_model_knows(loaded):
    import copy

    bare = copy.deepcopy(loaded.tokenizer)
    bare.pad_token = bare.eos_token = bare.unk_token = None
    lm = NoisyLM(replace(loaded, tokenizer=bare), batch_size=2)
    assert lm.tokenizer.pad_token_id == 0 and bare.pad_token is None


def test_a_missing_package_is_named_with_the_command_that_installs_it(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(InputError) as told:
        NoisyLM(loaded)
    assert str(told.value) == (
        "NoisyLM needs the package 'lm_eval', which is not installed: "
        "pip install 'noisescope[eval]'"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": [0]}, r"no option 'layer'; did you mean 'layers'"),
        ({"operator": "linear"}, r"no option 'operator'; did you mean 'operators'"),
        (
            {"phases": ("forward",)},
            r"no option 'phases'.* accepted are layers, operators, modules,",
        ),
    ],
)
def test_an_option_that_nobody_knows_is_refused(loaded, options, text):
    """The harness swallows it, and noise would fall everywhere."""
    with pytest.raises(InputError, match=text):
        NoisyLM(loaded, RelativeGaussian(0.05), **options)
    assert NoisyLM(loaded, RelativeGaussian(0.05), max_length=16).max_length == 16
