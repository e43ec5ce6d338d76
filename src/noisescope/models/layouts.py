"""The known layouts of language models, as data, and how one more is made known.

A layout is four dotted names of the causal model. Wrapped models and bare backbones need no entry
of their own: families.py looks the names up by suffix.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from noisescope.errors import InputError


@dataclass(frozen=True)
class Family:
    """Dotted names, inside the causal model, of a family's parts.

    A name that a model lacks is passed over, so relatives may share one entry.

    Args:
        layers: The list of layers, such as ``"model.layers"``.
        embed: Modules of the embedding region.
        norm: Modules of the final norm region.
        head: Modules of the head region.
    """

    layers: str
    embed: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()
    head: tuple[str, ...] = ()


_LLAMA = Family(
    "model.layers",
    embed=("model.embed_tokens",),
    norm=("model.norm", "model.final_layernorm", "model.embedding_norm"),
    head=("lm_head",),
)
_GPT2 = Family(
    "transformer.h",
    embed=(
        "transformer.wte",
        "transformer.wpe",
        "transformer.word_embeddings",
        "transformer.word_embeddings_layernorm",
    ),
    norm=("transformer.ln_f",),
    head=("lm_head",),
)
_GPT_NEOX = Family(
    "gpt_neox.layers",
    embed=("gpt_neox.embed_in",),
    norm=("gpt_neox.final_layer_norm",),
    head=("lm_head", "embed_out"),
)
_OPT = Family(
    "model.decoder.layers",
    embed=(
        "model.decoder.embed_tokens",
        "model.decoder.embed_positions",
        "model.decoder.project_in",
    ),
    norm=("model.decoder.final_layer_norm",),
    head=("model.decoder.project_out", "lm_head"),
)
_BERT = Family(
    "bert.encoder.layer", embed=("bert.embeddings",), head=("bert.pooler", "cls", "lm_head")
)
_ROBERTA = Family(
    "roberta.encoder.layer", embed=("roberta.embeddings",), head=("roberta.pooler", "lm_head")
)
_MPT = Family(
    "transformer.blocks",
    embed=("transformer.wte", "transformer.wpe"),
    norm=("transformer.norm_f",),
    head=("lm_head",),
)

_LIKE_LLAMA = (
    "mistral ministral ministral3 mixtral phi phi3 phimoe stablelm starcoder2 persimmon "
    "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next gemma gemma2 gemma3 gemma3_text vaultgemma "
    "olmo olmo2 olmo3 olmoe flex_olmo granite granitemoe granitemoeshared cohere cohere2 nemotron "
    "deepseek_v2 deepseek_v3 glm glm4 glm4_moe gpt_oss smollm3 lfm2 exaone4 helium arcee apertus "
    "ernie4_5 ernie4_5_moe hunyuan_v1_dense hunyuan_v1_moe seed_oss minimax dots1 bitnet diffllama"
)
_LIKE_GPT2 = "gpt_bigcode gpt_neo gptj codegen bloom falcon"

LAYOUTS: Mapping[str, Family] = {
    "llama": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "bert": _BERT,
    "roberta": _ROBERTA,
    "mpt": _MPT,
}

FAMILIES: Mapping[str, Family] = {
    **LAYOUTS,
    **dict.fromkeys(_LIKE_LLAMA.split(), _LLAMA),
    **dict.fromkeys(_LIKE_GPT2.split(), _GPT2),
    "xlm-roberta": _ROBERTA,
}

REGISTERED: dict[str, Family] = {}


def register_family(
    model_type: str,
    layers: str,
    embed: Iterable[str] = (),
    norm: Iterable[str] = (),
    head: Iterable[str] = (),
) -> None:
    """Makes the layout of a further family known; a later call for the same family replaces it.

    Args:
        model_type: ``config.model_type`` of the family, or, for a module without a configuration,
            the name of its class.
        layers: Dotted name of the list of layers inside the model.
        embed: Dotted names of the modules of the embedding region.
        norm: Dotted names of the modules of the final norm.
        head: Dotted names of the modules of the head.

    Raises:
        InputError: A name is empty or not a dotted name, or a string stands for a list of names.
    """
    if not isinstance(model_type, str) or not model_type:
        raise InputError(
            f"model_type {model_type!r}: give the model's config.model_type or its class name"
        )
    for field, given in (("embed", embed), ("norm", norm), ("head", head)):
        if isinstance(given, str):
            raise InputError(f"{field} {given!r}: give a list of dotted names, such as [{given!r}]")
    family = Family(layers, tuple(embed), tuple(norm), tuple(head))
    for name in (layers, *family.embed, *family.norm, *family.head):
        if not isinstance(name, str) or not all(name.split(".")):
            raise InputError(
                f"module name {name!r} of family {model_type!r}: give a dotted name without empty "
                "parts, such as 'model.layers'"
            )
    REGISTERED[model_type] = family
