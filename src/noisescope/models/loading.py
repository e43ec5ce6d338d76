"""From a Hugging Face directory to a model that is ready to measure.

Safetensors only, nothing from the network, no code from the directory unless asked for. A weight
that the directory lacks is an error: drawn at random by the library, it would void every number.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)
from transformers.utils import logging as transformers_logging

from noisescope.errors import InputError
from noisescope.models.checkpoint import (
    check_directory,
    check_generation_config,
    check_weights,
    has_tokenizer,
    one_line,
    read_config,
)
from noisescope.models.fingerprint import fingerprint
from noisescope.models.options import check_attention, parse_device, parse_dtype

_LOAD_ERRORS = (
    OSError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class LoadedModel:
    """A model, in eval mode, with what a result must say about it.

    Args:
        model: The causal (or masked) language model.
        tokenizer: Its tokenizer, or None.
        path: The directory it came from.
        dtype: The dtype of its weights.
        device: Where its inputs go.
        fingerprint: ``"sha256:..."`` of its weights.
        context_length: The most positions it takes, or None when its configuration does not say.
        notes: What the user should hear, one line each.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    path: Path
    dtype: torch.dtype
    device: torch.device
    fingerprint: str
    context_length: int | None
    notes: tuple[str, ...]


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    tokenizer: str | Path | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> LoadedModel:
    """Loads a local Hugging Face directory.

    Args:
        path: The directory: config.json and safetensors files.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None or ``"auto"``: as saved.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` to spread the model over all
            devices; None: the first GPU, or else the CPU.
        tokenizer: Directory of the tokenizer; None: the model's directory, if it has one.
        trust_remote_code: Runs Python code that lies in the directory.
        attn_implementation: One of ``ATTENTIONS``; None: ``"sdpa"`` where the model has it, or
            else ``"eager"``.

    Raises:
        InputError: Anything about the directory or an option that cannot be used as it is.
    """
    path = Path(path)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    options["dtype"] = parse_dtype(dtype) or "auto"
    place = parse_device(device)
    options["device_map"] = "auto" if place == "auto" else {"": place}
    check_attention(attn_implementation)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    _check_model(path, trust_remote_code)
    tokenizer_path = path if tokenizer is None else _checked_tokenizer_path(Path(tokenizer))

    with _quiet():
        config = _load_config(path, trust_remote_code)
        model, notes = _load_weights(path, config, options)
        loaded_tokenizer = _load_tokenizer(tokenizer_path, trust_remote_code)
    if loaded_tokenizer is None:
        notes.append("no tokenizer beside the model: samples must be given as token ids")
    return LoadedModel(
        model=model.eval(),
        tokenizer=loaded_tokenizer,
        path=path,
        dtype=model.dtype,
        device=model.device,
        fingerprint=fingerprint(model),
        context_length=context_length_of(config),
        notes=tuple(notes),
    )


def _check_model(path: Path, trust_remote_code: bool) -> None:
    check_directory(path, "model")
    content = read_config(path)
    check_generation_config(path)
    check_weights(path)
    is_known = content.get("model_type") in CONFIG_MAPPING
    if content.get("auto_map") and not is_known and not trust_remote_code:
        raise InputError(
            f"the model in {str(path)!r} (model_type {content.get('model_type')!r}) runs its own "
            "Python code; read it, then allow it with --trust-remote-code"
        )


def _checked_tokenizer_path(path: Path) -> Path:
    check_directory(path, "tokenizer")
    if not has_tokenizer(path):
        raise InputError(
            f"no tokenizer in {str(path)!r}: give a directory with tokenizer.json or "
            "tokenizer.model"
        )
    return path


def _load_config(path: Path, trust_remote_code: bool) -> PretrainedConfig:
    def load() -> PretrainedConfig:
        return AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )

    return _in_one_line(f"the configuration in {str(path)!r}", load)


def _model_class(config: PretrainedConfig, trust_remote_code: bool) -> Any:
    """Returns the auto class: a causal model, or a masked one for the likes of BERT."""
    is_saved_as_masked = any(n.endswith("ForMaskedLM") for n in config.architectures or [])
    has_masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    has_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        has_causal = True
    if has_masked and (is_saved_as_masked or not has_causal):
        return AutoModelForMaskedLM
    if has_causal:
        return AutoModelForCausalLM
    raise InputError(
        f"model_type {config.model_type!r} is no causal or masked language model: give one that "
        "AutoModelForCausalLM loads"
    )


def _load_weights(
    path: Path, config: PretrainedConfig, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """Returns the model, all of its weights from the directory, and notes."""
    model_class = _in_one_line(
        f"the configuration in {str(path)!r}",
        lambda: _model_class(config, options["trust_remote_code"]),
    )

    def load() -> Any:
        # Mismatched shapes are let through here to be named below: the library's own error
        # points to a report that it has written to its log.
        return model_class.from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )

    model, info = _in_one_line(f"the model in {str(path)!r}", load)
    _check_complete(path, info)
    offloaded = [name for name, p in model.named_parameters() if p.device.type == "meta"]
    if offloaded:
        raise InputError(
            f"the model in {str(path)!r} does not fit on the devices here ({len(offloaded)} "
            "tensors left over): choose a smaller dtype, or more devices"
        )
    notes = []
    if info["unexpected_keys"]:
        notes.append(
            "tensors in the files that the model has no place for: "
            f"{_few(sorted(info['unexpected_keys']))}"
        )
    return model, notes


def _check_complete(path: Path, info: Mapping[str, Any]) -> None:
    if info["mismatched_keys"]:
        name, saved, expected = sorted(info["mismatched_keys"])[0]
        raise InputError(
            f"{name} in {str(path)!r} has shape {tuple(saved)}, config.json asks for "
            f"{tuple(expected)}: the configuration is not that of these weights"
        )
    if info["missing_keys"]:
        raise InputError(
            f"weights missing in {str(path)!r}: {_few(sorted(info['missing_keys']))}; they would "
            "be random and every result void: give a complete model"
        )


def _few(names: list[str], count: int = 3) -> str:
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"


def _load_tokenizer(path: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Returns the directory's tokenizer, or None; one without padding pads with its end token."""
    if not has_tokenizer(path):
        return None

    def load() -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )

    tokenizer = _in_one_line(f"the tokenizer in {str(path)!r}", load)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length_of(config: PretrainedConfig) -> int | None:
    """Returns the most positions a model takes; None where its configuration does not say."""
    text_config = config.get_text_config()
    for field in _CONTEXT_FIELDS:
        value = getattr(text_config, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _in_one_line(what: str, load: Callable[[], Any]) -> Any:
    """Runs a loader of the libraries; their errors about its input become one line."""
    try:
        return load()
    except InputError:
        raise
    except _LOAD_ERRORS as error:
        raise InputError(
            f"cannot load {what}: {type(error).__name__}: {one_line(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's progress bars and log silent for a while."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hook = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
    )
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        transformers_logging.set_verbosity(verbosity)
