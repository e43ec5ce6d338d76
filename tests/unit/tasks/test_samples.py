"""Samples and tasks made in Python: what is accepted, how it is named, and each refusal."""

from typing import Any

import pytest

from noisescope.errors import InputError
from noisescope.tasks import Sample, Task, make_task, score_answer, token_task


def test_plain_texts_are_named_by_their_place_and_not_generated() -> None:
    task = make_task(["one", "two"])
    assert task.samples == (Sample("0", prompt="one"), Sample("1", prompt="two"))
    assert not task.is_generative


def test_samples_with_truths_are_generated_and_scored_by_number() -> None:
    task = make_task([{"prompt": "1 + 1?", "truth": "2"}])
    assert task.is_generative
    assert task.score is score_answer
    assert task.max_new_tokens == 512


def test_an_own_scoring_function_needs_no_truth() -> None:
    def is_long(answer: Any, sample: Sample) -> bool:
        return len(answer) > len(sample.name)

    task = make_task(["a text"], score=is_long, name="own", max_new_tokens=3)
    assert task.is_generative
    assert task.score is is_long
    assert (task.name, task.max_new_tokens) == ("own", 3)


def test_dictionaries_may_hold_lists() -> None:
    chat = [{"role": "user", "content": "hi"}]
    task = make_task([{"messages": chat}, {"name": "ids", "prompt_ids": [1, 2]}])
    assert task.samples[0].messages == ({"role": "user", "content": "hi"},)
    assert task.samples[1] == Sample("ids", prompt_ids=(1, 2))


def test_a_token_task_generates_as_many_tokens_as_its_longest_truth() -> None:
    task = token_task([(2, 0, 1), (1,)], [(0, 1, 2), (1,)])
    assert task.samples[0] == Sample("0", prompt_ids=(2, 0, 1), truth="0 1 2")
    assert task.max_new_tokens == 3
    assert task.score is not None
    assert task.score((0, 1, 2), task.samples[0])
    assert not task.score((0, 2, 1), task.samples[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "sample name '': give a text"),
        ({"name": "a"}, "sample 'a' has no prompt: give one of"),
        ({"name": "a", "prompt": "x", "prompt_ids": (1,)}, "has prompt and prompt_ids: give one"),
        ({"name": "a", "prompt": ""}, "sample 'a' has an empty prompt"),
        ({"name": "a", "messages": ()}, "sample 'a' has an empty messages"),
        ({"name": "a", "prompt_ids": ()}, "sample 'a' has an empty prompt_ids"),
        ({"name": "a", "prompt": 3}, "prompt 3 is not a text"),
        ({"name": "a", "messages": ({"role": "user"},)}, "is not {'role': text, 'content': text}"),
        ({"name": "a", "messages": ("hi",)}, "message 'hi' is not"),
        ({"name": "a", "prompt_ids": (1, -1)}, "token id -1 is not a whole number from 0 up"),
        ({"name": "a", "prompt_ids": (1.5,)}, "token id 1.5 is not a whole number"),
        ({"name": "a", "prompt_ids": (True,)}, "token id True is not a whole number"),
        ({"name": "a", "prompt": "x", "truth": 3}, "truth 3 is not a text"),
    ],
)
def test_a_sample_that_cannot_be_used_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sample(**fields)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "task 'samples' has no samples"),
        (["a", {"name": "0", "prompt": "b"}], "2 samples of task 'samples' are named '0'"),
        ([{"prompt": "a", "truth": "1"}, "b"], "1 of 2 samples have no truth, first '1'"),
        ([3], "sample 0 is of type int: give a Sample"),
        ([{"promt": "a"}], "sample 0: unknown field 'promt'; accepted are name, prompt"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(samples: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(samples)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_max_new_tokens_is_a_whole_number_from_one_up(count: Any) -> None:
    with pytest.raises(InputError, match=f"max_new_tokens {count!r}: give a whole number"):
        make_task(["a"], max_new_tokens=count)


def test_a_token_task_needs_a_truth_for_every_prompt() -> None:
    with pytest.raises(InputError, match="2 prompts and 1 truths"):
        token_task([(1,), (2,)], [(1,)])
    with pytest.raises(InputError, match="truth 1 is empty"):
        token_task([(1,), (2,)], [(1,), ()])


def test_the_fingerprint_follows_the_samples_and_nothing_else() -> None:
    samples = [Sample("0", prompt="a", truth="1"), Sample("1", prompt="b", truth="2")]
    first = Task("one", tuple(samples), score_answer)
    assert first.fingerprint.startswith("sha256:")
    assert Task("two", tuple(samples), None, 7).fingerprint == first.fingerprint
    others = [
        [samples[1], samples[0]],
        [samples[0]],
        [Sample("x", prompt="a", truth="1"), samples[1]],
        [Sample("0", prompt="A", truth="1"), samples[1]],
        [Sample("0", prompt="a", truth="3"), samples[1]],
        [Sample("0", prompt_ids=(1,), truth="1"), samples[1]],
        [Sample("0", messages=({"role": "user", "content": "a"},), truth="1"), samples[1]],
    ]
    fingerprints = {Task("one", tuple(other), score_answer).fingerprint for other in others}
    assert len(fingerprints | {first.fingerprint}) == len(others) + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a\ud800", "prompt": "b"},
        {"prompt": "a\ud800"},
        {"prompt": "b", "truth": "a\ud800"},
        {"messages": [{"role": "user", "content": "a\ud800"}]},
        {"messages": [{"role": "a\ud800", "content": "b"}]},
    ],
)
def test_a_lone_surrogate_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"'\\ud800' at character 1 of a text is not valid Unic"):
        make_task([fields])
