"""Which linear modules share a format, which stay as they are, and how many weights there are."""

import pytest
import torch
from helpers.small_models import small_model
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from noisescope.inject.probe import list_sites
from noisescope.models.weight_groups import find_weight_groups, weights_of


def running(model):
    records = list_sites(model, [5, 9, 11, 3, 8, 20])
    return [r.site.module for r in records if r.site.operator == "linear"]


def groups_of(family, keep=(), **overrides):
    model = small_model(family, **overrides)
    return find_weight_groups(model, running(model), keep), model


def by_name(found):
    return {group.name: group for group in found.groups}


def test_engines_run_q_k_v_and_gate_up_as_one():
    found, _ = groups_of("llama")
    layer = "model.layers.1"
    names = [
        f"{layer}.self_attn.q_proj+k_proj+v_proj",
        f"{layer}.self_attn.o_proj",
        f"{layer}.mlp.gate_proj+up_proj",
        f"{layer}.mlp.down_proj",
    ]
    assert [g.name for g in found.groups if g.name.startswith(layer)] == names
    groups = by_name(found)
    attention = groups[names[0]]
    assert attention.modules == tuple(f"{layer}.self_attn.{x}_proj" for x in "qkv")
    assert attention.shapes == ((32, 32), (16, 32), (16, 32))
    assert groups[names[3]].shapes == ((32, 48),)
    assert groups["lm_head"].modules == ("lm_head",) and found.kept == {}
    assert len(found.bound) == 6 and attention.modules in found.bound
    assert [g.name for g in found.groups][-1] == "lm_head"  # in running order


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt_neox", "opt", "bert"])
def test_every_weight_of_a_linear_module_is_counted_once(family):
    found, model = groups_of(family)
    embedding = model.get_input_embeddings().weight
    own = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    expected = sum(w.numel() for w in own if w is not embedding)
    assert sum(group.weights for group in found.groups) == expected
    modules = [m for group in found.groups for m in group.modules]
    assert len(modules) == len(set(modules)) and not set(modules) & set(found.kept)
    assert set(modules) | set(found.kept) == set(running(model))
    assert all(g.active_share == 1 for g in found.groups)


def test_bert_binds_query_key_and_value():
    found, _ = groups_of("bert")
    assert "bert.encoder.layer.0.attention.self.query+key+value" in by_name(found)


def test_gpt2_has_its_outputs_last():
    found, model = groups_of("gpt2")
    groups = by_name(found)
    assert groups["transformer.h.0.attn.c_attn"].shapes == ((96, 32),)
    assert groups["transformer.h.0.mlp.c_proj"].shapes == ((32, 128),)
    assert found.kept == {"lm_head": "its weight is that of the embedding"}
    own = [m.weight for m in model.modules() if isinstance(m, Conv1D)]
    assert sum(g.weights for g in found.groups) == sum(w.numel() for w in own)
    for module in model.modules():
        if isinstance(module, Conv1D):
            assert weights_of(module) == [(module.weight, -2)]


def test_a_head_of_its_own_is_offered_and_a_tied_one_kept():
    found, _ = groups_of("qwen2")
    assert found.kept == {"lm_head": "its weight is that of the embedding"}
    assert "lm_head" not in by_name(found)
    found, _ = groups_of("qwen2", tie_word_embeddings=False)
    assert found.kept == {} and by_name(found)["lm_head"].shapes == ((64, 32),)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize(("family", "width"), [("mixtral", 48), ("qwen3_moe", 16)])
def test_experts_are_one_group_and_routers_are_kept(family, width, experts):
    found, model = groups_of(family, experts_implementation=experts)
    groups = by_name(found)
    group = groups["model.layers.0.mlp.experts"]
    assert group.modules == ("model.layers.0.mlp.experts",)
    assert group.shapes == ((2 * width, 32),) * 4 + ((32, width),) * 4
    held = model.model.layers[0].mlp.experts
    assert group.weights == sum(p.numel() for p in held.parameters())
    assert group.active_share == 0.5
    assert found.kept == {f"model.layers.{n}.mlp.gate": "a router" for n in range(3)}
    assert all(g.active_share == 1 for n, g in groups.items() if "experts" not in n)
    # One group of a single module binds nothing.
    assert {len(b) for b in found.bound} == {3}


class _Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 6), nn.Linear(8, 6)
        self.down_proj = nn.Linear(6, 8)


class _Mixture(nn.Module):
    """Experts as modules of their own, three of four of them run."""

    def __init__(self, **fields):
        super().__init__()
        self.config = PretrainedConfig(**fields)
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(_Expert() for _ in range(4))
        self.shared_experts = _Expert()


def test_experts_that_are_modules_are_one_group_too():
    model = _Mixture(n_routed_experts=4, num_experts_per_tok=1)
    ran = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "experts.3" not in n]
    found = find_weight_groups(model, ran)
    groups = by_name(found)
    assert list(groups) == [
        "experts",
        "shared_experts.gate_proj+up_proj",
        "shared_experts.down_proj",
    ]
    assert len(groups["experts"].modules) == 9 and groups["experts"].active_share == 0.25
    assert found.kept == {"gate": "a router"}
    assert len({group.name for group in found.groups}) == len(found.groups)
    unknown = find_weight_groups(_Mixture(), ran)
    assert by_name(unknown)["experts"].active_share == 1


def test_biases_of_experts_are_no_weights():
    class Experts(nn.Module):
        is_transposed = True

        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(4, 8, 12))
            self.gate_up_proj_bias = nn.Parameter(torch.zeros(4, 12))

    model = nn.ModuleDict({"experts": Experts()})
    (group,) = find_weight_groups(model, ["experts"]).groups
    assert group.shapes == ((12, 8),) * 4 and group.weights == 4 * 8 * 12


def test_a_module_without_weights_of_its_own_is_kept():
    model = nn.ModuleDict({"rope": nn.Identity(), "up": nn.Linear(4, 4)})
    found = find_weight_groups(model, ["rope", "up", "up"])
    assert found.kept == {"rope": "its weights are not its own"}
    assert [g.name for g in found.groups] == ["up"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("lm_head", ["lm_head"]),
        ("mlp.down_proj", [f"model.layers.{n}.mlp.down_proj" for n in range(3)]),
        ("model.layers.1.self_attn.o_proj", ["model.layers.1.self_attn.o_proj"]),
        ("*.2.mlp.*", [f"model.layers.2.mlp.{x}_proj" for x in ("gate", "up", "down")]),
        ("proj", []),
        ("down*", []),
    ],
)
def test_patterns_name_what_is_kept(pattern, names):
    found, _ = groups_of("llama", keep=[pattern])
    assert found.kept == dict.fromkeys(names, f"named by {pattern!r}")
    assert not set(names) & {m for g in found.groups for m in g.modules}


def test_what_runs_as_one_is_kept_as_one():
    found, _ = groups_of("llama", keep=["*.1.self_attn.q_proj", "*.up_proj"])
    attention = "model.layers.1.self_attn"
    assert found.kept[f"{attention}.q_proj"] == "named by '*.1.self_attn.q_proj'"
    for name in ("k_proj", "v_proj"):
        assert found.kept[f"{attention}.{name}"] == f"runs as one with {attention}.q_proj"
    assert (
        found.kept["model.layers.0.mlp.gate_proj"] == "runs as one with model.layers.0.mlp.up_proj"
    )
    names = set(by_name(found))
    assert f"{attention}.o_proj" in names and not any(
        "k_proj+v_proj" == n[-13:] for n in names if ".1." in n
    )
    assert not any("gate_proj" in n for n in names)
