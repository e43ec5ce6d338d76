"""Scoring: the last number, the tolerance, and what is compared as text."""

import pytest

from noisescope.errors import InputError
from noisescope.tasks import Sample, are_tokens_right, extract_number, is_right, score_answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7", "7"),
        ("#### 18", "18"),
        ("He earns $1,234 a year", "1234"),
        ("that is 1,234,567.50 in all", "1234567.50"),
        ("it fell to -3", "-3"),
        ("plus +3.25", "+3.25"),
        ("about 5.", "5"),
        ("7-3", "-3"),
        (".5", "5"),
        ("nothing at all", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text_is_found(text: str, number: str | None) -> None:
    assert extract_number(text) == number


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("first 12, then #### 18", "18", True),
        ("#### 18, as in 12", "18", False),
        ("18.009", "18", True),
        ("18.02", "18", False),
        ("$1,234", "1234", True),
        ("1234", "1,234", True),
        ("-3", "3", False),
        ("3.0", "3", True),
        ("no number", "18", False),
        ("18", "eighteen", False),
        (" Paris\n", "Paris", True),
        ("Paris 1", "Paris", False),
        ("", "18", False),
        ("5", "nan", False),
        ("inf", "inf", True),
    ],
)
def test_an_answer_is_right_by_its_last_number_or_else_as_text(
    answer: str, truth: str, right: bool
) -> None:
    assert is_right(answer, truth) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [((0, 1, 1), True), ((0, 1, 1, 2), True), ((0, 1), False), ((0, 1, 2), False), ((), False)],
)
def test_tokens_are_right_when_they_begin_with_the_truth(
    answer: tuple[int, ...], right: bool
) -> None:
    assert are_tokens_right(answer, "0 1 1") is right


def test_score_answer_takes_texts_and_token_ids() -> None:
    sample = Sample("0", prompt="?", truth="7")
    assert score_answer("it is 7", sample)
    assert score_answer((7, 2), sample)
    assert not score_answer("it is 8", sample)
    assert not score_answer((8,), sample)


def test_score_answer_without_a_truth_is_an_error() -> None:
    with pytest.raises(InputError, match="sample '0' has no truth"):
        score_answer("7", Sample("0", prompt="?"))
