"""Small random models of every supported family, for tests.

Each is a real Hugging Face architecture at width 32 with three layers, so the layout, the operators
and the attention masks are the family's own. Their weights mean nothing; they are seeded apart from
the global generator, which is left as it was.
"""

from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_HEAD_DIM = _GROUPED | {"head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_WIDE_INIT = {"initializer_range": 0.2}

_CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _HEAD_DIM),
    "mistral": ("MistralConfig", "MistralForCausalLM", _HEAD_DIM | {"sliding_window": 16}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        _HEAD_DIM | {"sliding_window": 16, "query_pre_attn_scalar": 8},
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        _HEAD_DIM | {"sliding_window": 16, "query_pre_attn_scalar": 8},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 64,
            "n_positions": 64,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _COMMON),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "dropout": 0.0,
            "init_std": 0.2,
        },
    ),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        {
            **{k: v for k, v in _COMMON.items() if k != "attention_dropout"},
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        _HEAD_DIM | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", _HEAD_DIM | _EXPERTS),
}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)


def small_config(family: str, **overrides: Any) -> PretrainedConfig:
    """Returns the small configuration of a family."""
    config_name, _, fields = _CONFIGS[family]
    config_class: type[PretrainedConfig] = getattr(transformers, config_name)
    return config_class(**(_WIDE_INIT | fields | overrides))


def small_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Returns a small random model of a family: float32, on the CPU, in eval mode.

    Args:
        family: One of ``FAMILIES``.
        seed: Seed of the weights.
        **overrides: Fields of the family's configuration, such as ``num_hidden_layers`` or
            ``attn_implementation``.
    """
    config = small_config(family, **overrides)
    model_class: type[PreTrainedModel] = getattr(transformers, _CONFIGS[family][1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    return model.float().eval()


def small_backbone(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Returns the bare backbone of ``small_model``: no head, names without their prefix."""
    backbone: PreTrainedModel = small_model(family, seed, **overrides).base_model
    return backbone
