"""Tasks of lm-evaluation-harness on local files: choices, generated answers, and whole texts."""

import json
from pathlib import Path

from helpers.model_dirs import as_loaded
from helpers.small_models import small_model

from noisescope.harness import Answer, Run
from noisescope.inject import Witness

CHOICES, ANSWERS, TEXTS = "local_choices", "local_answers", "local_texts"
WORDS = ("dog", "cat", "owl", "bee", "fox", "ant", "elk", "cow", "hen", "emu", "ape", "yak")


def write_tasks(directory: Path, count: int = 12) -> Path:
    """Writes one task of each kind and their questions, and returns the directory."""
    directory.mkdir(exist_ok=True)
    rows = [
        {
            "question": f"{word} number {n} has {n % 5}+{n % 3} legs: how many?",
            "choices": [str(n % 5 + n % 3), str(n % 7 + 2), str(n + 11)],
            "gold": 0,
            "answer": f"it is {n % 5 + n % 3}\n#### {n % 5 + n % 3}",
            "text": f"the {word} ran {n} times, then {n * n} more",
        }
        for n, word in ((n, WORDS[n % len(WORDS)]) for n in range(count))
    ]
    data = directory / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, lines in _TASKS.items():
        head = _HEAD.format(name=name, data=data, cache=directory / "cache")
        (directory / f"{name}.yaml").write_text(head + lines)
    return directory


_HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
metadata:
  version: 1.0
"""
_TASKS = {
    CHOICES: """\
output_type: multiple_choice
doc_to_text: "{{question}} "
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    ANSWERS: """\
output_type: generate_until
fewshot_split: test
num_fewshot: 1
doc_to_text: "q: {{question}} a: "
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["q:"]
  do_sample: false
  max_gen_toks: 6
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: flexible
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
      - function: take_first
""",
    TEXTS: """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""",
}


def loaded_for_tasks(**changes):
    """A small random Llama with room for the tasks' prompts, as `load_model` would return it."""
    return as_loaded(
        small_model("llama", max_position_embeddings=256, **changes), context_length=256
    )


def requests(kind: str, arguments):
    """Requests as the harness makes them."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, 0, ("t", n, 1)) for n, given in enumerate(arguments)]


def run_of(condition: str = "clean", draw: int = 0, values=(1.0, 0.0), metric: str = "acc", **more):
    """A run of a task with one metric, its samples named by their place."""
    hashes = more.pop("hashes", None) or [f"h{n}" for n in range(len(values))]
    responses = more.pop("responses", None) or [None] * len(values)
    prompt = more.pop("prompt", "p")
    answers = tuple(
        Answer(n, hashes[n], f"{prompt}{n}", "none", {metric: value}, responses[n], "t")
        for n, value in enumerate(values)
    )
    given = {
        "task": "task",
        "aggregates": {},
        "higher_is_better": {metric: True},
        "output_type": "generate_until",
        "witness": Witness((), False),
    }
    return Run(condition, draw, answers=answers, **(given | more))
