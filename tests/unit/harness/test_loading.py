"""Tasks by name: from the user's directory first, offline, every mistake one line."""

import json
import logging
import re
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from helpers.harness import ANSWERS, CHOICES, TEXTS, write_tasks

from noisescope.errors import InputError
from noisescope.harness import TaskOptions, load_tasks
from noisescope.harness.loading import task_fingerprint
from noisescope.harness.refused import in_one_line

PLAIN = TaskOptions()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("given") / "tasks", count=3)


@pytest.fixture
def own_tasks_only(monkeypatch):
    """Leaves out the harness's own fourteen thousand, which take ten seconds to read."""
    made = lm_eval.tasks.TaskManager

    def manager(include_path=None, include_defaults=True):
        return made(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


def test_tasks_come_in_the_order_of_their_names_and_patterns_are_written_out(tasks):
    def names(*asked):
        return [task.name for task in load_tasks(asked, tasks, PLAIN)]

    assert names(TEXTS, CHOICES) == [TEXTS, CHOICES]
    assert names("local_*") == [ANSWERS, CHOICES, TEXTS]
    assert names(CHOICES, "local_c*") == [CHOICES]
    assert [t.name for t in load_tasks([str(tasks / f"{TEXTS}.yaml")], None, PLAIN)] == [TEXTS]


def test_what_is_asked_takes_precedence_over_the_task(tasks):
    (task,) = load_tasks([ANSWERS], tasks, PLAIN)
    assert task.task.get_config("num_fewshot") == 1
    assert task.task.get_config("generation_kwargs")["max_gen_toks"] == 6
    asked = TaskOptions(num_fewshot=2, gen_kwargs={"max_gen_toks": 3})
    (other,) = load_tasks([ANSWERS], tasks, asked)
    assert other.task.get_config("num_fewshot") == 2
    assert other.task.get_config("generation_kwargs") == {
        "until": ["q:"],
        "do_sample": False,
        "max_gen_toks": 3,
    }
    assert other.fingerprint != task.fingerprint


def test_a_fingerprint_is_of_questions_and_not_of_places(tmp_path):
    one, same, other = (write_tasks(tmp_path / name, count=3) for name in ("a", "b", "c"))
    data = other / "questions.jsonl"
    data.write_text(data.read_text().replace("dog", "dot"))
    found = [load_tasks([CHOICES], place, PLAIN)[0] for place in (one, same, other)]
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint
    assert task_fingerprint(found[0].task, 2) != task_fingerprint(found[0].task, 3)
    assert task_fingerprint(found[0].task, 3) == task_fingerprint(found[0].task, 0.9)


def test_an_unknown_name_is_answered_with_near_ones(tasks, own_tasks_only):
    with pytest.raises(
        InputError, match=r"no task 'local_choice' .*; did you mean 'local_choices'"
    ):
        load_tasks(["local_choice"], tasks, PLAIN)
    with pytest.raises(
        InputError, match=r"no task 'zzz\*' in lm-evaluation-harness or in .*\. List"
    ):
        load_tasks(["zzz*"], tasks, PLAIN)
    with pytest.raises(InputError, match="no task is named"):
        load_tasks([], tasks, PLAIN)
    with pytest.raises(InputError, match=r"there is no directory .*nowhere"):
        load_tasks([CHOICES], tasks / "nowhere", PLAIN)


def test_data_that_are_not_here_are_not_fetched(tmp_path):
    def yaml(name: str, lines: str):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{lines}")

    tail = 'test_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: "a"\n'
    yaml("far", f"dataset_path: someone/no-such-data\n{tail}")
    gone = f"dataset_kwargs:\n  data_files:\n    test: {tmp_path}/gone.jsonl\n"
    yaml("lost", f"dataset_path: json\n{gone}{tail}")
    for name in ("far", "lost"):
        with pytest.raises(InputError, match=f"task '{name}': its data are not on this machine"):
            load_tasks([name], tmp_path, PLAIN)


def test_the_task_of_the_documentation_is_one(tmp_path, monkeypatch):
    import datasets

    root = Path(__file__).parents[3]
    (text,) = re.findall(r"```yaml\n(.*?)```", (root / "docs/evaluation.md").read_text(), re.DOTALL)
    (tmp_path / "demo_questions.yaml").write_text(text)
    monkeypatch.chdir(root)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (task,) = load_tasks(["demo_questions"], tmp_path, TaskOptions(limit=2))
    assert task.task.doc_to_text(task.task.eval_docs[0]).startswith("Leo has 45 keys.")
    assert task.task.doc_to_target(task.task.eval_docs[0]) == "42"


def test_a_wrong_file_is_one_line(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    (tmp_path / "bad.yaml").write_text(
        f"task: bad\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/data.jsonl\n"
        f"  cache_dir: {tmp_path}/cache\ntest_split: test\noutput_type: no_such_type\n"
    )
    with pytest.raises(InputError, match="cannot load task 'bad': ") as told:
        load_tasks(["bad"], tmp_path, PLAIN)
    assert "\n" not in str(told.value)


def test_code_that_the_model_writes_is_run_only_where_that_is_meant(tasks, monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask, "UNSAFE_CODE", True, raising=False)
    with pytest.raises(InputError, match="runs code that the model writes"):
        load_tasks([ANSWERS], tasks, PLAIN)
    assert load_tasks([ANSWERS], tasks, TaskOptions(run_unsafe_code=True))


@pytest.mark.parametrize(
    "given", [{"limit": 0}, {"limit": -1}, {"limit": 2.5}, {"num_fewshot": -1}]
)
def test_numbers_out_of_range_are_refused(given):
    with pytest.raises(InputError, match="a whole number"):
        TaskOptions(**given)


_MINE = """\
task: mine
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_target: "{{{{answer}}}}"
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{nosuch.field}}", "UndefinedError: 'nosuch' is undefined"),
        ("{{question", "TemplateSyntaxError: "),
    ],
)
def test_a_wrong_template_is_one_line(tasks, tmp_path, text, said):
    head = _MINE.format(data=tasks / "questions.jsonl", cache=tasks / "cache")
    (tmp_path / "mine.yaml").write_text(f"{head}doc_to_text: '{text}'\n")
    with pytest.raises(InputError, match="cannot load task 'mine'") as told:
        load_tasks(["mine"], tmp_path, PLAIN)
    assert said in str(told.value) and "\n" not in str(told.value)


def test_empty_data_are_one_line(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    head = _MINE.format(data=tmp_path / "none.jsonl", cache=tmp_path / "cache")
    (tmp_path / "mine.yaml").write_text(f"{head}doc_to_text: q\n")
    with pytest.raises(InputError, match="cannot load task 'mine': "):
        load_tasks(["mine"], tmp_path, PLAIN)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StopIteration(), "do it: StopIteration: its data are empty"),
        (ZeroDivisionError("division by zero"), "do it: ZeroDivisionError: division by zero"),
        (AttributeError("no\n such"), "do it: AttributeError: no such"),
        (InputError("as it is"), "as it is"),
    ],
)
def test_what_code_of_a_task_raises_is_one_line(error, said):
    def fail():
        raise error

    with pytest.raises(InputError) as told:
        in_one_line("do it", fail)
    assert str(told.value) == said


def test_memory_that_runs_out_is_no_fault_of_the_task():
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_one_line("do it", fail)


def test_a_file_that_cannot_be_read_is_named_beside_the_unknown_task(tmp_path, own_tasks_only):
    (tmp_path / "mine.yaml").write_text("task: mine\n  bad: [\n")
    logger = logging.getLogger("lm_eval.tasks._index")
    before = logger.level, list(logger.filters)
    with pytest.raises(InputError, match=r"no task 'mine' .* lm_eval: Skip .*mine\.yaml") as told:
        load_tasks(["mine"], tmp_path, PLAIN)
    # Its own catalogue holds files that are no tasks, too, which is no news.
    assert str(told.value).count("Skip") == 1 and "\n" not in str(told.value)
    assert before == (logger.level, list(logger.filters))


def test_options_that_do_nothing_in_a_task_are_told(tasks, tmp_path):
    path = tasks / f"{CHOICES}.yaml"
    (tmp_path / path.name).write_text(path.read_text() + "num_fewshot: 0\n")
    asked = TaskOptions(num_fewshot=2, gen_kwargs={"max_gen_toks": 3})
    (choices,) = load_tasks([CHOICES], tmp_path, asked)
    assert choices.task.get_config("num_fewshot") == 0
    assert choices.unused == ("gen_kwargs", "num_fewshot") and choices.options == asked
    (answers,) = load_tasks([ANSWERS], tasks, asked)
    assert answers.unused == () and answers.metrics == ("exact_match",)
