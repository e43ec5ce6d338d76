"""Tasks from files: the three layouts, and one line for each file that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.shared import shared_path

from noisescope.errors import InputError
from noisescope.tasks import load_task

CHAT = [{"role": "user", "content": "1 + 1?"}]


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def write_rows(path: Path, count: int) -> Path:
    return write_parquet(
        path,
        {
            "prompt": [CHAT] * count,
            "reward_model": [{"ground_truth": str(i)} for i in range(count)],
        },
    )


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_both_layouts_of_gsm8k_ask_the_same_questions() -> None:
    parquet = load_task(shared_path("data/gsm8k/test.parquet"))
    jsonl = load_task(shared_path("data/gsm8k/test.jsonl"))
    assert len(parquet.samples) == 1319
    assert parquet.samples == jsonl.samples
    assert parquet.fingerprint == jsonl.fingerprint
    assert parquet.samples[0].truth == "18"
    assert parquet.is_generative
    assert parquet.max_new_tokens == 512


def test_the_first_samples_are_taken_and_named_by_their_row(tmp_path: Path) -> None:
    task = load_task(write_rows(tmp_path / "a.parquet", 5), samples=3, max_new_tokens=9)
    assert [(s.name, s.truth) for s in task.samples] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert task.samples[0].messages == tuple(CHAT)
    assert (task.name, task.max_new_tokens, task.notes) == ("a", 9, ())


def test_the_same_questions_elsewhere_have_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    here = load_task(write_rows(tmp_path / "a.parquet", 3))
    there = load_task(write_rows(tmp_path / "sub" / "b.parquet", 3))
    assert here.samples == there.samples


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "txt"])
def test_more_samples_than_there_are_are_all_used_and_noted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        write_rows(path, 2)
    elif suffix == "jsonl":
        write_jsonl(path, *[{"question": "?", "answer": "#### 1"}] * 2)
    else:
        path.write_text("one\n\ntwo")
    task = load_task(path, samples=3)
    assert len(task.samples) == 2
    assert task.notes == (f"3 samples asked for, 2 in a.{suffix}: all are used",)
    assert load_task(path, samples=2).notes == ()


def test_a_parquet_file_is_known_by_its_content(tmp_path: Path) -> None:
    assert len(load_task(write_rows(tmp_path / "data", 2)).samples) == 2


def test_a_truth_may_be_a_number(tmp_path: Path) -> None:
    columns = {"prompt": [CHAT], "reward_model": [{"ground_truth": 7}]}
    assert load_task(write_parquet(tmp_path / "a.parquet", columns)).samples[0].truth == "7"


def test_jsonl_truth_is_what_follows_the_last_mark_without_commas(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"question": "?", "answer": "#### no\n#### 1,250"})
    assert load_task(path).samples[0].truth == "1250"


def test_jsonl_may_hold_unicode_line_separators_and_empty_lines(tmp_path: Path) -> None:
    row = json.dumps({"question": "a\u2028b", "answer": "#### 1"}, ensure_ascii=False)
    path = tmp_path / "a.jsonl"
    path.write_text(f"{row}\n\n{row}\n", encoding="utf-8")
    assert [s.name for s in load_task(path).samples] == ["0", "1"]


def with_groups(path: Path, groups: Any) -> Path:
    """Writes a file of either layout, a sample for each group."""
    if path.suffix == ".parquet":
        rows = pq.read_table(write_rows(path, len(groups)))
        pq.write_table(rows.append_column("group", pa.array(groups)), path)
        return path
    row = {"question": "?", "answer": "#### 1"}
    return write_jsonl(path, *({**row, "group": group} for group in groups))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (["page 1", None, "page 1"], ["page 1", None, "page 1"]),
        ([3, 3, None], ["3", "3", None]),
        ([None, None], [None, None]),
        ([0, -1, 2**62], ["0", "-1", str(2**62)]),
        (["[red]\n\x07", "文"], ["[red]\n\x07", "文"]),
    ],
)
def test_a_group_is_text_or_a_whole_number_or_none(
    tmp_path: Path, suffix: str, groups: list[Any], expected: list[str | None]
) -> None:
    task = load_task(with_groups(tmp_path / f"a.{suffix}", groups))
    assert [s.group for s in task.samples] == expected
    assert [s.name for s in task.samples] == [str(i) for i in range(len(groups))]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_without_groups_samples_have_none(tmp_path: Path, suffix: str) -> None:
    plain = write_rows(tmp_path / "a.parquet", 2)
    if suffix == "jsonl":
        plain = write_jsonl(tmp_path / "a.jsonl", *[{"question": "?", "answer": "#### 1"}] * 2)
    task = load_task(plain)
    assert [s.group for s in task.samples] == [None, None]
    unknown = load_task(with_groups(tmp_path / f"b.{suffix}", [None, None]))
    known = load_task(with_groups(tmp_path / f"c.{suffix}", ["x", "x"]))
    assert unknown.fingerprint != known.fingerprint


def test_texts_have_no_group(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("group\n\ngroup\n")
    assert [s.group for s in load_task(path).samples] == [None, None]


@pytest.mark.parametrize(("suffix", "where"), [("parquet", "row 1 of "), ("jsonl", "line 2 of ")])
@pytest.mark.parametrize("group", [1.5, 2.0, "", [2], True, {"a": 1}])
def test_a_group_of_another_kind_is_refused_with_its_place(
    tmp_path: Path, suffix: str, where: str, group: Any
) -> None:
    path = with_groups(tmp_path / f"a.{suffix}", [None, group])
    with pytest.raises(
        InputError, match=f"^{where}.*: group .* is neither text nor whole"
    ) as error:
        load_task(path)
    assert "\n" not in str(error.value)
    assert len(load_task(path, samples=1).samples) == 1


def test_texts_stand_between_empty_lines_and_are_not_generated(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\nline one\nline two\n \t\n\n\nthird\r\n\r\nfourth\n", encoding="utf-8")
    task = load_task(path)
    assert [s.prompt for s in task.samples] == ["line one\nline two", "third", "fourth"]
    assert [s.name for s in task.samples] == ["0", "1", "2"]
    assert not task.is_generative


@pytest.mark.parametrize("samples", [0, -3, 2.0, True])
def test_samples_is_a_whole_number_from_one_up(tmp_path: Path, samples: Any) -> None:
    path = write_rows(tmp_path / "a.parquet", 2)
    with pytest.raises(InputError, match=f"^samples {samples!r}: give a whole number"):
        load_task(path, samples=samples)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": ["?"]}, "has no column 'prompt', only question; needed are prompt and"),
        ({"prompt": [CHAT]}, "has no column 'reward_model', only prompt"),
        (
            {"prompt": ["text"], "reward_model": [{"ground_truth": "1"}]},
            "column 'prompt' of .* has type string; accepted is a list of {role, content}",
        ),
        (
            {"prompt": [[{"role": "user"}]], "reward_model": [{"ground_truth": "1"}]},
            "column 'prompt' of .* has type list",
        ),
        ({"prompt": [CHAT], "reward_model": ["1"]}, "column 'reward_model' of .* type string"),
        (
            {"prompt": [CHAT], "reward_model": [{"truth": "1"}]},
            "column 'reward_model' of .* accepted is a struct with ground_truth",
        ),
        (
            {"prompt": [CHAT, CHAT], "reward_model": [{"ground_truth": "1"}, None]},
            "row 1 of .*: ground_truth None is neither text nor number",
        ),
        (
            {"prompt": [CHAT, None], "reward_model": [{"ground_truth": "1"}] * 2},
            "sample '1' has an empty messages",
        ),
        (
            {"prompt": [CHAT, [None]], "reward_model": [{"ground_truth": "1"}] * 2},
            "sample '1': message .* is not",
        ),
    ],
)
def test_a_parquet_that_cannot_be_used_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_task(write_parquet(tmp_path / "a.parquet", columns))
    assert "\n" not in str(error.value)


def test_an_empty_parquet_is_refused(tmp_path: Path) -> None:
    full = write_rows(tmp_path / "full.parquet", 1)
    pq.write_table(pq.read_table(full).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet' holds no samples"):
        load_task(tmp_path / "a.parquet")


@pytest.mark.parametrize("content", [b"", b"question,answer\n", b"PAR1 and nothing more"])
def test_what_is_no_parquet_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a parquet file, or a damaged one") as error:
        load_task(path)
    assert "\n" not in str(error.value)


def test_a_parquet_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", 9)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="is not a parquet file, or a damaged one"):
        load_task(path)


@pytest.mark.parametrize("name", ["prompt", "reward_model", "group"])
def test_a_parquet_with_a_column_twice_is_refused(tmp_path: Path, name: str) -> None:
    table = pq.read_table(with_groups(tmp_path / "full.parquet", ["x"]))
    pq.write_table(table.append_column(name, table[name]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"a.parquet' has 2 columns named '{name}'; one is"):
        load_task(tmp_path / "a.parquet")


def test_a_parquet_with_damaged_pages_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", 9)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    with pytest.raises(InputError, match="is not a parquet file, or a damaged one"):
        load_task(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "?", "answer": "#### 1"}\n\n{"question"\n', "line 3 of .* is not JSON: "),
        pytest.param("[" * 100_000, "line 1 of .* is not JSON: ", id="deep"),
        pytest.param("9" * 5000, "line 1 of .* is not JSON: ", id="huge"),
        (
            '{"question": "\\ud800", "answer": "#### 1"}\n',
            r"sample '0': '\\ud800' at character 0 of a text is not valid Unicode text",
        ),
        ("[1]\n", "line 1 of .* is not a JSON object"),
        ('{"question": "?"}\n', "line 1 of .* has no text 'answer', only question"),
        ('{"question": 3, "answer": "#### 1"}\n', "line 1 of .* has no text 'question', only"),
        ('{"question": "?", "answer": "1"}\n', "line 1 of .*: the answer does not end with"),
        ("\n \n", "a.jsonl' holds no samples"),
    ],
)
def test_a_jsonl_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_task(path)


def test_a_text_that_is_empty_or_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n\n\t\n")
    with pytest.raises(InputError, match="holds no samples"):
        load_task(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"is not UTF-8 text \(byte 3\)"):
        load_task(path)


def test_a_path_that_is_no_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such data file: .*nowhere\.parquet'"):
        load_task(tmp_path / "nowhere.parquet")
    with pytest.raises(InputError, match="is a directory: give a parquet, jsonl or txt file"):
        load_task(tmp_path)
    for name in ("x" * 256, "a\0"):
        with pytest.raises(InputError, match="cannot read data ") as error:
            load_task(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "a.csv").write_text("question,answer\n")
    with pytest.raises(InputError, match=r"unknown kind '\.csv'; accepted are \.parquet, \.jsonl"):
        load_task(tmp_path / "a.csv")
