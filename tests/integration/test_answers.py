"""What a model answers is data: kept to the letter in Parquet, and never obeyed by a terminal."""

import dataclasses
import io

import pyarrow.parquet as pq
import pytest
from helpers.commands import with_plain_figures
from helpers.model_dirs import loaded_small
from rich.console import Console

from noisescope import RelativeGaussian, diagnose_layers, make_task
from noisescope.report import write_report
from noisescope.report.terminal import print_diagnosis, print_state
from noisescope.study import read_study

ANSWERS = [
    "[red]4[bold] :smile: [link=http://x]y",
    "\x1b[31m4\x1b]0;title\x07\x00",
    '=1+1\t"\r\n\u2028\u202e',
    "",
]


class Speaker:
    """A tokenizer that decodes whatever it is given to one text."""

    def __init__(self, tokenizer, text):
        self._tokenizer, self._text = tokenizer, text

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *given, **options):
        return self._tokenizer(*given, **options)

    def decode(self, ids, **options):
        return self._text


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_stays_text(tmp_path, monkeypatch, answer):
    with_plain_figures(monkeypatch)  # no answer is in one
    loaded = loaded_small()
    loaded = dataclasses.replace(loaded, tokenizer=Speaker(loaded.tokenizer, answer))
    samples = [{"name": f"{i}{answer}", "prompt": "2+2=", "truth": "4"} for i in range(2)]
    task = make_task(samples, name=f"data{answer}", max_new_tokens=2)
    out = tmp_path / "study"
    found = diagnose_layers(loaded, task, RelativeGaussian(0.3), out=out)
    write_report(found, out)
    rows = pq.read_table(out / "records.parquet").to_pylist()
    chosen = sum(map(len, found.chosen.values()))
    assert chosen > 0
    # Those of the clean model and the one window; what a step chose is only scored.
    answers = [answer] * 4 + [None] * (2 * chosen)
    assert [row["answer"] for row in rows] == answers
    assert [row["sample"] for row in rows] == [f"0{answer}", f"1{answer}"] * (2 + chosen)
    assert [r.answer for r in read_study(out).records] == answers
    file = io.StringIO()
    console = Console(file=file, width=200)
    print_state(console, read_study(out))
    print_diagnosis(console, found)
    shown = file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in shown)
    plain = "".join(c if c.isprintable() else "?" for c in f"data{answer}")
    assert f"data {plain} (sha256:" in shown.replace("\n", " ")
