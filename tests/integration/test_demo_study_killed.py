"""A study of the demo model, killed again and again, ends byte for byte as one that ran through."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.killing import kill_and_resume, size_of

from noisescope.demo import demo_model_dir, demo_questions

NOISESCOPE = Path(sys.executable).with_name("noisescope")
FILES = (
    "result.json",
    "records.parquet",
    "witnesses.json",
    "profile.safetensors",
    "report.html",
    "figures/windows.png",
    "figures/windows.csv",
    "manifest.json",
)


def command(out: Path, samples: int, draws: int) -> list[str]:
    options = {
        "--model": demo_model_dir(),
        "--data": demo_questions(),
        "--noise-scale": 0.2,
        "--window": 2,
        "--stride": 2,
        "--samples": samples,
        "--draws": draws,
        "--dtype": "float32",
        "--device": "cpu",
        "--memory-gib": 2,
        "--max-new-tokens": 96,
        "--out": out,
    }
    return [str(NOISESCOPE), "layers", *(f"{name}={value}" for name, value in options.items())]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_25_kills_of_the_demo_study(tmp_path):
    through, killed = tmp_path / "through", tmp_path / "killed"
    journal = killed / "records.jsonl"
    sizes = []

    def has_grown() -> bool:
        sizes.append(size_of(journal))
        return len(sizes) > 1 and sizes[-1] > sizes[-2]

    grown = kill_and_resume(
        command(killed, 100, 6), kills=25, longest_s=24.0, is_interesting=has_grown
    )
    assert grown >= 3, "kills came too early to hit the work"
    subprocess.run(command(through, 100, 6), check=True, capture_output=True)
    for name in FILES:
        assert (killed / name).read_bytes() == (through / name).read_bytes(), name
    assert not journal.exists()
    shutil.rmtree(tmp_path)
