"""Predictions for real models against injection at every site.

Spearman, the median ratio and the share of sites within 0.8 to 1.25 are asked of every comparison;
so is the standard error of the measurement, for a ratio says little where injection is not sure.
"""

import numpy as np
import pytest
import torch
from helpers.predicted import Compared, compare, texts_of
from helpers.shared import shared_path
from scipy.stats import spearmanr

from noisescope import RelativeGaussian, load_model, load_task
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.measure import greedy_answers
from noisescope.measure.profiling import Texts
from noisescope.tasks import encode_task

EVERY_OTHER = ("matmul", "softmax", "silu", "rms_norm", "embedding")


@pytest.fixture(scope="module")
def stories():
    return load_model(shared_path("models/stories260K"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def demo():
    return load_model(demo_model_dir(), dtype="float32", device="cpu")


def story_texts(loaded, count=16, length=128):
    """Texts that the model itself has drawn."""
    model, generator = loaded.model, torch.Generator().manual_seed(0)
    ids = torch.full((count, 1), model.config.bos_token_id)
    with torch.no_grad():
        for _ in range(length):
            p = model(input_ids=ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return texts_of(ids.tolist())


def question_texts(loaded, count):
    """The demo's questions, scored along their own text."""
    task = load_task(demo_questions(), count)
    return texts_of(encode_task(task, loaded.tokenizer, loaded.context_length))


def check(found: Compared, error: float) -> None:
    ratios = found.ratios
    told = (
        f"{len(ratios)} sites: Spearman {spearmanr(found.predicted, found.measured)[0]:.4f}, ratio "
        f"{np.median(ratios):.3f} [{ratios.min():.3f}, {ratios.max():.3f}], standard error of a "
        f"measurement {np.median(found.errors / found.measured):.3f}"
    )
    print(told)
    assert np.median(found.errors / found.measured) < error, told
    assert spearmanr(found.predicted, found.measured)[0] >= 0.98, told
    assert 0.95 <= np.median(ratios) <= 1.05, told
    assert ((ratios > 0.8) & (ratios < 1.25)).mean() >= 0.9, told


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.02, 0.05])
def test_linear_sites_of_stories(stories, scale):
    found = compare(
        stories.model,
        story_texts(stories),
        RelativeGaussian(scale),
        label_draws=16,
        draws=4,
        operators=("linear",),
    )
    check(found, error=0.05)


@pytest.mark.slow
def test_other_sites_of_stories(stories):
    found = compare(
        stories.model,
        story_texts(stories),
        RelativeGaussian(0.02),
        label_draws=16,
        draws=4,
        operators=EVERY_OTHER,
    )
    check(found, error=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.02, 0.05])
def test_linear_sites_of_the_demo_along_its_questions(demo, scale):
    found = compare(
        demo.model,
        question_texts(demo, 32),
        RelativeGaussian(scale),
        label_draws=16,
        draws=4,
        operators=("linear",),
    )
    check(found, error=0.08)


@pytest.mark.slow
def test_other_sites_of_the_demo_along_its_questions(demo):
    found = compare(
        demo.model,
        question_texts(demo, 32),
        RelativeGaussian(0.02),
        label_draws=16,
        draws=4,
        operators=EVERY_OTHER,
    )
    check(found, error=0.08)


@pytest.mark.slow
def test_the_demo_along_answers_that_it_is_sure_of(demo):
    """Of a few sites: here a few tokens carry the KL, and only many draws of noise find it.

    The clean model gives its own answers 1 - 4e-6 at the middle token. With 4 draws of noise and 16
    questions the measurement is 50 % off, and ratios are 0.5 to 2.
    """
    task = load_task(demo_questions(), 32)
    prompts = encode_task(task, demo.tokenizer, demo.context_length)
    answers = greedy_answers(demo.model, prompts, 80, demo.context_length)
    names = tuple(sample.name for sample in task.samples)
    found = compare(
        demo.model,
        Texts(names, tuple(map(tuple, prompts)), tuple(map(tuple, answers))),
        RelativeGaussian(0.02),
        label_draws=32,
        draws=48,
        operators=("linear",),
        step=10,
    )
    check(found, error=0.1)


def test_a_few_sites_of_the_demo(demo):
    found = compare(
        demo.model,
        question_texts(demo, 12),
        RelativeGaussian(0.02),
        label_draws=16,
        draws=6,
        step=12,
    )
    ratios = found.ratios
    assert spearmanr(found.predicted, found.measured)[0] > 0.9
    assert 0.85 < np.median(ratios) < 1.15
