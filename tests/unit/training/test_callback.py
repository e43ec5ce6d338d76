"""Noise inside the steps of a real Trainer; the oracle is a step written out with `inject`."""

import logging

import pytest
import torch
from helpers.small_models import small_model
from helpers.training import hooks_of, rows, trainer_of, weights_of
from transformers import TrainerCallback, TrainerControl, TrainerState

from noisescope.errors import DoseError, InputError, SelectionError
from noisescope.inject import inject
from noisescope.noise import RelativeGaussian
from noisescope.training import NoiseCallback

NOISE = RelativeGaussian(0.05)
BOTH = ("forward", "backward")
PLAIN = {"operators": ("linear", "silu")}


def batch_of(data):
    return {name: torch.stack([row[name] for row in data]) for name in ("input_ids", "labels")}


def stepped(model, session, data, rate=0.1):
    """Weights after one step of plain gradient descent inside a session."""
    model.train()
    with session:
        model(**batch_of(data)).loss.backward()
    return {n: p.detach() - rate * p.grad for n, p in model.named_parameters()}


def assert_close(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("phases", ["forward", "backward", BOTH])
def test_a_step_is_one_inside_a_session_of_inject(tmp_path, phases):
    data = rows(2)
    callback = NoiseCallback(NOISE, phases=phases, seed=3, **PLAIN)
    trainer = trainer_of(tmp_path, [callback], data=data, max_steps=1)
    model = small_model("llama", num_hidden_layers=2)
    trainer.train()
    session = inject(model, NOISE, phases=phases, seed=3, **PLAIN)
    assert_close(weights_of(trainer.model), stepped(model, session, data))
    assert callback.witness.counts == session.counts
    assert hooks_of(trainer.model) == 0 and "training_step" not in vars(trainer)


def test_each_optimizer_step_has_its_own_draw(tmp_path):
    """The same two samples again and again, no learning: only the draw can change the loss."""
    callback = NoiseCallback(NOISE, draw=2**32 - 1, **PLAIN)
    trainer = trainer_of(
        tmp_path, [callback], data=rows(2), max_steps=3, learning_rate=0.0, num_train_epochs=3
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model = small_model("llama", num_hidden_layers=2).train()
    for loss, draw in zip(losses, (2**32 - 1, 0, 1), strict=True):
        with torch.no_grad(), inject(model, NOISE, draw=draw, **PLAIN):
            assert loss == pytest.approx(model(**batch_of(rows(2))).loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "activation_checkpointing": True},
    ],
    ids=["in two micro-batches", "with checkpointing"],
)
def test_how_a_step_is_computed_does_not_change_its_noise(tmp_path, given):
    found = []
    for options in ({"per_device_train_batch_size": 4}, given):
        callback = NoiseCallback(NOISE, phases="forward", **PLAIN)
        trainer = trainer_of(tmp_path, [callback], data=rows(8), **options)
        trainer.train()
        found.append(weights_of(trainer.model))
    assert_close(found[1], found[0])


def test_under_autocast_the_noise_is_on_bfloat16(tmp_path):
    callback = NoiseCallback(NOISE, **PLAIN)
    trainer = trainer_of(tmp_path, [callback], bf16=True)
    trainer.train()
    assert 0.5 < callback.dose().share_changed < 0.99  # rounding erases some; in float32 none
    assert callback.dose("backward").share_changed > 0.5


def test_evaluation_is_clean_unless_asked(tmp_path):
    losses = {}
    for during in ("update", ("update", "evaluation")):
        callback = NoiseCallback(NOISE, during=during, **PLAIN)
        trainer = trainer_of(tmp_path, [callback], eval_strategy="steps", eval_steps=2)
        trainer.train()
        losses[during] = next(e for e in trainer.state.log_history if "eval_loss" in e)
        clean = trainer.evaluate()["eval_loss"]  # after training nothing is noisy
        assert (losses[during]["eval_loss"] == clean) == (during == "update")
    logged = losses["update", "evaluation"]
    assert logged["noise/evaluation/forward_relative_l2"] == pytest.approx(0.05, rel=0.1)
    assert not [name for name in losses["update"] if name.startswith("noise")]


def test_the_dose_joins_each_log(tmp_path):
    callback = NoiseCallback(NOISE, **PLAIN)
    trainer = trainer_of(tmp_path, [callback], max_steps=3)
    trainer.train()
    logs = [e for e in trainer.state.log_history if "loss" in e]
    assert len(logs) == 3
    for entry in logs:
        for phase in BOTH:
            assert entry[f"noise/update/{phase}_relative_l2"] == pytest.approx(0.05, rel=0.1)
        assert entry["noise/update/forward_share_changed"] == pytest.approx(1, abs=0.01)
    whole = callback.witness.counts["model.layers.0.self_attn.q_proj:linear:0"]
    assert whole == {"forward": 3, "backward": 6}


class Stop(TrainerCallback):
    """Fails at an event of a step."""

    def __init__(self, event, error):
        def fail(*args, **kwargs):
            raise error

        setattr(self, event, fail)


