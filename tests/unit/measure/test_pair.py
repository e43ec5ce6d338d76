"""Two models on the same samples: KL of one to the other, and the answers of both."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.diagnoses import PROMPTS, small_task
from helpers.model_dirs import as_loaded, character_tokenizer, loaded_small
from helpers.small_models import small_model

from noisescope.errors import InputError
from noisescope.measure import greedy_answers, pair
from noisescope.measure.pair import measure_pair
from noisescope.tasks import make_task


def shaken(model, scale=0.05):
    """Returns the model with other weights in its last layer."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.model.layers[-1].parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def models():
    first, second = loaded_small(), as_loaded(shaken(small_model("llama")))
    for loaded in (first, second):
        loaded.model.generation_config.eos_token_id = None
    return first, second


def by_hand(first, second, prompt, answer):
    """KL(A || B) and NLL of B along an answer, from whole passes in float64."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logs = [m.model(ids).logits[0].double().log_softmax(-1) for m in (first, second)]
    p, q = (log[len(prompt) - 1 : -1] for log in logs)
    labels = torch.tensor(answer)[:, None]
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    same = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    return kl, -q.gather(1, labels).mean().item(), -p.gather(1, labels).mean().item(), same


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"memory_gib": 0.002}])
def test_figures_are_those_of_whole_passes_along_the_answers_of_a(models, options):
    first, second = models
    found = measure_pair(*models, small_task(first), **options)
    mine = greedy_answers(first.model, PROMPTS, 3, None)
    theirs = greedy_answers(second.model, PROMPTS, 3, None)
    assert mine != theirs
    for n, (a, b) in enumerate(zip(found.first, found.second, strict=True)):
        kl, nll, own, same = by_hand(first, second, PROMPTS[n], mine[n])
        assert (a.sample, b.sample) == (str(n), str(n)) and a.tokens == b.tokens == 3
        assert b.kl_nats == pytest.approx(kl, rel=1e-4) and a.kl_nats == 0
        assert (b.nll_nats, a.nll_nats) == pytest.approx((nll, own), rel=1e-4)
        assert b.nll_change_nats == pytest.approx(nll - own, abs=1e-5)
        assert b.top1_agreement == same
        assert a.is_right and b.is_right == (mine[n] == theirs[n])
        assert b.answer == " ".join(map(str, theirs[n]))
        assert b.kl_p95_nats <= b.kl_p99_nats


def test_texts_are_scored_along_themselves_and_nothing_is_generated(models, monkeypatch):
    monkeypatch.setattr("noisescope.measure.worker.decode", None)
    task = make_task([{"prompt_ids": prompt} for prompt in PROMPTS])
    found = measure_pair(*models, task)
    for prompt, b in zip(PROMPTS, found.second, strict=True):
        kl, nll, _, _ = by_hand(*models, prompt[:1], prompt[1:])
        assert (b.kl_nats, b.nll_nats) == pytest.approx((kl, nll), rel=1e-4)
        assert b.is_right is None and b.tokens == 2


def test_the_same_model_is_exactly_the_same(models):
    first, _ = models
    other = as_loaded(small_model("llama"))
    other.model.generation_config.eos_token_id = None
    for found in (
        measure_pair(first, other, small_task(first)),
        measure_pair(first, other, small_task(first), is_same=True),
    ):
        assert [r.kl_nats for r in found.second] == [0.0] * 6
        assert [r.nll_nats for r in found.first] == [r.nll_nats for r in found.second]


def test_the_same_model_is_run_once(models, monkeypatch):
    monkeypatch.setattr(pair, "_Scorer", None)
    first, _ = models
    assert len(measure_pair(first, first, small_task(first), is_same=True).second) == 6


def test_both_are_left_as_they_were(models):
    before = [{n: p.clone() for n, p in m.model.named_parameters()} for m in models]
    measure_pair(*models, small_task(models[0]))
    for kept, loaded in zip(before, models, strict=True):
        assert all(torch.equal(kept[n], p) for n, p in loaded.model.named_parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


def test_vocabularies_that_differ_are_named(models):
    other = as_loaded(small_model("llama", vocab_size=70))
    with pytest.raises(InputError, match="the vocabularies differ, 64 tokens in A and 70 in B"):
        measure_pair(models[0], other, small_task(models[0]))


def test_the_first_sample_that_tokenizers_encode_differently_is_named(models):
    first, second = models
    task = make_task(
        [{"prompt": "ab c"}, {"messages": ({"role": "user", "content": "x"},)}], name="t"
    )
    other = replace(second, tokenizer=character_tokenizer(chat_template=None))
    said = r"encode sample '1' differently \(6 tokens in A, 1 in B\): give both .*--tokenizer DIR"
    with pytest.raises(InputError, match=said):
        measure_pair(first, other, make_task(task.samples, score=lambda a, s: True))


def test_an_answer_that_b_has_no_room_for_is_refused(models):
    first, second = models
    small = replace(second, context_length=4)
    with pytest.raises(InputError, match="sample '0' with the answer of A is 6 tokens long, B"):
        measure_pair(first, small, small_task(first))


def test_where_memory_runs_out_batches_are_halved(models, monkeypatch):
    expected = measure_pair(*models, small_task(models[0]))
    picked, most = pair._picked, [2]

    def picked_of_few(apart, batch):
        if len(batch.ids_BT) > most[0]:
            raise torch.OutOfMemoryError("out of memory")
        return picked(apart, batch)

    monkeypatch.setattr(pair, "_picked", picked_of_few)
    found = measure_pair(*models, small_task(models[0]))
    kls = [[r.kl_nats for r in x.second] for x in (found, expected)]
    assert kls[0] == pytest.approx(kls[1], rel=1e-4)
    most[0] = 0
    with pytest.raises(InputError, match="memory ran out with one row at a time"):
        measure_pair(*models, small_task(models[0]))


def test_logits_that_are_not_finite_are_told_as_such(models):
    first, _ = models
    broken = as_loaded(small_model("llama"))
    broken.model.generation_config.eos_token_id = None
    with torch.no_grad():
        broken.model.lm_head.weight[:] = math.inf
    found = measure_pair(first, broken, small_task(first))
    assert all(math.isnan(r.kl_nats) and r.tokens == 3 for r in found.second)


def test_progress_ends_where_all_is_done(models):
    told = []
    measure_pair(*models, small_task(models[0]), progress=lambda *given: told.append(given))
    assert told[0][0] == "A" and told[-1] == ("done", 1, 1)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
