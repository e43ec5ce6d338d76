"""TRL's own trainers, run for a few steps: noise in the update, in the rollout, and on weights."""

import pytest
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from helpers.model_dirs import character_tokenizer
from helpers.small_models import small_model
from helpers.training import hooks_of, weights_of
from transformers.trainer_callback import PrinterCallback

from noisescope.errors import DoseError, InputError, NoisescopeWarning
from noisescope.noise import RelativeGaussian
from noisescope.training import AqnCallback, AqnSchedule, NoiseCallback

trl = pytest.importorskip("trl")
pytestmark = [
    # TRL speaks of gradient checkpointing, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    # Its losses are computed from the weights of the head, and not by it.
    pytest.mark.filterwarnings(
        "ignore:no noise arrived in the head:noisescope.errors.NoisescopeWarning"
    ),
]
NOISE = RelativeGaussian(0.5)
COMMON = {
    "max_steps": 2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    disable_progress_bar()


def grpo(directory, callbacks, **given):
    """Returns a GRPO trainer whose reward notes the answers, and the list that it notes them in."""
    answers = []

    def reward(completions, **columns):
        answers.append(list(completions))
        return [float(len(set(answer))) for answer in completions]

    options = COMMON | {"per_device_train_batch_size": 4, "num_generations": 4}
    options |= {"max_completion_length": 5, "learning_rate": 1e-3}
    trainer = trl.GRPOTrainer(
        model=small_model("llama", num_hidden_layers=2),
        reward_funcs=reward,
        args=trl.GRPOConfig(output_dir=str(directory), **(options | given)),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+1="} for i in range(8)]),
        eval_dataset=Dataset.from_list([{"prompt": "9+1="}]),
        processing_class=character_tokenizer(),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, answers


def figures(trainer, start):
    return [{n: v for n, v in e.items() if n.startswith(start)} for e in trainer.state.log_history]


def test_supervised_training_meets_the_noise(tmp_path):
    callback = NoiseCallback(RelativeGaussian(0.05), operators="linear")
    pairs = [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(4)]
    trainer = trl.SFTTrainer(
        model=small_model("llama", num_hidden_layers=2),
        args=trl.SFTConfig(output_dir=str(tmp_path), max_length=16, **COMMON),
        train_dataset=Dataset.from_list(pairs),
        processing_class=character_tokenizer(),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    with pytest.warns(NoisescopeWarning, match="no noise arrived in the head in the update: the t"):
        trainer.train()
    logged = figures(trainer, "noise/update")[0]
    assert logged["noise/update/forward_relative_l2"] == pytest.approx(0.05, rel=0.1)
    assert logged["noise/update/backward_relative_l2"] == pytest.approx(0.05, rel=0.1)
    # Two layers of seven, twice: checkpointing runs them again, and counts them once.
    assert sum(n["forward"] for n in callback.witness.counts.values()) == 2 * 14
    assert hooks_of(trainer.model) == 0


@pytest.mark.parametrize(
    "during",
    [
        pytest.param("update", marks=pytest.mark.slow),
        pytest.param("rollout", marks=pytest.mark.slow),
        ("update", "rollout"),
    ],
    ids=str,
)
def test_noise_is_in_what_was_asked_for_and_nowhere_else(tmp_path, during):
    clean, clean_answers = grpo(tmp_path, [])
    clean.train()
    callback = NoiseCallback(NOISE, operators="linear", during=during)
    trainer, answers = grpo(tmp_path, [callback])
    trainer.train()
    # The first answers are drawn from the same weights with the same random state.
    assert (answers[0] == clean_answers[0]) == ("rollout" not in during)
    counts = {work: callback.witness_of(work).counts for work in ("update", "rollout")}
    for work, found in counts.items():
        assert bool(found) == (work in during)
        backward = sum(n["backward"] for n in found.values())
        assert (backward > 0) == (work == "update" and work in during)
    head = counts["rollout"].get("lm_head:linear:0", {"forward": 0})
    longest = [max(map(len, batch)) for batch in answers]
    # Of the two only a rollout calls the head: this tells whether they were kept apart.
    assert "lm_head:linear:0" not in counts["update"]
    if "rollout" in during:
        assert head["forward"] == sum(min(5, n + 1) for n in longest)  # a call for each token
    else:
        first = counts["update"]["model.layers.0.mlp.down_proj:linear:0"]
        assert first == {"forward": 2, "backward": 4}  # in two steps
    assert hooks_of(trainer.model) == 0 and "_generate" not in vars(trainer)


def test_old_log_probabilities_meet_the_noise_of_the_update(tmp_path):
    """Were they clean, the first ratio of new to old would not be 1 before anything is learnt."""
    trainer, _ = grpo(tmp_path, [NoiseCallback(NOISE, operators="linear")], num_iterations=2)
    compute, seen = trainer._get_per_token_logps_and_entropies, []

    def noted(*args, **kwargs):
        result = compute(*args, **kwargs)
        seen.append((torch.is_grad_enabled(), result[0].detach()))
        return result

    trainer._get_per_token_logps_and_entropies = noted
    trainer.train()
    assert [has_gradient for has_gradient, _ in seen] == [False, True, True]
    order = [row.argsort(dim=0) for row in (seen[0][1].sum(1), seen[1][1].sum(1))]  # TRL shuffles
    torch.testing.assert_close(seen[0][1][order[0]], seen[1][1][order[1]])


@pytest.mark.slow
def test_rollouts_of_vllm_are_refused(tmp_path):
    trainer, _ = grpo(tmp_path, [NoiseCallback(NOISE, during="rollout")])
    trainer.use_vllm = True
    with pytest.raises(InputError, match="use_vllm=True: vLLM generates with a model of its own"):
        trainer.train()


def test_weights_are_noisy_in_the_rollout_alone_and_decay_by_stages(tmp_path):
    callback = AqnCallback(AqnSchedule(0.4, 0.1, 3), multipliers={"0": 2.0}, seed=1)
    trainer, _ = grpo(tmp_path, [callback], max_steps=6, eval_strategy="steps", eval_steps=6)
    model, inside, outside = trainer.model, [], []
    generate, loss = trainer._generate_single_turn, trainer.compute_loss
    trainer._generate_single_turn = lambda *a, **k: (
        inside.append(weights_of(model)) or generate(*a, **k)
    )
    trainer.compute_loss = lambda *a, **k: outside.append(weights_of(model)) or loss(*a, **k)
    trainer.train()
    sigmas = [e["aqn/sigma"] for e in figures(trainer, "aqn")[:6]]
    assert sigmas == pytest.approx([0, 0, 0.4, 0.4, 0.1, 0.1])
    names = [n for n in inside[0] if "norm" in n]
    for noisy, clean, sigma in zip(inside[:6], outside[:6], sigmas, strict=True):
        for name, weight in clean.items():
            factor = 2 if ".layers.0." in name else 1
            spread = (noisy[name] - weight).std().item()
            expected = sigma * factor if name in names else 0
            assert spread == pytest.approx(expected, rel=0.5), name
    for name, weight in inside[6].items():  # the evaluation's rollout
        assert torch.equal(weight, weights_of(model)[name])
    logged = figures(trainer, "aqn/share")
    assert logged[0] == {} and logged[2]["aqn/share_changed"] > 0.99
    assert "_generate" not in vars(trainer) and "log" not in vars(trainer)


@pytest.mark.slow
def test_an_error_in_a_rollout_leaves_weights_and_hooks_as_they_were(tmp_path):
    callbacks = [AqnCallback(AqnSchedule(0.4, 0.4, 2)), NoiseCallback(NOISE, during="rollout")]
    trainer, _ = grpo(tmp_path, callbacks)
    before = weights_of(trainer.model)

    def fail(*args, **kwargs):
        changed = [n for n, w in weights_of(trainer.model).items() if not torch.equal(w, before[n])]
        raise KeyboardInterrupt(len(changed), hooks_of(trainer.model))

    trainer._generate_single_turn = fail
    callbacks[0].sigma_at = lambda *given: 0.4  # in the first stage too
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert caught.value.args[0] == 5 and caught.value.args[1] > 0
    assert hooks_of(trainer.model) == 0
    for name, weight in before.items():
        assert torch.equal(weights_of(trainer.model)[name], weight)


def test_aqn_needs_rollouts(tmp_path):
    from helpers.training import trainer_of

    trainer = trainer_of(tmp_path, [AqnCallback(AqnSchedule(0.4, 0.1, 3))])
    with pytest.raises(InputError, match="AqnCallback: Trainer generates nothing, and the noise"):
        trainer.train()
    with pytest.raises(InputError, match=r"schedule 0\.1: an AqnSchedule is needed"):
        AqnCallback(0.1)
    trainer, _ = grpo(tmp_path, [AqnCallback(AqnSchedule(0.4, 0.1, 3))])
    trainer._generate = lambda prompts: (_ for _ in ()).throw(AssertionError)
    trainer.training_step = lambda model, inputs, count: torch.zeros(())
    with pytest.raises(DoseError, match="training ended without a rollout, so no weight carried"):
        trainer.train()


def test_epochs_may_restart_the_schedule():
    callback = AqnCallback(AqnSchedule(0.4, 0.1, 3, restarts_each_epoch=True))
    found = [callback.sigma_at(step, 12, 2.0) for step in range(12)]
    assert found == pytest.approx([0, 0, 0.4, 0.4, 0.1, 0.1] * 2)
    once = AqnCallback(AqnSchedule(0.4, 0.1, 3))
    assert [once.sigma_at(step, 12, 2.0) for step in (3, 4, 8)] == pytest.approx([0, 0.4, 0.1])
