"""Tasks: samples, how an answer is scored, and how a prompt becomes token ids."""

from noisescope.tasks.loading import GSM8K_INSTRUCTION, load_task
from noisescope.tasks.prompts import (
    PLAIN_PROMPT_NOTE,
    encode_sample,
    encode_task,
    uses_plain_prompt,
)
from noisescope.tasks.samples import (
    MAX_NEW_TOKENS,
    Answer,
    Sample,
    Task,
    make_task,
    score_answer,
    token_task,
)
from noisescope.tasks.scoring import are_tokens_right, extract_number, is_right

__all__ = [
    "GSM8K_INSTRUCTION",
    "MAX_NEW_TOKENS",
    "PLAIN_PROMPT_NOTE",
    "Answer",
    "Sample",
    "Task",
    "are_tokens_right",
    "encode_sample",
    "encode_task",
    "extract_number",
    "is_right",
    "load_task",
    "make_task",
    "score_answer",
    "token_task",
    "uses_plain_prompt",
]
