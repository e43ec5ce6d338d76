"""Names of tensors in GGUF, by the names that transformers gives the modules: a table of our own.

Only families whose names were compared with gguf's own map are here; of others nothing is guessed.
"""

import re
from collections.abc import Mapping

# config.model_type: the architecture that the GGUF file carries.
ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "granite": "granite",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "stablelm": "stablelm",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
    "seed_oss": "seed_oss",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "bloom": "bloom",
    "falcon": "falcon",
}

# Rest of a module's name after its layer's number: names of the layer's tensors. Experts of a
# layer are stacked into one tensor; `ffn_gate_up_exps` is there where a converter fuses two.
TENSORS: Mapping[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.qkv_proj": ("attn_qkv",),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate",),
    "mlp.up_proj": ("ffn_up",),
    "mlp.gate_up_proj": ("ffn_up",),
    "mlp.down_proj": ("ffn_down",),
    "attn.c_attn": ("attn_qkv",),
    "attn.c_proj": ("attn_output",),
    "mlp.c_fc": ("ffn_up",),
    "mlp.c_proj": ("ffn_down",),
    "attention.query_key_value": ("attn_qkv",),
    "attention.dense": ("attn_output",),
    "self_attention.query_key_value": ("attn_qkv",),
    "self_attention.dense": ("attn_output",),
    "mlp.dense_h_to_4h": ("ffn_up",),
    "mlp.dense_4h_to_h": ("ffn_down",),
    "mlp.gate": ("ffn_gate_inp",),
    "mlp.experts": ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps"),
    "mlp.experts.gate_proj": ("ffn_gate_exps",),
    "mlp.experts.up_proj": ("ffn_up_exps",),
    "mlp.experts.down_proj": ("ffn_down_exps",),
    "mlp.shared_expert.gate_proj": ("ffn_gate_shexp",),
    "mlp.shared_expert.up_proj": ("ffn_up_shexp",),
    "mlp.shared_expert.down_proj": ("ffn_down_shexp",),
    "mlp.shared_expert_gate": ("ffn_gate_inp_shexp",),
    "block_sparse_moe.gate": ("ffn_gate_inp",),
    "block_sparse_moe.experts.w1": ("ffn_gate_exps",),
    "block_sparse_moe.experts.w2": ("ffn_down_exps",),
    "block_sparse_moe.experts.w3": ("ffn_up_exps",),
}
ROUTERS = ("ffn_gate_inp", "ffn_gate_inp_shexp")

_LAYER = re.compile(
    r"(?:(?:model|language_model|transformer|gpt_neox)\.)*(?:layers|h)\.(\d+)\.(.+)"
)
_HEAD = re.compile(r"(?:(?:model|language_model)\.)*(?:lm_head|embed_out)")
_EXPERT = re.compile(r"(?<=\bexperts\.)\d+\.")


def tensor_names(module: str) -> tuple[str, ...]:
    """Returns the names of a linear module's tensors in GGUF, without ``.weight``.

    Args:
        module: Dotted name in transformers.

    Returns:
        One name, several of experts in one module, or none: no such module is known.
    """
    if _HEAD.fullmatch(module):
        return ("output",)
    layer = _LAYER.fullmatch(module)
    if not layer:
        return ()
    rest = _EXPERT.sub("", layer[2])
    return tuple(f"blk.{int(layer[1])}.{name}" for name in TENSORS.get(rest, ()))
