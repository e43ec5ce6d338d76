"""A model that is in memory already, as `load_model` would have returned it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from noisescope.errors import InputError
from noisescope.models.fingerprint import fingerprint
from noisescope.models.loading import LoadedModel, context_length_of


def in_memory(model: PreTrainedModel, tokenizer: Any = None) -> LoadedModel:
    """Returns a model with what a result must say about it; the model itself stays as it is.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer; None: samples must be given as token ids.

    Raises:
        InputError: It is no such model, or its weights lie on no device.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"model {type(model).__name__}: a directory, a LoadedModel or a model of transformers "
            "is needed; of any other module, use noisescope.inject"
        )
    if model.device.type == "meta":
        raise InputError(f"model {type(model).__name__} has no weights (device meta): load them")
    notes = [] if tokenizer else ["no tokenizer given: samples must be given as token ids"]
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        path=Path(model.config.name_or_path or type(model).__name__),
        dtype=model.dtype,
        device=model.device,
        fingerprint=fingerprint(model),
        context_length=context_length_of(model.config),
        notes=tuple(notes),
    )


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode for a while; every module is as before afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
