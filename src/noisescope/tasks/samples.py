"""A task: samples, and how an answer to one is scored.

Samples are plain data, checked when made. A sample's name seeds its noise, so names come from the
sample's place in its file and never from where the file lies.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from noisescope.errors import InputError
from noisescope.tasks.scoring import are_tokens_right, is_right

MAX_NEW_TOKENS = 512

Answer = str | Sequence[int]


@dataclass(frozen=True)
class Sample:
    """One question, or one text, in exactly one of three forms.

    Args:
        name: Names the sample for the noise; unique in its task.
        prompt: Plain text.
        messages: A chat: ``{"role": ..., "content": ...}`` each.
        prompt_ids: Token ids; no tokenizer is needed.
        truth: What a right answer is; None: the sample is scored along its own text.
        group: What the sample shares with others, such as the document it was taken from: samples
            of a group are not independent, and intervals count the group.
    """

    name: str
    prompt: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    truth: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"sample name {self.name!r}: give a text that is not empty")
        forms = [f for f in ("prompt", "messages", "prompt_ids") if getattr(self, f) is not None]
        if len(forms) != 1:
            raise InputError(
                f"sample {self.name!r} has {' and '.join(forms) or 'no prompt'}: give one of "
                "prompt, messages, prompt_ids"
            )
        if not getattr(self, forms[0]):
            raise InputError(f"sample {self.name!r} has an empty {forms[0]}: leave the sample out")
        self._check_types()

    def _check_types(self) -> None:
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise InputError(f"sample {self.name!r}: prompt {self.prompt!r} is not a text")
        for message in self.messages or ():
            is_message = isinstance(message, Mapping) and all(
                isinstance(message.get(key), str) for key in ("role", "content")
            )
            if not is_message:
                raise InputError(
                    f"sample {self.name!r}: message {message!r} is not {{'role': text, "
                    "'content': text}"
                )
        for token in self.prompt_ids or ():
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise InputError(
                    f"sample {self.name!r}: token id {token!r} is not a whole number from 0 up"
                )
        if self.truth is not None and not isinstance(self.truth, str):
            raise InputError(f"sample {self.name!r}: truth {self.truth!r} is not a text")
        if self.group is not None and not isinstance(self.group, str):
            raise InputError(f"sample {self.name!r}: group {self.group!r} is not a text")
        self._check_unicode()

    def _check_unicode(self) -> None:
        texts = [self.name, self.prompt, self.truth, self.group]
        texts += [message[key] for message in self.messages or () for key in ("role", "content")]
        for text in texts:
            try:
                (text or "").encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"sample {self.name!r}: {error.object[error.start]!r} at character "
                    f"{error.start} of a text is not valid Unicode text: drop it, or leave the "
                    "sample out"
                ) from error


@dataclass(frozen=True)
class Task:
    """Samples with their scoring.

    Args:
        name: What reports call it.
        samples: The samples, at least one, each under its own name.
        score: Says whether an answer to a sample is right. The answer is a text, or token ids for a
            sample that was given as ``prompt_ids``. None: nothing is generated, samples are scored
            along their own text.
        max_new_tokens: The most tokens that are generated for an answer.
        notes: What the user should hear, one line each.
    """

    name: str
    samples: tuple[Sample, ...]
    score: Callable[[Answer, Sample], bool] | None
    max_new_tokens: int = MAX_NEW_TOKENS
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.samples:
            raise InputError(f"task {self.name!r} has no samples: give at least one")
        name, count = Counter(sample.name for sample in self.samples).most_common(1)[0]
        if count > 1:
            raise InputError(
                f"{count} samples of task {self.name!r} are named {name!r}: the noise of a sample "
                "follows its name, so give each its own"
            )
        check_count("max_new_tokens", self.max_new_tokens)

    @property
    def is_generative(self) -> bool:
        """Whether answers are generated and scored, rather than the text itself."""
        return self.score is not None

    @cached_property
    def fingerprint(self) -> str:
        """``"sha256:..."`` over the samples: names, prompts and truths, in their order."""
        digest = hashlib.sha256()
        for sample in self.samples:
            messages = None if sample.messages is None else [dict(m) for m in sample.messages]
            fields = [sample.name, sample.prompt, messages, sample.prompt_ids, sample.truth]
            fields += [] if sample.group is None else [sample.group]
            digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
        return f"sha256:{digest.hexdigest()}"


def check_count(what: str, value: int) -> None:
    """Raises an InputError unless the value is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{what} {value!r}: give a whole number of at least 1")


