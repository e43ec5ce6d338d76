"""The users' plan, steps 1 to 6, on small models: their calls, in their order."""

import pytest
import torch
from helpers.shared import shared_path
from helpers.small_models import small_model

from noisescope.noisy_ops import (
    disable_noisy_ops,
    enable_noisy_ops,
    get_layer_injection_stats,
    noisy_ops_context,
    register_layer_hooks,
    reset_layer_injection_stats,
    set_layer_window,
    set_selective_layers,
    set_selective_operators,
)

# Operators that a Qwen2 runs in its layers, and how often in each.
RUNS_PER_LAYER = {"linear": 7, "matmul": 2, "softmax": 1, "silu": 1, "rms_norm": 2}


class Case:
    """A model, its tokens, and how far its logits move."""

    def __init__(self, model, ids, layers):
        self.model, self.ids, self.layers = model, ids, layers
        self.clean = self.run()

    def run(self):
        with torch.no_grad():
            return self.model(input_ids=self.ids).logits

    def degradation(self):
        """KL of one noisy run against the clean one, in nats per token."""
        noisy, clean = self.run().log_softmax(-1), self.clean.log_softmax(-1)
        return float((clean.exp() * (clean - noisy)).sum(-1).mean())


@pytest.fixture(params=["qwen2", "stories260K"])
def case(request):
    if request.param == "qwen2":
        model = small_model("qwen2", num_hidden_layers=6)
        return Case(model, torch.arange(1, 13)[None], 6)
    transformers = pytest.importorskip("transformers")
    path = shared_path("models/stories260K")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids = tokenizer("What is 2+2?", return_tensors="pt").input_ids
    return Case(model, ids, model.config.num_hidden_layers)


def forward_counts():
    return {layer: n["forward"] for layer, n in get_layer_injection_stats().items()}


def test_step_1_hooks(case):
    assert register_layer_hooks(case.model) == case.layers
    enable_noisy_ops(error_scale=0.05, error_type="relative_gaussian")
    noisy = case.run()
    stats = get_layer_injection_stats()
    counts = disable_noisy_ops()
    # Seven projections and two products of attention in each layer; the head is in no layer.
    expected = {n: {"forward": 9, "backward": 0} for n in range(case.layers)}
    assert stats == expected | {"unknown": {"forward": 1, "backward": 0}}
    assert counts["forward"] == 9 * case.layers + 1
    assert not torch.equal(noisy, case.clean)
    assert torch.equal(case.run(), case.clean)


def test_step_2_selective_layers(case):
    register_layer_hooks(case.model)
    set_selective_layers([0, 2])
    reset_layer_injection_stats()
    with noisy_ops_context(error_scale=0.05):
        case.run()
    assert forward_counts() == {0: 9, 2: 9}


def test_step_3_groups(case):
    register_layer_hooks(case.model)
    middle = case.layers // 2
    groups = {"early": range(0, 2), "middle": range(middle, middle + 1), "late": [case.layers - 1]}
    found = {}
    for name, layers in groups.items():
        set_selective_layers(list(layers))
        reset_layer_injection_stats()
        enable_noisy_ops(error_scale=0.05)
        found[name] = case.degradation()
        disable_noisy_ops()
        assert set(forward_counts()) == set(layers)
    set_selective_layers(None)
    assert len(set(found.values())) == 3 and min(found.values()) > 0
    assert case.degradation() == 0


def test_step_4_windows(case):
    register_layer_hooks(case.model)
    enable_noisy_ops(error_scale=0.05)
    profile = {}
    for start in range(0, case.layers, 2):
        set_layer_window(start, start + 2)
        reset_layer_injection_stats()
        profile[start] = case.degradation()
        window = range(start, min(start + 2, case.layers))
        assert forward_counts() == dict.fromkeys(window, 9)
    assert min(profile.values()) > 0


def test_step_5_core_operators_against_all(case):
    register_layer_hooks(case.model)
    counts = {}
    for all_ops in (False, True):
        with noisy_ops_context(0.05, all_ops_mode=all_ops):
            case.run()
        counts[all_ops] = forward_counts()
        reset_layer_injection_stats()
    assert counts[False] == dict.fromkeys(range(case.layers), 9) | {"unknown": 1}
    assert counts[True] == dict.fromkeys(range(case.layers), 13) | {"unknown": 2}


@pytest.mark.parametrize(("operator", "runs"), RUNS_PER_LAYER.items())
def test_step_6_each_operator_alone(case, operator, runs):
    register_layer_hooks(case.model)
    set_selective_operators([operator])
    enable_noisy_ops(error_scale=0.05, all_ops_mode=True)
    assert case.degradation() > 0
    counts = forward_counts()
    outside = counts.pop("unknown", 0)
    assert counts == dict.fromkeys(range(case.layers), runs)
    assert outside == (operator in ("linear", "rms_norm"))


# A script as its users have it; the import line alone is changed.

SCRIPT = """
import torch
from verl.utils.noisy_ops import (
    enable_noisy_ops,
    disable_noisy_ops,
    set_selective_layers,
    register_layer_hooks,
    get_layer_injection_stats,
    reset_layer_injection_stats,
)

num_hooks = register_layer_hooks(model)
print(f"Registered {num_hooks} layer hooks")
disable_noisy_ops()
set_selective_layers(None)
baseline = evaluate(model)

sensitivity = {}
window_size = 3
for start in range(0, num_hooks, window_size):
    window = list(range(start, start + window_size))
    set_selective_layers(window)
    reset_layer_injection_stats()
    enable_noisy_ops(error_scale=0.05, error_type='relative_gaussian')
    accuracy = evaluate(model)
    stats = get_layer_injection_stats()
    total = sum(s['forward'] + s['backward'] for s in stats.values())
    sensitivity[f"L{start}-{start + window_size - 1}"] = {
        'layers': window,
        'accuracy': accuracy,
        'degradation': (baseline - accuracy) / baseline,
        'injection_stats': {k: v['forward'] + v['backward'] for k, v in stats.items()},
        'total': total,
    }
final = disable_noisy_ops()
avalanche_point = max(sensitivity, key=lambda k: sensitivity[k]['degradation'])
"""


def test_a_script_runs_when_its_import_line_changes(capsys):
    model = small_model("qwen2", num_hidden_layers=7)
    case = Case(model, torch.arange(1, 13)[None], 7)
    names = {"model": model, "evaluate": lambda _: 1 - min(0.5, case.degradation())}
    exec(SCRIPT.replace("verl.utils.noisy_ops", "noisescope.noisy_ops"), names)
    assert "Registered 7 layer hooks" in capsys.readouterr().out
    found = names["sensitivity"]
    assert list(found) == ["L0-2", "L3-5", "L6-8"] and names["avalanche_point"] in found
    assert [w["injection_stats"] for w in found.values()] == [
        {0: 9, 1: 9, 2: 9},
        {3: 9, 4: 9, 5: 9},
        {6: 9},
    ]
    assert [w["total"] for w in found.values()] == [27, 27, 9]
    assert all(0 < w["degradation"] <= 0.5 for w in found.values())
    assert names["final"]["forward"] == names["final"]["unknown_forward"] == 9
