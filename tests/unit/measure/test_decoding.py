"""Answers of many conditions decoded together equal one row at a time, token for token."""

import pytest
import torch
from helpers.more_models import MORE, more_model
from helpers.one_by_one import SEED, condition, one_row_answer, plain_session, texts
from helpers.small_models import FAMILIES, small_model

from noisescope.inject import Session
from noisescope.measure import generate
from noisescope.measure.answers import Boarding, Limits, Prompt
from noisescope.measure.generate import decode
from noisescope.measure.sharing import Rider
from noisescope.measure.steps import best_tokens
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import AbsoluteGaussian, RelativeGaussian

CAUSAL = tuple(family for family in FAMILIES if family != "bert")
EXPERTS = ("mixtral", "qwen3_moe")
# Those with sliding windows of 16 grow past them.
PROMPTS = texts((3, 14, 1, 8))
COUNT, CONTEXT = 6, 17


def model_of(family, **overrides):
    return more_model(family) if family in MORE else small_model(family, **overrides)


def conditions_for(family):
    if family in EXPERTS:  # noise inside the experts depends on the batch
        return (
            condition("heads", modules="self_attn", layers=[1]),
            condition("softmax", operators="softmax"),
            condition("head", RelativeGaussian(0.5), layers="head"),
        )
    # The chunks in which the linear attention of Qwen3-Next multiplies depend on the padding.
    operators = ["linear", "rms_norm"] if family == "qwen3_next" else None
    return (
        condition("L2", RelativeGaussian(0.5), layers=2, operators=operators),
        condition("ends", AbsoluteGaussian(0.1), layers=["embed", "head"]),
        condition("all", RelativeGaussian(0.05), operators=operators),
    )


def decoded(model, prompts, conditions, draws=1, count=COUNT, context=None, rows=1 << 20):
    apart = TakenApart(model)
    sessions = [Session(model, c.error_model, c.selection, SEED, attest=False) for c in conditions]
    riders = [Rider("", None), *(Rider("", s, k) for s in sessions for k in range(draws))]
    boardings = [Boarding(r, apart.first_region(r.session)) for r in riders]
    named = [Prompt(f"s{n}", tuple(ids)) for n, ids in enumerate(prompts)]
    return decode(model, named, boardings, Limits(count, context, rows), apart.prompt_entries)


def assert_as_alone(model, prompts, conditions, found, draws=1, **options):
    """Asserts that answers equal the oracle's; where logits all but tie, they may not."""
    everyone = [(None, 0), *((c, k) for c in conditions for k in range(draws))]
    excused = 0
    for (given, draw), answers in zip(everyone, found, strict=True):
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            alone = one_row_answer(model, prompt, f"s{n}", given, draw, **options)
            if answer.ids != alone:
                assert answer.close_calls, (given, draw, n)
                excused += 1
    assert excused <= 1


def with_ends(model, prompts=PROMPTS, count=COUNT):
    """Makes the model end its answers at different steps, and some not at all."""
    model.generation_config.eos_token_id = None
    clean = [one_row_answer(model, prompt, "", None, count=count) for prompt in prompts]
    model.generation_config.eos_token_id = sorted({clean[0][2], clean[-1][4], 63})
    return model


# Like another one in everything that decoding meets.
ALIKE = ("qwen2", "qwen3", "phi3", "gemma2", "gpt_neox")


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow if f in ALIKE else ()) for f in (*CAUSAL, *MORE)],
)
def test_many_conditions_answer_as_one_row_at_a_time(family, monkeypatch):
    model, conditions = with_ends(model_of(family)), conditions_for(family)
    joins, join_rows = [], generate.join_rows
    monkeypatch.setattr(
        generate, "join_rows", lambda *given: (joins.append(1), join_rows(*given))[1]
    )
    riders = 1 + 2 * len(conditions)
    # The longest comes first and leaves the context early: others then take its place.
    found = decoded(model, PROMPTS, conditions, draws=2, rows=2 * riders, context=CONTEXT)
    assert len(joins) >= 1, "no prompt was taken in while others ran"
    options = {"count": COUNT, "context_length": CONTEXT}
    assert_as_alone(model, PROMPTS, conditions, found, draws=2, **options)
    answers = [tuple(a.ids) for rider in found for a in rider]
    assert len({len(a) for a in answers}) > 1 and len(set(answers)) > len(PROMPTS)
    ends = set(model.generation_config.eos_token_id)
    assert all(a.is_cut == (a.ids[-1] not in ends) for rider in found for a in rider)


