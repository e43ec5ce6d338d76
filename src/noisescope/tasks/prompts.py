"""From samples to token ids: the chat template where there is one, plain text otherwise.

Padding and truncation are not done here: a prompt that does not fit is an error, never cut, since a
question without its end is another question.
"""

from typing import Any

import jinja2

from noisescope.errors import InputError
from noisescope.tasks.samples import Sample, Task

PLAIN_PROMPT_NOTE = "no chat template: prompts are given as plain text"
# A template is a program of the directory's: it may divide by zero, or index what is not there.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def uses_plain_prompt(task: Task, tokenizer: Any) -> bool:
    """Says whether chats of the task are given as plain text, for want of a chat template."""
    has_chats = any(sample.messages is not None for sample in task.samples)
    return has_chats and tokenizer is not None and not tokenizer.chat_template


def encode_sample(sample: Sample, tokenizer: Any) -> list[int]:
    """Returns the token ids of a sample's prompt.

    A chat goes through the chat template, ready for the assistant's answer. Without a template its
    contents are joined by line ends and treated as a plain text, that is, with the special tokens
    that the tokenizer puts around any text.

    Args:
        sample: The sample.
        tokenizer: A Hugging Face tokenizer; None will do for a sample given as token ids.

    Raises:
        InputError: There is no tokenizer, or the template refuses the chat.
    """
    if sample.prompt_ids is not None:
        return list(sample.prompt_ids)
    if tokenizer is None:
        raise InputError(
            f"sample {sample.name!r} is text and the model has no tokenizer: give the directory "
            "of one (--tokenizer DIR), or from Python samples as token ids"
        )
    if sample.messages is not None and tokenizer.chat_template:
        return _encode_chat(sample, tokenizer)
    text = sample.prompt or "\n".join(m["content"] for m in sample.messages or ())
    return list(tokenizer(text, verbose=False)["input_ids"])


def encode_task(
    task: Task,
    tokenizer: Any,
    context_length: int | None = None,
    vocabulary_size: int | None = None,
) -> list[list[int]]:
    """Returns the token ids of every sample's prompt, in the task's order.

    Args:
        task: The task.
        tokenizer: A Hugging Face tokenizer, or None.
        context_length: The most positions the model takes; None: not known.
        vocabulary_size: How many token ids the model's embedding holds; None: not checked.

    Raises:
        InputError: A sample does not fit into the context, is too short to be scored, or has a
            token id outside the vocabulary.
    """
    encoded = [encode_sample(sample, tokenizer) for sample in task.samples]
    shortest = 1 if task.is_generative else 2
    for sample, ids in zip(task.samples, encoded, strict=True):
        if context_length is not None and len(ids) > context_length:
            raise InputError(
                f"sample {sample.name!r} is {len(ids)} tokens long, the model takes at most "
                f"{context_length}: shorten it or leave it out"
            )
        if len(ids) < shortest:
            raise InputError(
                f"sample {sample.name!r} is {len(ids)} tokens long, at least {shortest} are "
                "needed: leave it out"
            )
        if vocabulary_size is not None and max(ids) >= vocabulary_size:
            raise InputError(
                f"sample {sample.name!r} has token id {max(ids)}, the model knows 0 to "
                f"{vocabulary_size - 1}: use the model's own tokenizer"
            )
    return encoded


def _encode_chat(sample: Sample, tokenizer: Any) -> list[int]:
    try:
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in sample.messages or ()],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            tokenizer_kwargs={"verbose": False},
        )
    except _TEMPLATE_ERRORS as error:
        raise InputError(
            f"the chat template refuses sample {sample.name!r}: {' '.join(str(error).split())}"
        ) from error
    return list(ids)
