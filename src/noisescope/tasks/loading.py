"""Tasks from files: the parquet layout of verl, GSM8K's jsonl, and plain text.

Both GSM8K layouts give the same samples under the same names: a sample is named by its row, so the
same questions meet the same noise wherever their file lies. The first rows are taken.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from noisescope.errors import InputError
from noisescope.tasks.samples import MAX_NEW_TOKENS, Sample, Task, check_count, make_task

GSM8K_INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
_PARQUET_MAGIC = b"PAR1"
_PARQUET_COLUMNS = ("prompt", "reward_model")
_JSONL_KEYS = ("question", "answer")
_GROUP = "group"  # optional, in both layouts


def load_task(
    path: str | Path, samples: int | None = None, *, max_new_tokens: int = MAX_NEW_TOKENS
) -> Task:
    """Reads a task from a file.

    Args:
        path: A parquet file with the columns ``prompt`` (a list of role and content) and
            ``reward_model`` (with ``ground_truth``); a jsonl file with ``question`` and ``answer``
            (that ends with ``#### n``); or a txt file, whose texts stand between empty lines and
            are scored without generating anything. The first two may name each sample's ``group``,
            a text or a whole number: what it shares with others, such as their document.
        samples: How many to take, from the first on; None: all. When the file has fewer, all are
            taken and a note of the task says so.
        max_new_tokens: The most tokens that are generated for an answer.

    Raises:
        InputError: The file, or a row of it, cannot be used.
    """
    path = Path(path)
    if samples is not None:
        check_count("samples", samples)
    read = _reader(path)
    found, total = read(path, samples)
    if not found:
        raise InputError(f"{str(path)!r} holds no samples: give a file with at least one")
    notes = []
    if samples is not None and samples > total:
        notes.append(f"{samples} samples asked for, {total} in {path.name}: all are used")
    return make_task(found, name=path.stem, max_new_tokens=max_new_tokens, notes=notes)


_Reader = Callable[[Path, int | None], tuple[list[Sample], int]]


def _reader(path: Path) -> _Reader:
    """Chooses by what the file begins with, then by its suffix."""
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    except FileNotFoundError:
        raise InputError(
            f"no such data file: {str(path)!r}; a parquet, jsonl or txt file is accepted"
        ) from None
    except IsADirectoryError:
        raise InputError(
            f"data {str(path)!r} is a directory: give a parquet, jsonl or txt file"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot read data {str(path)!r}: {error.strerror}; give a parquet, jsonl or txt file"
        ) from error
    except ValueError as error:  # a path with a null character
        raise InputError(
            f"cannot read data {str(path)!r}: {error}; give a parquet, jsonl or txt file"
        ) from error
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_text}
    suffix = ".parquet" if is_parquet else path.suffix.lower()
    if suffix not in readers:
        raise InputError(
            f"data {str(path)!r}: unknown kind {path.suffix!r}; accepted are {', '.join(readers)}"
        )
    return readers[suffix]


def _read_parquet(path: Path, count: int | None) -> tuple[list[Sample], int]:
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow)
            wanted = (*_PARQUET_COLUMNS, _GROUP)
            table = file.read(columns=[n for n in wanted if n in file.schema_arrow.names])
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{str(path)!r} is not a parquet file, or a damaged one "
            f"({str(error).splitlines()[0]}): write it again"
        ) from error
    rows = table.slice(0, count).to_pylist()
    return [_parquet_sample(path, index, row) for index, row in enumerate(rows)], table.num_rows


def _check_columns(path: Path, schema: Any) -> None:
    missing = [name for name in _PARQUET_COLUMNS if name not in schema.names]
    if missing:
        raise InputError(
            f"{str(path)!r} has no column {missing[0]!r}, only "
            f"{', '.join(schema.names) or 'none'}; needed are {' and '.join(_PARQUET_COLUMNS)}"
        )
    repeated = [name for name in (*_PARQUET_COLUMNS, _GROUP) if schema.names.count(name) > 1]
    if repeated:
        raise InputError(
            f"{str(path)!r} has {schema.names.count(repeated[0])} columns named {repeated[0]!r}; "
            "one is accepted: rename or drop the others"
        )
    prompt, reward = (schema.field(name).type for name in _PARQUET_COLUMNS)
    is_chat = (pa.types.is_list(prompt) or pa.types.is_large_list(prompt)) and _has_fields(
        prompt.value_type, "role", "content"
    )
    if not is_chat:
        raise InputError(
            f"column 'prompt' of {str(path)!r} has type {prompt}; accepted is a list of "
            "{role, content}"
        )
    if not _has_fields(reward, "ground_truth"):
        raise InputError(
            f"column 'reward_model' of {str(path)!r} has type {reward}; accepted is a struct with "
            "ground_truth"
        )


def _has_fields(kind: Any, *names: str) -> bool:
    return pa.types.is_struct(kind) and all(kind.get_field_index(name) >= 0 for name in names)


def _parquet_sample(path: Path, index: int, row: Mapping[str, Any]) -> Sample:
    truth = (row["reward_model"] or {}).get("ground_truth")
    if not isinstance(truth, str | int | float):
        raise InputError(
            f"row {index} of {str(path)!r}: ground_truth {truth!r} is neither text nor number"
        )
    messages: list[dict[str, Any]] = [m or {} for m in row["prompt"] or []]
    chat: tuple[dict[str, Any], ...] = tuple(
        {key: message.get(key) for key in ("role", "content")} for message in messages
    )
    group = _group(f"row {index} of {str(path)!r}", row.get(_GROUP))
    return Sample(str(index), messages=chat, truth=str(truth), group=group)


def _group(where: str, value: Any) -> str | None:
    """Returns a sample's group as text; None where it has none."""
    if value is None:
        return None
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise InputError(
            f"{where}: group {value!r:.60} is neither text nor whole number; write null where a "
            "sample has none"
        )
    return str(value)


def _read_jsonl(path: Path, count: int | None) -> tuple[list[Sample], int]:
    # Not splitlines: JSON texts may hold other line separators of Unicode unescaped.
    lines = [(n, line) for n, line in enumerate(_read(path).split("\n"), 1) if line.strip()]
    found = [_jsonl_sample(path, *entry, index) for index, entry in enumerate(lines[:count])]
    return found, len(lines)


def _jsonl_sample(path: Path, number: int, line: str, index: int) -> Sample:
    where = f"line {number} of {str(path)!r}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object with {' and '.join(_JSONL_KEYS)}")
    for key in _JSONL_KEYS:
        if not isinstance(row.get(key), str):
            raise InputError(
                f"{where} has no text {key!r}, only {', '.join(row) or 'nothing'}; accepted are "
                f"objects with {' and '.join(_JSONL_KEYS)}"
            )
    _, mark, truth = row["answer"].rpartition("####")
    if not mark:
        raise InputError(f"{where}: the answer does not end with '#### n', n being the truth")
    message = {"role": "user", "content": f"{row['question']} {GSM8K_INSTRUCTION}"}
    truth = truth.strip().replace(",", "")
    return Sample(
        str(index), messages=(message,), truth=truth, group=_group(where, row.get(_GROUP))
    )


def _read_text(path: Path, count: int | None) -> tuple[list[Sample], int]:
    texts = [text.strip() for text in re.split(r"\n[ \t]*\n", _read(path))]
    texts = [text for text in texts if text]
    return [Sample(str(i), prompt=text) for i, text in enumerate(texts[:count])], len(texts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"data {str(path)!r} is not UTF-8 text (byte {error.start}): convert it to UTF-8"
        ) from error