@pytest.mark.parametrize("rows", [1, 5, 7, 11, 1 << 20])
def test_the_most_rows_change_no_answer(rows):
    model, conditions = with_ends(small_model("llama")), conditions_for("llama")
    found = decoded(model, PROMPTS, conditions, rows=rows)
    assert_as_alone(model, PROMPTS, conditions, found, count=COUNT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "lfm2"])
def test_answers_equal_those_of_generate_row_by_row(family):
    model, conditions = with_ends(model_of(family)), conditions_for(family)[:2]
    found = decoded(model, PROMPTS, conditions)
    for given, answers in zip([None, *conditions], found, strict=True):
        for n, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
            ids = torch.tensor([prompt])
            with torch.no_grad(), plain_session(model, given, 0, [f"s{n}"]):
                whole = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=COUNT,
                    do_sample=False,
                    pad_token_id=0,
                )
            assert answer.ids == whole[0, len(prompt) :].tolist() or answer.close_calls


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_answers_fill_the_learned_positions_and_leave_them_by_none(family):
    size = {"n_positions": 16} if family == "gpt2" else {"max_position_embeddings": 16}
    model = small_model(family, **size)
    model.generation_config.eos_token_id = None
    prompts = texts((16, 3, 14, 9, 15))
    conditions = conditions_for(family)
    options = {"count": 30, "context_length": 16}
    for rows in (1 << 20, 12):
        found = decoded(model, prompts, conditions, count=30, context=16, rows=rows)
        assert_as_alone(model, prompts, conditions, found, **options)
        for answers in found:
            assert [len(a.ids) for a in answers] == [1, 14, 3, 8, 2]
            assert all(a.is_cut for a in answers)


def test_a_prompt_beyond_the_context_gets_no_token_and_is_cut():
    model = small_model("gpt2", n_positions=6)
    (answers,) = decoded(model, [[5, 6, 7], [8] * 7], [], context=6)
    assert answers[1].ids == [] and answers[1].is_cut and answers[0].ids


def test_columns_that_are_empty_in_every_row_are_dropped(monkeypatch):
    model = small_model("llama")
    model.generation_config.eos_token_id = None
    kept, drop_columns = [], generate.drop_columns

    def drop(cache, columns):
        kept.append((cache.layers[0].keys.shape[-2], columns))
        drop_columns(cache, columns)

    monkeypatch.setattr(generate, "drop_columns", drop)
    prompts = texts((2, 50, 3))
    conditions = (condition("L1", layers=1),)
    # The longest prompt fills its context at once; the others go on without its columns.
    found = decoded(model, prompts, conditions, count=30, context=50)
    assert kept and all(before >= after + 32 for before, after in kept)
    assert_as_alone(model, prompts, conditions, found, count=30, context_length=50)


def test_steps_at_which_two_logits_tie_are_counted_for_their_row_alone():
    model = small_model("llama")
    model.generation_config.eos_token_id = None
    answers = [one_row_answer(model, p, "", None, count=COUNT) for p in PROMPTS]
    twin = answers[0][1]
    weight = model.lm_head.weight
    with torch.no_grad():
        weight[62] = weight[twin]  # the later of two equal logits is never chosen
    (found,) = decoded(model, PROMPTS, [])
    assert [a.ids for a in found] == answers
    assert [a.close_calls for a in found] == [a.ids.count(twin) for a in found]
    assert found[0].close_calls and not all(a.close_calls for a in found)


@pytest.mark.parametrize(
    ("dtype", "steps"), [(torch.float32, 64), (torch.bfloat16, 4), (torch.float16, 4)]
)
def test_what_counts_as_rounding_is_some_units_of_the_largest_logit(dtype, steps):
    unit = torch.finfo(dtype).eps * 2.0
    logits = torch.tensor([[0.0, 2.0, 2.0 - k * unit / 2, -1.0] for k in (0, steps, 6 * steps)])
    token, close = best_tokens(logits.to(dtype))
    assert token.tolist() == [1, 1, 1] and close.tolist() == [1, 1, 0]


def test_nobody_asked_gives_no_answers():
    model = small_model("llama")
    assert decoded(model, [], [condition("L1", layers=1)]) == [[], []]