@pytest.mark.parametrize("event", ["on_pre_optimizer_step", "on_substep_end", "on_log"])
def test_an_error_in_training_leaves_the_model_as_it_was(tmp_path, event):
    given = {"gradient_accumulation_steps": 2, "data": rows(8)}
    trainer = trainer_of(
        tmp_path, [NoiseCallback(NOISE), Stop(event, KeyboardInterrupt())], **given
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert hooks_of(trainer.model) == 0


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_an_error_inside_the_model_leaves_it_as_it_was(tmp_path, place):
    trainer = trainer_of(tmp_path, [NoiseCallback(NOISE)])

    def fail(*args):
        raise KeyboardInterrupt

    layer = trainer.model.model.layers[1]
    handle = (
        layer.register_forward_hook(fail)
        if place == "forward"
        else layer.mlp.down_proj.weight.register_hook(fail)
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    handle.remove()
    assert hooks_of(trainer.model) == 0
    trainer.train()  # and the same trainer and callback train again
    assert hooks_of(trainer.model) == 0


def test_a_resumed_run_meets_the_noise_it_would_have_met(tmp_path):
    data = rows(12)
    whole = trainer_of(tmp_path / "a", [NoiseCallback(NOISE, **PLAIN)], data=data, max_steps=4)
    whole.train()
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "data": data}
    stop = Stop("on_save", KeyboardInterrupt())
    begun = trainer_of(tmp_path / "b", [NoiseCallback(NOISE, **PLAIN), stop], **saved)
    with pytest.raises(KeyboardInterrupt):
        begun.train()
    resumed = trainer_of(tmp_path / "b", [NoiseCallback(NOISE, **PLAIN)], **saved)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in weights_of(whole.model).items():
        assert torch.equal(weights_of(resumed.model)[name], weight), name


def test_no_noise_after_the_first_step_is_an_error(tmp_path):
    trainer = trainer_of(tmp_path, [NoiseCallback(NOISE, operators="gelu")])
    with pytest.raises(SelectionError, match="operator 'gelu' never ran in the selection"):
        trainer.train()
    assert trainer.state.global_step == 1 and hooks_of(trainer.model) == 0
    trainer = trainer_of(tmp_path, [NoiseCallback(RelativeGaussian(1e-12), operators="linear")])
    with pytest.raises(DoseError, match="no forward noise arrived: rounding erased all of it"):
        trainer.train()


def test_training_something_else_than_the_model_is_an_error(tmp_path):
    trainer = trainer_of(tmp_path, [NoiseCallback(NOISE)])
    other = small_model("llama", num_hidden_layers=2)
    trainer.compute_loss = lambda model, inputs, **_: other(**inputs).loss
    with pytest.raises(DoseError, match="no noise arrived in the update: the model never ran in"):
        trainer.train()


def test_what_was_attached_is_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "noisescope"):
        trainer_of(tmp_path, [NoiseCallback(NOISE, layers=[0, "norm"])], max_steps=1).train()
    assert (
        "noise attached to LlamaForCausalLM: RelativeGaussian(scale=0.05, rounding='nearest') on "
        "update, forward and backward, regions 0, norm, seed 0"
    ) in caplog.messages


def test_two_callbacks_add_up_and_both_let_go(tmp_path):
    data = rows(2)
    seeds = (1, 2)
    callbacks = [NoiseCallback(NOISE, seed=seed, **PLAIN) for seed in seeds]
    trainer = trainer_of(tmp_path, callbacks, data=data, max_steps=1)
    trainer.train()
    model = small_model("llama", num_hidden_layers=2)
    inner, outer = (inject(model, NOISE, phases=BOTH, seed=seed, **PLAIN) for seed in seeds)
    with outer:
        expected = stepped(model, inner, data)
    assert_close(weights_of(trainer.model), expected)
    assert "training_step" not in vars(trainer) and "log" not in vars(trainer)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"during": "updates"}, InputError, "during 'updates': .* did you mean 'update'"),
        ({"during": ()}, InputError, "name at least one of 'update', 'rollout'"),
        ({"during": "rollout", "phases": "backward"}, InputError, "no gradient flows there"),
        ({"seed": -1}, InputError, "seed -1: an integer"),
        ({"draw": 2**32}, InputError, "draw 4294967296: an integer"),
        ({"phases": "sideways"}, SelectionError, "unknown phase 'sideways'"),
        ({"operators": "linaer"}, SelectionError, "did you mean 'linear'"),
        ({"error_model": 0.1}, InputError, "error model 0.1: an ErrorModel is needed"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(given, error, said):
    with pytest.raises(error, match=said):
        NoiseCallback(given.pop("error_model", NOISE), **given)


def test_a_trainer_that_makes_no_rollouts_cannot_have_noisy_ones(tmp_path):
    trainer = trainer_of(tmp_path, [NoiseCallback(NOISE, during="rollout")])
    with pytest.raises(InputError, match="during='rollout': Trainer generates nothing; use it wit"):
        trainer.train()
    trainer = trainer_of(tmp_path, [NoiseCallback(NOISE, layers=7)])
    with pytest.raises(SelectionError, match="no layer 7: this model has layers 0 to 1"):
        trainer.train()


def test_a_callback_that_no_trainer_calls_says_so():
    with pytest.raises(InputError, match="NoiseCallback was called outside a transformers Trainer"):
        NoiseCallback(NOISE).on_train_begin(None, TrainerState(), TrainerControl())
