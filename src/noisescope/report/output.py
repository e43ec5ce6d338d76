"""Where output goes: never over something that is there, and whole or not at all."""

import shutil
import tempfile
from pathlib import Path

from noisescope.errors import InputError
from noisescope.report.heatmap import draw_heatmap
from noisescope.report.result import result_of, write_records, write_result
from noisescope.study import Diagnosis


def check_output(option: str, path: Path) -> None:
    """Raises InputError unless a path is absent and its directory takes files.

    Args:
        option: What the path was given as, for the message.
        path: The file or directory to be written later.
    """
    try:
        is_taken = path.exists() or path.is_symlink()
    except OSError as error:
        raise InputError(f"{option}: {error.strerror}; name another") from error
    if is_taken:
        raise InputError(f"{option} {path} exists already: name one that does not")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{option} {path}: there is no directory {parent}; make it first")
    try:
        tempfile.TemporaryDirectory(prefix=".noisescope-", dir=parent).cleanup()
    except OSError as error:
        raise InputError(
            f"{option} {path}: nothing can be written in {parent} ({error.strerror}); name another"
        ) from error


def fresh_directory(base: Path) -> Path:
    """Returns `base`, or the first of base-2, base-3 ... that does not exist."""
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def write_directory(diagnosis: Diagnosis, out: Path) -> None:
    """Writes result, records and heatmap; the directory appears whole or not at all."""
    try:
        made = Path(tempfile.mkdtemp(prefix=".noisescope-", dir=out.absolute().parent))
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}; name another") from error
    try:
        write_result(result_of(diagnosis), made / "result.json")
        write_records(diagnosis.measurement.records, made / "records.jsonl")
        draw_heatmap(diagnosis, made / "heatmap.png")
        made.chmod(0o755)
        made.rename(out)
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}; name another") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
