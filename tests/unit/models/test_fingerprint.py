"""The fingerprint: equal for equal weights, different for any other, of a known definition."""

import hashlib

import pytest
import torch
from helpers.small_models import small_model
from torch import nn

from noisescope.models import fingerprint


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
        layer.bias.copy_(torch.tensor([0.5]))
    return layer.to(dtype)


def test_it_is_the_sha256_of_names_dtypes_shapes_and_bytes() -> None:
    # 0.5 is 3f000000, 1 is 3f800000, -2 is c0000000 (IEEE 754), least significant byte first.
    text = (
        b"bias torch.float32 (1,)\n"
        + bytes.fromhex("0000003f")
        + b"weight torch.float32 (1, 2)\n"
        + bytes.fromhex("0000803f000000c0")
    )
    assert fingerprint(linear()) == f"sha256:{hashlib.sha256(text).hexdigest()}"


def test_bfloat16_goes_by_its_own_bytes() -> None:
    text = (
        b"bias torch.bfloat16 (1,)\n"
        + bytes.fromhex("003f")
        + b"weight torch.bfloat16 (1, 2)\n"
        + bytes.fromhex("803f00c0")
    )
    assert fingerprint(linear(torch.bfloat16)) == f"sha256:{hashlib.sha256(text).hexdigest()}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_changed_element_changes_it(dtype: torch.dtype) -> None:
    model = small_model("llama").to(dtype)
    before = fingerprint(model)
    weight = model.get_parameter("model.layers.2.mlp.down_proj.weight")
    with torch.no_grad():
        kept = weight[3, 5].clone()
        weight[3, 5] += 1
        assert fingerprint(model) != before
        weight[3, 5] = kept
    assert fingerprint(model) == before


def test_the_same_weights_in_another_model_object_have_the_same() -> None:
    assert fingerprint(small_model("gpt2")) == fingerprint(small_model("gpt2"))
    assert fingerprint(small_model("gpt2")) != fingerprint(small_model("gpt2", seed=1))


def test_another_dtype_is_another_fingerprint() -> None:
    assert len({fingerprint(linear(d)) for d in (torch.float32, torch.float64)}) == 2


def test_memory_layout_and_piece_size_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(6, 7)
    whole = fingerprint(layer)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    assert not layer.weight.is_contiguous()
    assert fingerprint(layer) == whole
    monkeypatch.setitem(fingerprint.__globals__, "_CHUNK_ELEMENTS", 4)
    assert fingerprint(layer) == whole


def test_strided_vectors_are_covered() -> None:
    module, packed = nn.Module(), nn.Module()
    module.register_buffer("scale", torch.arange(8.0)[::2])
    packed.register_buffer("scale", torch.tensor([0.0, 2.0, 4.0, 6.0]))
    assert fingerprint(module) == fingerprint(packed)


def test_scalars_and_empty_tensors_are_covered() -> None:
    module = nn.Module()
    module.register_buffer("scale", torch.tensor(1.0))
    module.register_buffer("empty", torch.zeros(0, 3))
    before = fingerprint(module)
    module.get_buffer("scale").fill_(2.0)
    assert fingerprint(module) != before
