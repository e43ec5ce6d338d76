"""Seeds against the Fisher matrix itself, by going through every sign vector and every label."""

import itertools

import pytest
import torch

from noisescope.measure.seeds import ESTIMATORS, draw_seeds, seeds_of_labels, seeds_of_signs

V = 6
LOGITS = torch.tensor([[0.3, -1.2, 2.0, 0.0, -4.0, 1.1], [9.0, 0.0, 0.1, -9.0, 0.0, 1.0]])


def fisher(logits_V):
    p = logits_V.double().softmax(-1)
    return torch.diag(p) - torch.outer(p, p)


def every_sign():
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=V)))


def draw(logits, draws=1, estimator="signs", names=None, seed=3):
    N = len(logits)
    names = torch.arange(N) + 77 if names is None else names
    position = torch.arange(N) % 5
    made = [draw_seeds(logits, names, position, seed, k, estimator) for k in range(draws)]
    return torch.stack(made)


@pytest.mark.parametrize("row", [0, 1])
def test_all_sign_vectors_together_have_the_fisher_matrix(row):
    signs = every_sign()
    p = LOGITS[row].double().softmax(-1).expand(len(signs), V)
    seeds = seeds_of_signs(p, signs.double())
    torch.testing.assert_close(seeds.T @ seeds / 2**V, fisher(LOGITS[row]), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(seeds.sum(0), torch.zeros(V).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("row", [0, 1])
def test_all_labels_by_their_probability_have_the_fisher_matrix(row):
    p = LOGITS[row].double().softmax(-1)
    seeds = seeds_of_labels(p.expand(V, V), torch.arange(V)[:, None])
    found = seeds.T @ (p[:, None] * seeds)
    torch.testing.assert_close(found, fisher(LOGITS[row]), rtol=1e-12, atol=1e-15)


def test_what_is_drawn_is_one_of_the_sign_vectors():
    logits = torch.randn(40, V, generator=torch.Generator().manual_seed(0))
    signs = every_sign()
    for n, seed in enumerate(draw(logits)[0]):
        p = logits[n].softmax(-1).expand(len(signs), V)
        distance = (seeds_of_signs(p, signs.clone()) - seed).abs().amax(-1)
        assert distance.min() < 1e-6


def test_drawn_signs_are_even_and_independent():
    # Flat logits: the seed plus a share common to the row is the sign; V is large, so it is small.
    N, many = 200, 1000
    seeds = draw(torch.zeros(N, many))[0] * many**0.5
    signs = seeds.sign()
    assert abs(signs.mean()) < 5 / (N * many) ** 0.5
    between = signs.T @ signs / N
    between.fill_diagonal_(0)
    assert between.abs().max() < 6 / N**0.5
    assert abs(between.mean()) < 5 / N**0.5 / many


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_over_draws_is_the_fisher_matrix(estimator):
    logits = LOGITS[:1].expand(20_000, V)
    seeds = draw(logits, estimator=estimator)[0].double()
    found = seeds.T @ seeds / len(seeds)
    assert (found - fisher(LOGITS[0])).abs().max() < 4 * 0.25 / len(seeds) ** 0.5


def test_the_fisher_matrix_is_what_a_small_change_of_logits_costs():
    z = LOGITS[0].double()
    e = torch.randn(V, generator=torch.Generator().manual_seed(1)).double()
    p = z.softmax(-1)
    kl = [
        float((p * (z.log_softmax(-1) - (z + step * e).log_softmax(-1))).sum()) / step**2
        for step in (1e-3, -1e-3)
    ]
    assert sum(kl) / 2 == pytest.approx(float(0.5 * e @ fisher(z) @ e), rel=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_batch_changes_nothing(estimator):
    logits = torch.randn(7, 100, generator=torch.Generator().manual_seed(2))
    names, position = torch.arange(7) * 1000, torch.arange(7)
    whole = draw_seeds(logits, names, position, 3, 1, estimator)
    order = torch.tensor([4, 0, 6])
    some = draw_seeds(logits[order], names[order], position[order], 3, 1, estimator)
    assert torch.equal(some, whole[order])


def test_seed_draw_sample_and_position_each_tell_one_seed_from_another():
    logits = torch.zeros(1, 64)
    word, other = torch.tensor([5]), torch.tensor([6])
    base = draw_seeds(logits, word, word, 1, 1)
    assert torch.equal(base, draw_seeds(logits, word, word, 1, 1))
    for given in ((other, word, 1, 1), (word, other, 1, 1), (word, word, 2, 1), (word, word, 1, 2)):
        assert not torch.equal(base, draw_seeds(logits, *given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_halves_get_the_seeds_of_their_own_values(dtype, estimator):
    logits = (3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(4))).to(dtype)
    made = draw(logits, estimator=estimator)
    assert made.dtype == torch.float32
    assert torch.equal(made, draw(logits.float(), estimator=estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_large_vocabulary_and_a_sure_model(estimator):
    logits = torch.randn(3, 151_936, generator=torch.Generator().manual_seed(5))
    logits[1, 70_000] = 60.0  # certain
    logits[2, 5] = -torch.inf
    seeds = draw(logits, estimator=estimator)[0]
    assert seeds.isfinite().all()
    assert seeds[1].abs().max() < 1e-6
    assert seeds[2, 5] == 0
    assert seeds.double().sum(-1).abs().max() < 1e-3


def test_a_label_is_drawn_even_where_the_sum_of_probabilities_rounds_below_one():
    seeds = draw(torch.zeros(2000, 3), estimator="labels")[0]
    assert (seeds > 0).sum(-1).eq(1).all()
