"""The avalanche: doses and responses of real models, and a model built to amplify errors."""

from pathlib import Path

import pytest
import torch
import transformers
from helpers.shared import shared_path

from noisescope import (
    LoadedModel,
    RelativeGaussian,
    diagnose_layers,
    diagnose_model,
    fingerprint,
    load_model,
    load_task,
    make_task,
    token_task,
)
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.measure import greedy_answers

WIDTH, LAYERS, VOCABULARY = 64, 12, 96


def random_ids(samples=16, tokens=24):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (samples, tokens), generator=generator)


@torch.no_grad()
def amplifying_model(onset: int | None, gain: float = 1.0):
    """Returns a random GPT-2 whose layers, from one on, amplify error along one direction.

    No layer writes along that direction, so the clean model has nothing there; error has. Two
    neurons, gelu(z) - gelu(-z) = z, read it behind the norm and write it back `gain` times.
    """
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        n_positions=64,
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
        direction = torch.randn(WIDTH)
    direction -= direction.mean()  # a LayerNorm must not see to it
    direction /= direction.norm()
    if onset is None:
        return model
    trunk = model.transformer
    written = [trunk.wte.weight, trunk.wpe.weight]
    for layer in trunk.h:
        for writer in (layer.attn.c_proj, layer.mlp.c_proj):
            written += [writer.weight, writer.bias]
    for weight in written:
        weight -= (weight @ direction)[..., None] * direction
    for layer in trunk.h[onset:]:
        outputs = []
        hook = layer.register_forward_hook(lambda module, args, out: outputs.append(out))  # noqa: B023
        model(input_ids=random_ids())
        hook.remove()
        stream = outputs[0] if isinstance(outputs[0], torch.Tensor) else outputs[0][0]
        size = float(stream.std(dim=-1).mean())
        layer.mlp.c_fc.weight[:, 0], layer.mlp.c_fc.weight[:, 1] = direction, -direction
        layer.mlp.c_fc.bias[:2] = 0
        layer.mlp.c_proj.weight[0] = gain * size * direction
        layer.mlp.c_proj.weight[1] = -gain * size * direction
    return model


def loaded(model) -> LoadedModel:
    return LoadedModel(
        model, None, Path("made"), torch.float32, model.device, fingerprint(model), 64, ()
    )


def texts():
    return make_task([{"prompt_ids": row} for row in random_ids().tolist()], name="random")


@pytest.mark.parametrize("onset", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_the_layer_from_which_on_errors_are_amplified_is_named(onset):
    found = diagnose_layers(
        loaded(amplifying_model(onset)), texts(), RelativeGaussian(0.05), window=4
    ).findings.amplification
    assert found.onset.layer == onset
    assert f"from layer {onset} on" in found.onset.reason
    assert found.factors[onset].low > 1.5
    assert all(factor.mean < 1.1 for factor in found.factors[:onset])


def test_a_model_that_was_not_built_so_has_no_such_layer():
    found = diagnose_layers(
        loaded(amplifying_model(None)), texts(), RelativeGaussian(0.05), window=4
    ).findings.amplification
    assert found.onset.layer is None
    assert all(0.8 < factor.mean < 1.25 for factor in found.factors)


def test_errors_in_a_plain_model_add_and_stay_on_the_line():
    found = diagnose_layers(
        loaded(amplifying_model(None)),
        texts(),
        RelativeGaussian(0.02),
        window=6,
        draws=2,
        scales="auto",
        until="kl=0.01",
    ).findings
    assert found.additivity.outcome == "add"
    whole = found.responses["all layers"]
    assert whole.departure is None or whole.departure.first_off > 0.02
    assert {scale.place for scale in whole.scales} <= {"on", "unknown"}
    assert found.critical.is_bracketed
    assert found.critical.low <= found.critical.estimate <= found.critical.high
    # The line of the prediction meets the loss where injection finds it.
    c = found.predictions["all layers"].kl_nats / 0.02**2
    assert found.critical.low * 0.9 < (0.01 / c) ** 0.5 < found.critical.high * 1.1


@pytest.mark.slow
def test_gpt_nano_sort_has_an_avalanche_and_a_critical_scale():
    nano = load_model(shared_path("models/gpt-nano-sort"), dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 3, (60, 6), generator=generator).tolist()
    task = token_task(prompts, [sorted(prompt) for prompt in prompts])
    found = diagnose_model(
        nano, task, RelativeGaussian(0.2), draws=4, operators="core", until="accuracy=-20%"
    )
    assert found.baseline_accuracy > 0.9
    whole = found.findings.responses["all"]
    assert len(whole.scales) >= 5
    assert whole.departure is not None or whole.reason
    critical = found.findings.critical
    assert critical.low < critical.high
    assert critical.reason


@pytest.mark.slow
def test_stories_and_the_demo_have_doses_responses_and_a_verdict_on_adding():
    stories = load_model(shared_path("models/stories260K"), dtype="float32", device="cpu")
    begins = [[1, n] for n in range(300, 324)]
    rest = greedy_answers(stories.model, begins, 60, 128)
    rows = [[*begin, *answer] for begin, answer in zip(begins, rest, strict=True)]
    told = make_task([{"prompt_ids": row} for row in rows], name="stories")
    demo = load_model(demo_model_dir(), dtype="float32", device="cpu")
    for model, task, scale in (
        (stories, told, 0.05),
        (demo, load_task(demo_questions(), 24), 0.2),
    ):
        found = diagnose_layers(
            model, task, RelativeGaussian(scale), window=2, draws=4, scales="auto", until="kl=0.1"
        ).findings
        assert found.additivity.outcome in ("add", "compound", "cancel", "inconclusive")
        assert len(found.responses) >= 3
        assert found.critical.is_bracketed
        assert found.critical.low < found.critical.estimate < found.critical.high
