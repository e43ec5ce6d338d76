"""The notebook of the examples: its cells run, and what they show is what the study says."""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from helpers.commands import write_small_study

NOTEBOOK = Path(__file__).parents[2] / "examples" / "study.ipynb"


def cells(kind: str) -> list[dict]:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs():
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    assert len(cells("markdown")) >= 5


def test_its_cells_run_and_show_what_the_study_says(tmp_path, monkeypatch, capsys):
    """In this process, on a smaller model: the cell of parameters is followed by ours."""
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    write_small_study(tmp_path)
    names: dict = {}
    for cell in cells("code"):
        exec(compile("".join(cell["source"]), "cell", "exec"), names)
        if cell["metadata"].get("tags") == ["parameters"]:
            names |= {"MODEL": tmp_path / "llama", "QUESTIONS": tmp_path / "test.parquet"}
            names |= {"SAMPLES": 4, "WINDOW": 1}
    result = json.loads((names["study"] / "result.json").read_text())
    table = names["windows"]
    assert list(table.index) == ["L0", "L1", "L2"] == list(result["layer_sensitivity"])
    for name, entry in result["layer_sensitivity"].items():
        assert table.loc[name, "KL, nats/token"] == entry["kl_nats_per_token"]["mean"]
        assert table.loc[name, "harm by KL"] == entry["kl_verdict"]["outcome"]
    assert len(names["noisy"]) == 3 * 4 and len(names["records"]) == 4 * 4
    assert [figure.name for figure in names["figures"]] == ["measures.png", "windows.png"]
    heights = [bar.get_height() for bar in names["axes"].patches]
    assert heights == pytest.approx([float(v) for v in table["KL, nats/token"]])
    assert capsys.readouterr().out.count("Image object") == 2
    # Opened again from its directory, nothing is measured.
    import noisescope

    monkeypatch.setattr(noisescope, "diagnose_layers", None)
    again: dict = {}
    for cell in cells("code"):
        exec(compile("".join(cell["source"]), "cell", "exec"), again)
        if cell["metadata"].get("tags") == ["parameters"]:
            again["STUDY"] = names["study"]
    assert again["windows"].equals(table)


def test_a_kernel_runs_it_as_it_stands(tmp_path, monkeypatch):
    """By nbclient, in a kernel of this environment, on the demo model."""
    import nbclient
    import nbformat

    place = tmp_path / "jupyter" / "kernels" / "here"
    place.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "here", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    options = {
        "timeout": 240,
        "startup_timeout": 120,
        "resources": {"metadata": {"path": str(tmp_path)}},
    }
    client = nbclient.NotebookClient(notebook, kernel_name="here", **options)
    done = client.execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds and "text/html" in kinds
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3  # two of the report, one of its own
