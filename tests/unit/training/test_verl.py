"""verl's engines under noise, on a stand-in with verl 0.9.1's names and order of calls.

The oracle of what an engine computed is the model in a plain session of `inject`.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from helpers.small_models import small_model
from helpers.training import hooks_of

from noisescope.errors import DoseError, InputError, SelectionError
from noisescope.inject import inject
from noisescope.noise import RelativeGaussian

DATA = (torch.tensor([[5, 9, 11, 3]]), torch.tensor([[7, 8, 2, 4]]))
PLUGIN = "noisescope.training.verl"
ON = {"ENABLED": "1", "SCALE": "0.1", "OPERATORS": "linear", "TRAINING_ONLY": "1", "SEED": "5"}


def build():
    return small_model("llama", num_hidden_layers=2)


def loss(logits):
    return logits.float().cos().mean()


@pytest.fixture
def verl(monkeypatch):
    """Returns a function that imports the stand-in anew, as a worker of these variables would."""
    made = []

    def forget():
        for name in [n for n in sys.modules if n.split(".")[0] == "verl" or n == PLUGIN]:
            monkeypatch.delitem(sys.modules, name)

    def start(by_name=True, **variables):
        forget()
        for name, value in variables.items():
            monkeypatch.setenv(f"VERL_NOISY_OPS_{name}", value)
        if by_name:
            monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", PLUGIN)
        module = importlib.import_module("verl")
        if by_name:
            made.append(sys.modules[PLUGIN])
        return module

    monkeypatch.syspath_prepend(str(Path(__file__).parent / "small_verl"))
    yield start
    for plugin in [*made, sys.modules.get(PLUGIN)]:
        if plugin is not None and plugin.hook is not None:
            plugin.hook.remove()
    for name in [n for n in sys.modules if n.split(".")[0] == "verl" or n == PLUGIN]:
        del sys.modules[name]


def engine_of(kind="FSDPEngine", module="verl.workers.engine", **given):
    engine = getattr(importlib.import_module(module), kind)(build, **given)
    engine.initialize()
    return engine


def plain(draw, seed=5, scale=0.1, **selection):
    with (
        torch.no_grad(),
        inject(build(), RelativeGaussian(scale), seed=seed, draw=draw, **selection) as session,
    ):
        return session.model(input_ids=DATA[0], use_cache=False).logits


def test_an_update_has_noise_that_is_told_of_before_and_after(verl, capsys):
    verl(**ON)
    engine = engine_of()
    told = capsys.readouterr().err.splitlines()
    assert "waiting for verl to build a model: RelativeGaussian(scale=0.1" in told[0]
    assert told[1].startswith("noisescope (rank 3, pid ")
    assert (
        "noise attached to actor LlamaForCausalLM: RelativeGaussian(scale=0.1, rounding='nearest')"
        " on linear; regions embed, 0, 1, norm, head; forward and backward; in the update; seed 5"
    ) in told[1]
    engine.train_batch(DATA, loss)
    first = capsys.readouterr().err
    assert "first update of actor: 15 sites perturbed; forward 100.0% of elements" in first
    assert "; backward " in first and first.count("\n") == 1
    torch.testing.assert_close(engine.ran[0], plain(draw=0, operators="linear"))
    engine.train_batch(DATA, loss)
    assert capsys.readouterr().err == ""
    assert hooks_of(engine.module) == 0


def test_each_step_has_its_draw_and_a_checkpoint_goes_on_with_it(verl, tmp_path):
    verl(**ON)
    engine = engine_of()
    for _ in range(2):
        engine.train_batch(DATA, loss)
    torch.save(engine.optimizer.state_dict(), tmp_path / "optimizer")
    weights = {n: t.clone() for n, t in engine.module.state_dict().items()}
    engine.train_batch(DATA, loss)
    other = engine_of()
    other.module.load_state_dict(weights)
    other.load_checkpoint(tmp_path / "optimizer")
    other.train_batch(DATA, loss)
    assert torch.equal(other.ran[0], engine.ran[4])
    assert not torch.equal(engine.ran[2], engine.ran[0])


def test_training_only_leaves_old_log_probabilities_clean(verl):
    verl(**ON)
    engine = engine_of()
    engine.infer_batch(DATA)
    with torch.no_grad():
        assert torch.equal(engine.ran[0], build()(input_ids=DATA[0], use_cache=False).logits)


def test_without_it_they_meet_the_noise_of_the_coming_update(verl, monkeypatch):
    verl(**(ON | {"TRAINING_ONLY": "0"}))
    engine = engine_of()
    engine.infer_batch(DATA)
    engine.train_batch(DATA, loss)
    torch.testing.assert_close(engine.ran[0], plain(draw=0, operators="linear"))
    torch.testing.assert_close(engine.ran[0], engine.ran[2])


@pytest.mark.parametrize("name", ["workers.engine_workers", "checkpoint_engine.base"])
def test_a_rollout_that_would_be_clean_is_refused(verl, name):
    verl(**(ON | {"TRAINING_ONLY": ""}))
    module = importlib.import_module(f"verl.{name}")
    with pytest.raises(InputError, match="rollout 'vllm' generates in an engine of its own"):
        module.get_rollout_class("vllm")
    verl(**ON)
    assert importlib.import_module(f"verl.{name}").get_rollout_class("vllm") == "vllm async"


@pytest.mark.parametrize(
    ("given", "role"), [({"forward_only": True}, "ref"), ({"model_type": "value_model"}, "critic")]
)
def test_reference_and_critic_are_clean_unless_named_and_say_so(verl, capsys, given, role):
    verl(**ON)
    engine = engine_of(**given)
    line = f"no noise on {role} LlamaForCausalLM: noise is for actor"
    assert line in capsys.readouterr().err
    engine.infer_batch(DATA)
    with torch.no_grad():
        assert torch.equal(engine.ran[0], build()(input_ids=DATA[0], use_cache=False).logits)
    verl(**ON, ROLES="actor,critic,ref")
    engine_of(**given)
    assert f"noise attached to {role}" in capsys.readouterr().err


def test_an_engine_that_noise_was_never_attached_to_may_not_train(verl):
    verl(**ON)
    engine = engine_of("OtherEngine", "verl.workers.engine.other")
    with pytest.raises(DoseError, match="OtherEngine runs without noise: it is attached to FSDP"):
        engine.train_batch(DATA, loss)
    with pytest.raises(DoseError, match="runs without noise"):
        engine.infer_batch(DATA)
    with pytest.raises(InputError, match=r"OwnStepEngine has a train_batch of its own: .* 0\.9\.1"):
        engine_of("OwnStepEngine", "verl.workers.engine.other")


def test_an_update_in_which_no_noise_arrives_is_an_error(verl):
    verl(**(ON | {"OPERATORS": "gelu"}))
    with pytest.raises(SelectionError, match="operator 'gelu' never ran"):
        engine_of().train_batch(DATA, loss)
    verl(**ON)
    with pytest.raises(DoseError, match="the model never ran in it"):
        engine_of().train_batch((), loss)


def test_a_scale_that_rounding_erases_is_an_error(verl):
    verl(**(ON | {"SCALE": "1e-12", "OPERATORS": ""}))
    engine = engine_of()
    with pytest.raises(DoseError, match="no forward noise arrived in the update: rounding erased"):
        engine.train_batch(DATA, loss)


def test_the_core_operators_need_not_all_be_there(verl, capsys):
    """`bmm` is not in this model: without a list of the user's own that is no mistake."""
    verl(**(ON | {"OPERATORS": ""}))
    engine_of().train_batch(DATA, loss)
    assert "sites perturbed" in capsys.readouterr().err


