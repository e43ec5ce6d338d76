"""Regions of real architectures: noise in one changes nothing before it, and all after it."""

import pytest
import torch
from helpers.injection import OneOperator, fired
from helpers.small_models import FAMILIES, small_backbone, small_model
from torch import nn

from noisescope.errors import SelectionError
from noisescope.inject import inject
from noisescope.noise import RelativeGaussian

IDS = torch.tensor([[5, 9, 11, 3, 17], [7, 7, 8, 2, 40]])
MIXTURES = ("mixtral", "qwen3_moe")


def hidden_states(model, **options):
    """Outputs of embedding and of every layer, and the logits, without the model's own hooks."""
    seen = []
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    handles = [layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))]
    for layer in layers:
        handles.append(
            layer.register_forward_hook(
                lambda m, args, out: seen.append((out if torch.is_tensor(out) else out[0]).clone())
            )
        )
    try:
        with torch.no_grad():
            logits = model(input_ids=IDS, **options).logits
    finally:
        for handle in handles:
            handle.remove()
    return [*seen, logits]


def changed(model, layers, **selection):
    clean = hidden_states(model)
    with inject(model, RelativeGaussian(0.05), layers, **selection) as session:
        noisy = hidden_states(model)
    return [not torch.equal(a, b) for a, b in zip(clean, noisy, strict=True)], session


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_noise_in_a_layer_changes_only_what_comes_after(family, layer):
    found, session = changed(small_model(family), layer)
    assert found == [False] * (layer + 1) + [True] * (4 - layer)
    assert {r.site.region for r in session.records} == {str(layer)}


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_in_the_embedding_changes_everything(family):
    found, session = changed(small_model(family), "embed")
    assert found == [True] * 5
    assert {r.site.operator for r in session.records} <= {"embedding", "layer_norm"}


