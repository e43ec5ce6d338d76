"""Gradient checkpointing runs layers twice: noise, gradients and counts are those of one run."""

import pytest
import torch
from helpers.injection import OneOperator
from helpers.small_models import small_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from noisescope.inject import inject
from noisescope.noise import RelativeGaussian

KINDS = ("reentrant", "not reentrant")
BATCHES = (torch.tensor([[5, 9, 11, 3], [7, 7, 8, 2]]), torch.tensor([[30, 31, 32, 33]]))


def trained(kind, error_model, batches=BATCHES[:1], family="llama", **selection):
    """Gradients and session after forwards over all batches and then one backward."""
    model = small_model(family)
    if kind is not None:
        options = {"use_reentrant": kind == "reentrant"}
        model.activation_checkpointing_enable(options)
        model.enable_input_require_grads()
    model.train()
    with inject(model, error_model, **selection) as session:
        logits = [model(input_ids=b, use_cache=False).logits for b in batches]
        sum(x.cos().sum() for x in logits).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return [x.detach() for x in logits], gradients, session


@pytest.mark.parametrize("batches", [BATCHES[:1], BATCHES], ids=["one", "two forwards"])
@pytest.mark.parametrize("phases", ["forward", "backward", ("forward", "backward")])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_neither_noise_nor_gradients_nor_counts(kind, phases, batches):
    error_model = RelativeGaussian(0.05)
    plain, plain_gradients, one = trained(None, error_model, batches, phases=phases)
    logits, gradients, other = trained(kind, error_model, batches, phases=phases)
    torch.testing.assert_close(logits, plain)
    assert gradients.keys() == plain_gradients.keys()
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-5)
    assert other.counts == one.counts
    for phase in one.selection.phases:
        assert other.dose(phase).elements == one.dose(phase).elements
        assert other.dose(phase).relative_l2 == pytest.approx(one.dose(phase).relative_l2)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "phi3", "gpt_neox", "qwen3_moe"])
def test_checkpointing_changes_nothing_in_other_families(family):
    options = {"batches": BATCHES, "family": family, "phases": ("forward", "backward")}
    plain, plain_gradients, one = trained(None, RelativeGaussian(0.05), **options)
    logits, gradients, other = trained("not reentrant", RelativeGaussian(0.05), **options)
    torch.testing.assert_close(logits, plain)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-4)
    assert other.counts == one.counts


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_scale_0_leaves_outputs_and_gradients_to_the_last_bit(kind):
    phases = ("forward", "backward")
    logits, gradients, _ = trained(kind, RelativeGaussian(0.0), phases=phases)
    model = small_model("llama").train()
    if kind is not None:
        options = {"use_reentrant": kind == "reentrant"}
        model.activation_checkpointing_enable(options)
        model.enable_input_require_grads()
    clean = model(input_ids=BATCHES[0], use_cache=False).logits
    clean.cos().sum().backward()
    assert torch.equal(logits[0], clean)
    for name, parameter in model.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name