def test_a_plugin_that_comes_after_the_engines_finds_them(verl, monkeypatch):
    """As `external_lib`, which is imported when the configuration of a model is made."""
    verl(by_name=False, **ON)
    engines = importlib.import_module("verl.workers.engine")
    importlib.import_module(PLUGIN)
    engine = engines.FSDPEngine(build)
    engine.initialize()
    engine.train_batch(DATA, loss)
    torch.testing.assert_close(engine.ran[0], plain(draw=0, operators="linear"))


def test_without_the_switch_nothing_is_touched(verl, capsys):
    verl(ENABLED="0", SCALE="0.1")
    engine = engine_of()
    assert "no noise: VERL_NOISY_OPS_ENABLED is not set" in capsys.readouterr().err
    assert not hasattr(type(engine).initialize, "__wrapped__")
    assert sys.modules[PLUGIN].hook is None


@pytest.mark.parametrize(
    ("module", "name"),
    [("workers.engine.base", "BaseEngine"), ("workers.engine_workers", "get_rollout_class")],
)
def test_another_verl_without_these_names_is_refused(verl, monkeypatch, module, name):
    verl(by_name=False, **ON)
    monkeypatch.delattr(importlib.import_module(f"verl.{module}"), name)
    with pytest.raises(InputError, match=rf"verl 0.9.1 has no verl\.{module}\.{name}"):
        importlib.import_module(PLUGIN)


def test_a_selection_that_does_not_fit_the_model_names_the_variables(verl):
    verl(**ON, LAYERS="9")
    with pytest.raises(InputError, match=r"VERL_NOISY_OPS_\*: no layer 9: this model has"):
        engine_of()
