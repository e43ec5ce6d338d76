"""What is decoded: prompts, answers in the making, and the rows that decode together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from noisescope.measure.sharing import Rider


@dataclass(frozen=True)
class Prompt:
    """A sample's name, by which its noise is found, and its token ids."""

    name: str
    ids: tuple[int, ...]


@dataclass
class Answer:
    """A greedy continuation.

    Attributes:
        ids: Token ids, up to and with the end token.
        is_cut: Whether it ended for want of tokens or of context.
        close_calls: Steps at which the two best logits differed by no more than rounding.
    """

    ids: list[int] = field(default_factory=list)
    is_cut: bool = False
    close_calls: int = 0


@dataclass(frozen=True)
class Limits:
    """How long answers and how large batches may be.

    Attributes:
        max_new_tokens: The most tokens of an answer.
        context_length: The most positions the model takes; None: not limited. An answer fills what
            its prompt leaves of it; its last token may lie one beyond.
        rows: The most rows of a batch.
        prompt_rows: The most rows of a pass over prompts.
        is_by_prompt: Whether rows of different prompts are kept apart.
    """

    max_new_tokens: int
    context_length: int | None = None
    rows: int = 1 << 30
    prompt_rows: int = 1 << 30
    is_by_prompt: bool = False


@dataclass(frozen=True)
class Boarding:
    """A rider and the number of the region where it leaves the clean rows."""

    rider: Rider
    first: int = 0


@dataclass
class Row:
    """One answer in the making."""

    rider: int
    prompt: int
    answer: Answer
    room: int  # tokens that may still come
    is_done: bool = False


@dataclass
class Batch:
    """Rows that decode together: what each saw last, its mask and the cache."""

    rows: list[Row]
    token_R: Tensor
    mask_RS: Tensor
    cache: Any


def open_rows(rows: Sequence[Row]) -> list[int]:
    """Returns the numbers of the rows that are not done."""
    return [n for n, row in enumerate(rows) if not row.is_done]