def score_answer(answer: Answer, sample: Sample) -> bool:
    """Scores a text by its last number, and token ids by their beginning, against the truth."""
    if sample.truth is None:
        raise InputError(f"sample {sample.name!r} has no truth to score an answer against")
    if isinstance(answer, str):
        return is_right(answer, sample.truth)
    return are_tokens_right(answer, sample.truth)


def make_task(
    samples: Iterable[Sample | Mapping[str, Any] | str],
    score: Callable[[Answer, Sample], bool] | None = None,
    *,
    name: str = "samples",
    max_new_tokens: int = MAX_NEW_TOKENS,
    notes: Iterable[str] = (),
) -> Task:
    """Makes a task of a Python list.

    Args:
        samples: Samples, dictionaries of a sample's fields, or plain texts. What has no name is
            named by its place, ``"0"``, ``"1"``, ...
        score: Says whether an answer is right. None: ``score_answer`` when every sample has a
            truth; when none has, the samples are scored along their own text.
        name: What reports call the task.
        max_new_tokens: The most tokens that are generated for an answer.
        notes: Lines for the user.

    Raises:
        InputError: A sample cannot be used, two share a name, or only some have a truth.
    """
    made = tuple(_make_sample(given, str(index)) for index, given in enumerate(samples))
    without = [sample.name for sample in made if sample.truth is None]
    if score is None and 0 < len(without) < len(made):
        raise InputError(
            f"{len(without)} of {len(made)} samples have no truth, first {without[0]!r}: give all "
            "of them one, or none, or a scoring function"
        )
    if score is None and not without:
        score = score_answer
    return Task(name, made, score, max_new_tokens, tuple(notes))


def token_task(
    prompts: Iterable[Sequence[int]],
    truths: Iterable[Sequence[int]],
    *,
    name: str = "tokens",
) -> Task:
    """Makes a task for a model without a tokenizer: token ids in, token ids out.

    An answer is right when it begins with the truth; as many tokens are generated as the longest
    truth has.

    Args:
        prompts: The token ids of each prompt.
        truths: The token ids of each right answer.
        name: What reports call the task.

    Raises:
        InputError: The two differ in length, or a sample cannot be used.
    """
    asked = [tuple(int(token) for token in prompt) for prompt in prompts]
    wanted = [tuple(int(token) for token in truth) for truth in truths]
    if len(asked) != len(wanted):
        raise InputError(
            f"{len(asked)} prompts and {len(wanted)} truths: give as many of one as of the other"
        )
    if not all(wanted):
        raise InputError(f"truth {wanted.index(())} is empty: give at least one token id")
    samples = [
        Sample(str(index), prompt_ids=prompt, truth=" ".join(map(str, truth)))
        for index, (prompt, truth) in enumerate(zip(asked, wanted, strict=True))
    ]
    return make_task(samples, name=name, max_new_tokens=max(map(len, wanted), default=1))


def _make_sample(given: Sample | Mapping[str, Any] | str, default_name: str) -> Sample:
    if isinstance(given, Sample):
        return given
    if isinstance(given, str):
        return Sample(default_name, prompt=given)
    if not isinstance(given, Mapping):
        raise InputError(
            f"sample {default_name} is of type {type(given).__name__}: give a Sample, a "
            "dictionary of its fields, or a text"
        )
    fields = {"name": default_name, **given}
    unknown = [key for key in fields if key not in Sample.__dataclass_fields__]
    if unknown:
        raise InputError(
            f"sample {default_name}: unknown field {unknown[0]!r}; accepted are "
            f"{', '.join(Sample.__dataclass_fields__)}"
        )
    for key in ("messages", "prompt_ids"):
        if isinstance(fields.get(key), list):
            fields[key] = tuple(fields[key])
    return Sample(**fields)