class Wrapper(nn.Module):
    """A layer is called by it, as by FSDP of version 1; a checkpoint runs what is inside."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module

    def forward(self, *args, **kwargs):
        return self._fsdp_wrapped_module(*args, **kwargs)


def accumulated(is_checkpointed, wrap=lambda layer: layer):
    """Gradients and session of two micro-batches, each forward and back before the next."""
    model = small_model("llama").train()
    model.model.layers = nn.ModuleList(wrap(layer) for layer in model.model.layers)
    if is_checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with inject(model, RelativeGaussian(0.05), phases=("forward", "backward")) as session:
        for batch in BATCHES:
            model(input_ids=batch, use_cache=False).logits.cos().sum().backward()
    named = model.named_parameters()
    gradients = {n.replace("._fsdp_wrapped_module", ""): p.grad for n, p in named}
    return gradients, session


def test_layers_in_wrappers_have_the_sites_and_the_noise_of_those_without():
    plain, one = accumulated(is_checkpointed=False)
    for is_checkpointed in (False, True):
        gradients, other = accumulated(is_checkpointed, Wrapper)
        torch.testing.assert_close(gradients, plain, rtol=1e-4, atol=1e-5)
        assert other.counts == one.counts


def forwards(session):
    return {name: counts["forward"] for name, counts in session.counts.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*FSDP:UserWarning", "ignore:.*fully_shard:FutureWarning")
def test_layers_that_fsdp_1_wraps_have_the_sites_and_the_noise_of_those_without():
    dist, fsdp = torch.distributed, pytest.importorskip("torch.distributed.fsdp")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def wrap(layer):
        device = torch.device("cpu")
        return fsdp.FullyShardedDataParallel(layer, use_orig_params=True, device_id=device)

    try:
        plain, one = accumulated(is_checkpointed=False)
        for is_checkpointed in (False, True):
            gradients, other = accumulated(is_checkpointed, wrap)
            assert forwards(other) == forwards(one)
            for name, gradient in plain.items():
                if "layernorm" in name:  # a view of FSDP's own flat weights there, and not noisy
                    continue
                torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5)
    finally:
        dist.destroy_process_group()


class Layers(nn.Module):
    """A list of layers that the caller runs under checkpoints of their own."""

    def __init__(self, is_checkpointed):
        super().__init__()
        self.embed_tokens = nn.Embedding(40, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Dropout(0.3)) for _ in range(3)
        )
        self.is_checkpointed = is_checkpointed

    def forward(self, input_ids):
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            if self.is_checkpointed:
                hidden = checkpoint(layer, input=hidden, use_reentrant=False)
            else:
                hidden = layer(input=hidden)
        return hidden


def test_a_layer_called_by_keyword_under_the_users_own_checkpoint():
    found = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = Layers(is_checkpointed).train()
        torch.manual_seed(1)  # for the dropout
        session = inject(model, RelativeGaussian(0.1), phases=("forward", "backward"))
        with session:
            sum(model(b).cos().sum() for b in BATCHES).backward()
        found.append(({n: p.grad for n, p in model.named_parameters()}, session.counts))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_backward_pass_after_the_session_carries_the_noise_of_its_layer():
    model = small_model("llama")
    session = inject(model, RelativeGaussian(0.2), layers=1, phases=("forward", "backward"))
    session.attest = False
    with session:
        loss = model(input_ids=BATCHES[0]).logits.cos().sum()
    assert all(n["backward"] == 0 for n in session.counts.values())
    loss.backward()
    regions = {r.site.region for r in session.records if r.backward}
    assert regions == {"1"}


def test_backward_noise_of_one_layer_leaves_the_gradients_behind_it_bitwise_clean():
    """The graph runs backwards: the layers after the noisy one come first."""

    def gradients(layers):
        model = small_model("llama")
        ids = BATCHES[0]
        if layers is None:
            model(input_ids=ids).logits.cos().sum().backward()
        else:
            operators = ("linear", "rms_norm", "silu")
            with inject(
                model, RelativeGaussian(0.2), layers, operators, phases="backward"
            ) as session:
                model(input_ids=ids).logits.cos().sum().backward()
            assert {r.site.region for r in session.records if r.backward} == {"1"}
        return {n: p.grad for n, p in model.named_parameters()}

    clean, noisy = gradients(None), gradients(1)
    changed = {n for n in clean if not torch.equal(clean[n], noisy[n])}
    assert all(
        "layers.2." not in n and n not in ("lm_head.weight", "model.norm.weight") for n in changed
    )
    assert {n for n in clean if "layers.0." in n or "layers.1." in n} <= changed


def test_a_region_that_runs_twice_in_a_pass_has_sites_of_their_own_and_recomputes_them():
    class Twice(nn.Module):
        def __init__(self, is_checkpointed):
            super().__init__()
            self.embed_tokens = nn.Embedding(40, 8)
            self.layers = nn.ModuleList([OneOperator(nn.Linear(8, 8))])
            self.is_checkpointed = is_checkpointed

        def forward(self, input_ids):
            hidden = self.embed_tokens(input_ids)
            for _ in range(2):
                layer = self.layers[0]
                hidden = (
                    checkpoint(layer, hidden, use_reentrant=False)
                    if self.is_checkpointed
                    else layer(hidden)
                )
            return hidden

    results = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = Twice(is_checkpointed)
        with inject(model, RelativeGaussian(0.2), layers=0) as session:
            model(BATCHES[0]).cos().sum().backward()
        assert list(session.counts) == ["layers.0.op:linear:0", "layers.0.op:linear:1"]
        results.append(model.layers[0].op.weight.grad)
    torch.testing.assert_close(*results)
