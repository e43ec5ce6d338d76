"""When an answer is right: the scoring of GSM8K evaluations, and of token ids.

The last number of the answer counts, because models reason before they answer. Nothing here asks
for the ``####`` mark: an answer that ends with ``#### n`` has n as its last number.
"""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_TOLERANCE = 0.01


def extract_number(text: str) -> str | None:
    """Returns the last number of a text as it stands there, commas dropped; None without one."""
    numbers = _NUMBER.findall(text.replace(",", ""))
    return numbers[-1] if numbers else None


def is_right(answer: str, truth: str) -> bool:
    """Says whether an answer is right.

    Where the truth is a number, the answer's last number counts and is right within 0.01. Where the
    truth is none, or the answer holds none, the two are compared as text, outer blanks dropped.

    Source: the scoring that ``noisy_ops`` users evaluate GSM8K with.

    Args:
        answer: The whole answer.
        truth: What is right.
    """
    number = extract_number(answer)
    wanted = truth.replace(",", "").strip()
    if number is None or _NUMBER.fullmatch(wanted) is None:
        return answer.strip() == truth.strip()
    return abs(float(number) - float(wanted)) <= _TOLERANCE


def are_tokens_right(answer: Sequence[int], truth: str) -> bool:
    """Says whether an answer begins with the token ids of the truth, such as ``"0 1 1 2"``."""
    wanted = truth.split()
    return [str(token) for token in answer[: len(wanted)]] == wanted
