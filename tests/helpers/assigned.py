"""Assignments to test exports with, and our own rounding to compare the engines' with."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisescope.assignment import Assignment
from noisescope.demo import demo_model_dir
from noisescope.models import load_model
from noisescope.noise.formats import make_format

LAYER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def linear_names(n_layers: int = 4) -> tuple[str, ...]:
    """Returns the linear modules of a model of Llama's layout, in running order."""
    layers = [f"model.layers.{i}.{rest}" for i in range(n_layers) for rest in LAYER]
    return (*layers, "lm_head")


def all_names(n_layers: int = 4) -> tuple[str, ...]:
    """Returns all modules of it: also the lists, the layers, the norms."""
    above = [
        f"model.layers.{i}{rest}" for i in range(n_layers) for rest in ("", ".self_attn", ".mlp")
    ]
    norms = [f"model.layers.{i}.input_layernorm" for i in range(n_layers)]
    return ("", "model", "model.layers", *above, *norms, *linear_names(n_layers))


def by_layer(formats: Sequence[str], **fields: Any) -> Assignment:
    """Returns an assignment of one format to each layer; the head is kept."""
    named = {f"model.layers.{i}.{rest}": f for i, f in enumerate(formats) for rest in LAYER}
    defaults = {"kept": ("lm_head",), "model_type": "qwen2", "dtype": "bfloat16"}
    return Assignment(named, **(defaults | fields))


def mixed(**fields: Any) -> Assignment:
    """Returns an assignment of four layers that mixes formats across layers and kinds."""
    formats = dict.fromkeys(linear_names()[:-1], "mxfp4")
    for name in formats:
        if "down_proj" in name and ".1." not in name:
            formats[name] = "int4_g32"
        elif "self_attn" in name and ".2." in name:
            formats[name] = "bf16"
    bound = [tuple(f"model.layers.{i}.self_attn.{x}_proj" for x in "qkv") for i in range(4)]
    defaults = {"kept": ("lm_head",), "model_type": "llama", "bound": tuple(bound)}
    return Assignment(formats, **(defaults | fields))


def demo_model(dtype: str = "float32") -> nn.Module:
    """Returns the demo model on the CPU."""
    model: nn.Module = load_model(demo_model_dir(), dtype=dtype, device="cpu").model
    return model


def logits(model: nn.Module) -> Tensor:
    """Returns the logits of a few fixed tokens."""
    ids = torch.arange(3, 35).reshape(2, 16)
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def named_tree(names: Iterable[str]) -> nn.Module:
    """Returns a module with a linear module at each of these dotted names."""
    root = nn.Module()
    for name in names:
        *parents, last = name.split(".")
        place = root
        for part in parents:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        place.add_module(last, nn.Linear(32, 32, bias=False))
    return root


def rounded(name: str, values: Tensor, is_weight: bool = True) -> Tensor:
    """Returns values rounded to a format by this package, scales along the last axis."""
    flat = values.detach().float().reshape(-1, values.shape[-1])
    return make_format(name).round(flat, is_weight=is_weight).reshape(values.shape)