@pytest.mark.parametrize("region", ["norm", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_final_norm_and_head_are_charged_to_no_layer(family, region):
    model = small_model(family)
    if family == "bert" and region == "norm":
        with pytest.raises(SelectionError, match="no layer norm: this model has layers 0 to 2"):
            inject(model, RelativeGaussian(0.05), region)
        return
    found, session = changed(model, region)
    assert found == [False] * 4 + [True]
    operators = {r.site.operator for r in session.records}
    assert operators <= ({"rms_norm", "layer_norm"} if region == "norm" else
                         {"linear", "gelu", "layer_norm"})  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_a_bare_backbone_has_the_same_sites_under_shorter_names(family):
    whole, bare = small_model(family), small_backbone(family)
    with torch.no_grad():
        with inject(whole, RelativeGaussian(0.05), [0, 1, 2]) as one:
            whole(input_ids=IDS)
        with inject(bare, RelativeGaussian(0.05), [0, 1, 2]) as other:
            bare(input_ids=IDS)
    prefix = next(iter(one.counts)).removesuffix(next(iter(other.counts)))
    assert prefix.endswith(".")
    assert list(one.counts) == [prefix + name for name in other.counts]


def test_the_backbone_of_a_whole_model_may_be_called_by_itself():
    model = small_model("llama")
    with torch.no_grad():
        with inject(model, RelativeGaussian(0.05), 1):
            whole = model(input_ids=IDS).logits
        with inject(model, RelativeGaussian(0.05), 1) as session:
            part = model.lm_head(model.model(input_ids=IDS)[0])
    assert torch.equal(part, whole)
    assert {line.rows for line in session.coverage()} == {"token"}


def test_a_wrapper_that_takes_no_tensor_reads_the_tokens_of_the_model_inside():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm = small_model("llama")

        def forward(self, text):
            return self.lm(input_ids=torch.tensor([[ord(c) % 60 for c in t] for t in text]))

    model = Wrapper()
    with torch.no_grad(), inject(model, RelativeGaussian(0.05), 1) as session:
        model(["abcd", "efgh"])
    assert {line.rows for line in session.coverage()} == {"token"}
    assert all(name.startswith("lm.model.layers.1.") for name in session.counts)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_router_and_experts_are_sites_whatever_runs_the_experts(family, implementation):
    model = small_model(family, experts_implementation=implementation)
    with torch.no_grad(), inject(model, RelativeGaussian(0.05), 0) as session:
        model(input_ids=IDS)
    records = [r for r in session.records if ".experts" in r.site.module]
    products = [r for r in records if r.site.operator in ("linear", "bmm")]
    assert len(products) >= 2
    assert all(r.forward == r.seen for r in records)
    assert {r.rows for r in records} == {"row"}
    router = [r for r in session.records if r.site.module.endswith(".gate")]
    assert {r.site.operator for r in router} == {"linear", "softmax"}
    assert {r.rows for r in router} == {"token"}


@pytest.mark.parametrize("family", MIXTURES)
def test_the_router_can_be_selected_alone(family):
    found, session = changed(small_model(family), 1, modules="mlp.gate", operators="linear")
    assert list(fired(session)) == ["model.layers.1.mlp.gate:linear:0"]
    assert found == [False, False, True, True, True]


class Pieces(nn.Module):
    """A model whose layers are lists that never run themselves, with a norm shared by all."""

    def __init__(self):
        super().__init__()
        shared = OneOperator(nn.LayerNorm(8))
        self.embed_tokens = nn.Embedding(60, 8)
        self.layers = nn.ModuleList(nn.ModuleList([shared, nn.Linear(8, 8)]) for _ in range(2))

    def forward(self, input_ids):
        hidden = self.embed_tokens(input_ids)
        for norm, linear in self.layers:
            hidden = hidden + linear(norm(hidden))
        return hidden


def test_layers_that_are_lists_are_entered_by_their_parts():
    torch.manual_seed(0)
    model = Pieces()
    with inject(model, RelativeGaussian(0.1), 1, "linear") as session:
        model(IDS)
    assert fired(session) == {"layers.1.1:linear:0": 1}


def test_a_module_shared_by_layers_belongs_to_the_region_that_runs():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(60, 8)
            shared = nn.Linear(8, 8)
            self.layers = nn.ModuleList(OneOperator(shared) for _ in range(2))

        def forward(self, input_ids):
            hidden = self.embed_tokens(input_ids)
            for layer in self.layers:
                hidden = layer(hidden)
            return hidden

    model = Shared()
    with inject(model, RelativeGaussian(0.1), [0, 1]) as session:
        model(IDS)
    assert fired(session) == {"layers.0.op:linear:0": 1, "layers.1.op:linear:0": 1}
    with inject(model, RelativeGaussian(0.1), 1) as session:
        model(IDS)
    assert fired(session) == {"layers.1.op:linear:0": 1}


def test_a_model_without_layers_is_one_region():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with inject(model, RelativeGaussian(0.1)) as session:
        model(torch.ones(2, 4))
    assert {r.site.region for r in session.records} == {"model"}
    assert list(session.counts) == ["0:linear:0", "1:relu:0"]
    assert {line.rows for line in session.coverage()} == {"row"}


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_0_is_clean_to_the_last_bit_and_counts_as_noise_does(family):
    def run(scale):
        model = small_model(family)
        if scale is None:
            logits, counts = model(input_ids=IDS).logits, None
            logits.sum().backward()
        else:
            phases = ("forward", "backward")
            with inject(model, RelativeGaussian(scale), phases=phases) as session:
                logits = model(input_ids=IDS).logits
                logits.sum().backward()
            counts = session.counts
        return logits, [p.grad for p in model.parameters() if p.grad is not None], counts

    clean, clean_gradients, _ = run(None)
    null, gradients, counts = run(0.0)
    assert torch.equal(null, clean)
    assert all(torch.equal(a, b) for a, b in zip(gradients, clean_gradients, strict=True))
    assert counts == run(0.05)[2]
