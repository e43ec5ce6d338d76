"""Prompts as token ids, against what the tokenizer gives for the text that is meant."""

from typing import Any

import pytest
from helpers.shared import shared_path
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from noisescope.errors import InputError
from noisescope.tasks import encode_sample, encode_task, make_task, uses_plain_prompt

WORDS = ["<s>", "</s>", "<unk>", "user:", "assistant:", "hello", "there", "be", "kind"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
CHAT = ({"role": "user", "content": "hello there"},)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Words to their place in WORDS, a text between <s> and nothing; ``user:`` is one word."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_a_plain_text_gets_the_special_tokens_of_the_tokenizer(tokenizer: Any) -> None:
    task = make_task(["hello there"])
    assert encode_task(task, tokenizer) == [[0, 5, 6]]
    assert not uses_plain_prompt(task, tokenizer)


def test_a_chat_goes_through_the_template_up_to_the_assistants_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    task = make_task([{"messages": CHAT}])
    assert encode_task(task, tokenizer) == [[3, 5, 6, 4]]
    assert not uses_plain_prompt(task, tokenizer)


def test_a_chat_without_a_template_is_its_contents_as_plain_text(tokenizer: Any) -> None:
    task = make_task([{"messages": ({"role": "system", "content": "be kind"}, *CHAT)}])
    assert encode_task(task, tokenizer) == [[0, 7, 8, 5, 6]]
    assert uses_plain_prompt(task, tokenizer)


def test_a_chat_without_a_template_is_joined_by_line_ends_exactly() -> None:
    words = {"<unk>": 0, "be": 1, "kind\nhello": 2, "there": 3}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    task = make_task([{"messages": ({"role": "system", "content": "be kind"}, *CHAT)}])
    assert encode_task(task, tokenizer) == [[1, 2, 3]]


def test_a_plain_text_passes_by_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    assert encode_task(make_task(["hello there"]), tokenizer) == [[0, 5, 6]]


def test_token_ids_need_no_tokenizer() -> None:
    task = make_task([{"prompt_ids": (2, 0, 1)}])
    assert encode_task(task, None) == [[2, 0, 1]]
    assert not uses_plain_prompt(task, None)


def test_a_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(
        InputError, match="sample '0' is text and the model has no tokenizer"
    ) as error:
        encode_sample(make_task(["hello"]).samples[0], None)
    assert str(error.value).endswith(
        "give the directory of one (--tokenizer DIR), or from Python samples as token ids"
    )


def test_a_template_that_refuses_the_chat_is_answered_in_one_line(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('no\nsystem role') }}"
    with pytest.raises(InputError, match="refuses sample '0': no system role"):
        encode_task(make_task([{"messages": CHAT}]), tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ 'a'.encode('nothing') }}",
        "{{ '{x}'.format() }}",
        "{{ 1|xmlattr }}",
        "{{ messages[9].role }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% if %}",
    ],
)
def test_a_template_that_fails_is_answered_in_one_line(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"template refuses sample '0': .") as error:
        encode_task(make_task([{"messages": CHAT}]), tokenizer)
    assert "\n" not in str(error.value)


def test_a_template_without_a_token_leaves_too_little(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ '' }}"
    task = make_task([{"messages": CHAT, "truth": "1"}])
    with pytest.raises(InputError, match="sample '0' is 0 tokens long, at least 1 are needed"):
        encode_task(task, tokenizer, context_length=8, vocabulary_size=9)


def test_a_prompt_may_fill_the_context_and_no_more() -> None:
    task = make_task([{"prompt_ids": (1, 1)}, {"name": "long", "prompt_ids": (1, 1, 1)}])
    assert encode_task(task, None, context_length=3) == [[1, 1], [1, 1, 1]]
    with pytest.raises(
        InputError, match="sample 'long' is 3 tokens long, the model takes at most 2: shorten"
    ):
        encode_task(task, None, context_length=2)


def test_a_text_of_one_token_has_nothing_to_score_along() -> None:
    with pytest.raises(InputError, match="sample '0' is 1 tokens long, at least 2 are needed"):
        encode_task(make_task([{"prompt_ids": (1,)}]), None)
    assert encode_task(make_task([{"prompt_ids": (1,), "truth": "1"}]), None) == [[1]]


def test_ids_outside_the_vocabulary_are_refused() -> None:
    task = make_task([{"prompt_ids": (0, 3)}])
    assert encode_task(task, None, vocabulary_size=4) == [[0, 3]]
    with pytest.raises(InputError, match="sample '0' has token id 3, the model knows 0 to 2"):
        encode_task(task, None, vocabulary_size=3)


def test_stories_tokenizer_puts_its_start_token_before_a_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_path("models/stories260K"))
    (ids,) = encode_task(make_task(["Once upon a time"]), tokenizer)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Once upon a time"
