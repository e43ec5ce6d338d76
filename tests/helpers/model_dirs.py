"""Small models ready to measure, in memory and as directories, with a tokenizer of characters."""

from pathlib import Path
from typing import Any

import torch
from helpers.small_models import small_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from noisescope.models import LoadedModel, load_model

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz +-=.,?#\n"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}={{ m['content'] }}\n{% endfor %}a="


def character_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of one token per character; all its ids are below 64."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    fast.chat_template = chat_template
    return fast


def loaded_small(family: str = "llama", **overrides: Any) -> LoadedModel:
    """Returns a small random model as `load_model` would."""
    return as_loaded(small_model(family, **overrides))


def as_loaded(
    model: PreTrainedModel, name: str = "small", context_length: int | None = 64
) -> LoadedModel:
    """Returns a model in memory as `load_model` would return it."""
    return LoadedModel(
        model=model,
        tokenizer=character_tokenizer(),
        path=Path(name),
        dtype=model.dtype,
        device=torch.device("cpu"),
        fingerprint="sha256:0",
        context_length=context_length,
        notes=(),
    )


def save_model(
    directory: Path,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Saves a model (by default a small Llama) and a tokenizer, silently."""
    previous = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
    )
    try:
        (small_model("llama") if model is None else model).save_pretrained(directory)
        (character_tokenizer() if tokenizer is None else tokenizer).save_pretrained(directory)
    finally:
        transformers_logging.set_tqdm_hook(previous)
    return directory


def reload(directory: Path) -> LoadedModel:
    """Loads a saved directory on the CPU in float32."""
    return load_model(directory, dtype="float32", device="cpu")
