"""Small models beside the families: linear attention, alibi, and layers that nobody can share."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {**_COMMON, "n_layer": 3, "n_head": 4}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_COMMON,
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 3,
        },
    ),
    "lfm2": (
        "Lfm2",
        {**_COMMON, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **_COMMON,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 0,
            "mlp_only_layers": [0, 1, 2],
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
}
# Latent attention has a test of its own.
MORE: tuple[str, ...] = tuple(name for name in _MODELS if name != "deepseek_v3")


def more_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Returns a small random model that is no family of `small_models`: float32, in eval mode."""
    prefix, fields = _MODELS[name]
    config = getattr(transformers, f"{prefix}Config")(**fields)
    model: PreTrainedModel = seeded(getattr(transformers, f"{prefix}ForCausalLM"), config, seed)
    return model


def seeded(model_class: Any, config: Any, seed: int = 0) -> Any:
    """Returns a model with weights of its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).float().eval()


class ToyConfig(PretrainedConfig):
    """A configuration of `ToyModel`."""

    model_type = "toy"

    def __init__(self, kind: str = "plain", **fields: Any) -> None:
        super().__init__(**fields)
        self.kind = kind
        self.vocab_size, self.hidden_size, self.num_hidden_layers = 64, 32, 3
        self.num_attention_heads = 4


class _Layer(nn.Module):
    """A layer of one linear map; what it does with the batch is the model's kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(32, 32)

    def forward(self, states: Tensor, rows: int) -> Tensor:
        # The sums over what came before stand for attention.
        mixed = states + torch.tanh(self.linear(states.cumsum(dim=1) / 4))
        if self.kind == "mixes rows":
            return mixed + 0.1 * states[:1]
        if self.kind == "knows the batch":
            return mixed.view(rows, -1, 32)
        return mixed * (1 + 1 / len(states)) if self.kind == "scales by rows" else mixed


class ToyModel(PreTrainedModel, GenerationMixin):
    """A causal model that is its own backbone, so it cannot be cut at its last hidden state."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(64, 32)
        self.layers = nn.ModuleList(_Layer(config.kind) for _ in range(3))
        self.lm_head = nn.Linear(32, 64, bias=False)
        nn.init.normal_(self.lm_head.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        states = self.embed_tokens(input_ids)
        for layer in self.layers:
            states = layer(states, len(input_ids))
        return CausalLMOutputWithPast(logits=self.lm_head(states))


def toy_model(kind: str = "plain") -> ToyModel:
    """Returns a toy; kinds: `plain`, `mixes rows`, `knows the batch`, `scales by rows`."""
    model: ToyModel = seeded(ToyModel, ToyConfig(kind))
    return model
