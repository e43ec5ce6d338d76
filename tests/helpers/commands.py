"""Commands on small studies: data on disk, units of a few samples, interrupts on demand."""

import signal
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from helpers.model_dirs import save_model

from noisescope.cli import run
from noisescope.diagnose import carry_out as study_of_a_diagnosis
from noisescope.measure import Worker
from noisescope.report.page import page
from noisescope.study.kept_profile import PROFILE as PROFILE

REPORT = ("result.json", "report.html", "figures/measures.png", "figures/measures.csv")
# A command on what `write_small_study` writes.
SMALL_STUDY = ("layers", "--model=llama", "--data=test.parquet", "--max-new-tokens=3")
SMALL_STUDY += ("--device=cpu", "--window=1", "--memory-gib=1", "--noise-scale=0.2")
FINISHED = ("records.parquet", "witnesses.json", "complete.json", *REPORT)


def write_questions(path: Path, count: int = 6, groups=None) -> Path:
    """Writes the first so many of a list of questions, in the plan's layout."""
    rows = {
        "prompt": [
            [{"role": "user", "content": f"what is {i}+{7 * i % 5}?"}] for i in range(count)
        ],
        "reward_model": [{"ground_truth": str(i + 7 * i % 5)} for i in range(count)],
    }
    pq.write_table(pa.table(rows | ({} if groups is None else {"group": groups})), path)
    return path


def write_texts(path: Path, count: int) -> Path:
    path.write_text("\n\n".join(f"dog number {i} ran {i * i} times" for i in range(count)))
    return path


def write_small_study(directory: Path) -> Path:
    """Writes a small Llama and six questions."""
    save_model(directory / "llama")
    write_questions(directory / "test.parquet")
    return directory


def work_with(origin: Path, place: Path, monkeypatch) -> Path:
    """Links all that lies in a directory into another one, and makes that the working directory."""
    for path in origin.iterdir():
        (place / path.name).symlink_to(path)
    monkeypatch.chdir(place)
    return place


def in_small_units(monkeypatch, samples: int = 2) -> None:
    """Makes new studies keep their records after every so many samples."""
    monkeypatch.setattr(study_of_a_diagnosis, "samples_per_unit", lambda plan: samples)


def with_plain_figures(monkeypatch) -> None:
    """Draws no figure: a second of each command, where the figures are not what is looked at.

    What stands for one still tells its data, so that another figure is another file.
    """

    def drawn(figure, *words):
        texts = [text.get_text() for axes in figure.axes for text in axes.texts]
        return repr(("figure", texts, *map(str, words)))

    monkeypatch.setattr(page, "svg_of", lambda *words: f"<svg><!-- {len(drawn(*words))} --></svg>")
    monkeypatch.setattr(page, "png_of", lambda figure: drawn(figure).encode())


@contextmanager
def interrupted_in_unit(monkeypatch, number: int):
    """Sends SIGINT while the n-th unit, from 1, is measured."""
    measure, left = Worker.__call__, [number]

    def measure_and_interrupt(worker, unit):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return measure(worker, unit)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in some workers
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "__call__", measure_and_interrupt)
            yield
    finally:
        signal.signal(signal.SIGINT, before)
    assert left[0] <= 0, "there was no such unit"


@contextmanager
def nothing_measured(monkeypatch):
    """Fails where a unit is measured."""

    def measure(worker, unit):
        raise AssertionError(f"measured {unit.name}")

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__call__", measure)
        yield


def carry_out(capsys, *words: str) -> str:
    """Runs a command that must be good and returns what it prints."""
    capsys.readouterr()
    status = run(list(words))
    told = capsys.readouterr()
    assert (status, told.err) == (0, ""), told.err
    return told.out


def refusal(capsys, *words: str) -> str:
    """Runs a command that must be refused and returns its one line."""
    capsys.readouterr()
    status = run(list(words))
    told = capsys.readouterr()
    assert status == 2 and told.out == "" and told.err.count("\n") == 1, told.err
    return told.err


def files_of(directory: Path, names=None) -> dict[str, bytes]:
    """Returns the bytes of these files of a study, or of all but its lock."""
    found = {p.relative_to(directory).as_posix(): p for p in sorted(directory.rglob("*"))}
    chosen = {n: p for n, p in found.items() if n != "lock" and not p.is_dir()}
    return {n: p.read_bytes() for n, p in chosen.items() if names is None or n in names}
