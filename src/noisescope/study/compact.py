"""A finished study: records as Parquet, witnesses and notes as JSON, and the digests of both.

The new files are written beside the old ones; `complete.json`, replaced whole, then makes them
count. A process that is killed in between is made up for by `settle`, which puts them in place.
"""

import json
import types
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from noisescope.errors import InputError
from noisescope.inject import Witness
from noisescope.measure import Record
from noisescope.study.files import (
    commit_file,
    partial_path,
    prepare_file,
    read_bytes,
    read_sealed,
    remove_file,
    replace_file,
    seal,
    sha256,
    to_json,
)
from noisescope.study.gather import Gathered
from noisescope.study.plan import StudyPlan

RECORDS, WITNESSES, COMPLETE = "records.parquet", "witnesses.json", "complete.json"
_ARROW = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    tuple[int, ...]: pa.list_(pa.int64()),
}
_ROWS_PER_GROUP = 1 << 16


def write_finished(directory: Path, finished: Gathered, plan: StudyPlan) -> None:
    """Writes what is finished in the place of what was finished before.

    Raises:
        OSError: It cannot be written; what was finished before still counts.
    """
    files = {
        RECORDS: records_parquet(finished, plan),
        WITNESSES: _witnesses_json(finished),
    }
    try:
        for name, data in files.items():
            prepare_file(directory / name, data)
        digests = {name: sha256(data) for name, data in files.items()}
        replace_file(directory / COMPLETE, seal({"stages": finished.stages, "files": digests}))
    except OSError:
        with suppress(OSError):
            for name in files:
                remove_file(partial_path(directory / name))
        raise
    settle(directory)


def settle(directory: Path) -> None:
    """Puts files in place that count already, where a process was killed before it did.

    Raises:
        OSError: They cannot be moved.
        InputError: `complete.json` was changed.
    """
    for name, digest in _digests(directory).items():
        path = directory / name
        data = read_bytes(partial_path(path))
        if data is not None and sha256(data) == digest:
            commit_file(path)


def read_finished(directory: Path) -> Gathered:
    """Returns what is finished; nothing, where `complete.json` is not there.

    Raises:
        InputError: A file was changed or removed since it was written.
    """
    entry = read_sealed(directory / COMPLETE)
    if entry is None:
        if (directory / RECORDS).exists():
            raise InputError(
                f"{directory / COMPLETE} is missing, without which {RECORDS} cannot be trusted: "
                "restore it from a copy, or name another directory"
            )
        return Gathered()
    data = {name: _read_checked(directory / name, sha) for name, sha in entry["files"].items()}
    told = json.loads(data[WITNESSES])
    return Gathered(
        records=_decoded_records(data[RECORDS]),
        witnesses={name: Witness.from_json(w) for name, w in told["witnesses"].items()},
        notes=tuple(told["notes"]),
        stages=entry["stages"],
    )


def records_parquet(finished: Gathered, plan: StudyPlan) -> bytes:
    """Returns the records as a Parquet file, one row each; a number that lacks is null."""
    about = {
        "kind": plan.kind,
        "seed": plan.seed,
        "fingerprints": dict(plan.fingerprints),
        "versions": dict(plan.versions),
    }
    schema = pa.schema(
        [(f.name, _arrow_type(f.type)) for f in fields(Record)],
        metadata={"noisescope": to_json(about)},
    )
    rows = [record.as_json() for record in finished.records]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    return bytes(sink.getvalue())


def _decoded_records(data: bytes) -> tuple[Record, ...]:
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    return tuple(map(Record.from_json, rows))


def _arrow_type(kind: Any) -> Any:
    """Returns the Arrow type of a field of `Record`: `float`, or e.g. `bool | None`."""
    (plain,) = (k for k in get_args(kind) or (kind,) if k is not types.NoneType)
    return _ARROW[plain]


def _witnesses_json(finished: Gathered) -> bytes:
    witnesses = {name: witness.as_json() for name, witness in finished.witnesses.items()}
    return to_json({"witnesses": witnesses, "notes": finished.notes}) + b"\n"


def _digests(directory: Path) -> dict[str, str]:
    entry = read_sealed(directory / COMPLETE)
    return {} if entry is None else entry["files"]


def _read_checked(path: Path, digest: str) -> bytes:
    for candidate in (path, partial_path(path)):
        data = read_bytes(candidate)
        if data is not None and sha256(data) == digest:
            return data
    raise InputError(
        f"{path} was changed since it was written (its digest does not fit {COMPLETE}): restore it "
        "from a copy, or name another directory"
    )
