"""Scoring along given answers, against one row at a time in float64."""

import math

import pytest
import torch
from helpers.small_models import small_model

from noisescope.measure import answer_logits, make_sequences, score_rows

PROMPTS = [[5, 6], [7], [8, 9, 10, 11]]
ANSWERS = [[12, 13, 14], [15, 16, 17, 18, 19], [20]]
CPU = torch.device("cpu")


def one_row_logits(model, prompt, answer):
    """Logits that predict each token of the answer, computed in float64 without padding."""
    ids = [*prompt, *answer]
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(ids) - 1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_logits_are_those_that_predict_each_answer_token(family):
    sequences = make_sequences(PROMPTS, ANSWERS, CPU)
    found = answer_logits(small_model(family), sequences)
    exact = small_model(family)
    rows = [one_row_logits(exact, p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    torch.testing.assert_close(found.double(), torch.cat(rows), rtol=1e-4, atol=1e-4)
    assert sequences.label_N.tolist() == [token for answer in ANSWERS for token in answer]
    assert sequences.counts == (3, 5, 1)


def test_scores_are_means_over_each_rows_own_tokens():
    clean_model, noisy_model = small_model("llama"), small_model("llama", seed=1)
    sequences = make_sequences(PROMPTS, ANSWERS, CPU)
    clean_NV = answer_logits(clean_model, sequences)
    scores = score_rows(clean_NV, answer_logits(noisy_model, sequences), sequences)
    for prompt, answer, score in zip(PROMPTS, ANSWERS, scores, strict=True):
        log_p = one_row_logits(clean_model, prompt, answer).log_softmax(-1)
        log_q = one_row_logits(noisy_model, prompt, answer).log_softmax(-1)
        labels = torch.tensor(answer)[:, None]
        nll = -log_p.gather(1, labels).mean().item()
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
        same = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()
        assert score.tokens == len(answer)
        assert score.kl_nats == pytest.approx(kl, rel=1e-4)
        assert score.clean_nll_nats == pytest.approx(nll, rel=1e-4)
        assert score.nll_change_nats == pytest.approx(
            -log_q.gather(1, labels).mean().item() - nll, rel=1e-3, abs=1e-5
        )
        assert score.top1_agreement == same


def test_a_row_without_tokens_is_nan_and_the_others_are_not():
    model = small_model("llama")
    sequences = make_sequences([[5, 6], [7]], [[], [8, 9]], CPU)
    logits_NV = answer_logits(model, sequences)
    nothing, something = score_rows(logits_NV, logits_NV, sequences)
    assert nothing.tokens == 0 and math.isnan(nothing.kl_nats)
    assert math.isnan(nothing.top1_agreement)
    assert (something.tokens, something.kl_nats, something.top1_agreement) == (2, 0.0, 1.0)


def test_a_batch_without_any_token_is_all_nan():
    model = small_model("llama")
    sequences = make_sequences([[5, 6], [7]], [[], []], CPU)
    logits_NV = answer_logits(model, sequences)
    assert logits_NV.shape[0] == 0
    scores = score_rows(logits_NV, logits_NV, sequences)
    assert [score.tokens for score in scores] == [0, 0]
    assert all(math.isnan(score.kl_nats) for score in scores)


def test_the_last_token_may_lie_one_beyond_the_context():
    model = small_model("gpt2", n_positions=4)
    sequences = make_sequences([[5, 6]], [[7, 8, 9]], CPU, context_length=4)
    assert sequences.ids_BT.tolist() == [[5, 6, 7, 8]]
    assert sequences.label_N.tolist() == [7, 8, 9]
    assert answer_logits(model, sequences).shape == (3, 64)
