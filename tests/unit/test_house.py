"""The house of the package: imports point down, and importing changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "noisescope"

# A file may import from lower floors, and within its own folder without circles.
FLOORS = {
    "__main__": 9,
    "cli": 8,
    "diagnose": 7,
    "report": 6,
    "study": 5,
    "export": 5,
    "harness": 5,
    "training": 6,
    "trackers": 7,
    "cluster": 6,
    "analyse": 4,
    "capture": 4,
    "measure": 4,
    "noisy_ops": 4,
    "inject": 3,
    "assignment": 2,
    "extras": 2,
    "models": 2,
    "noise": 2,
    "profile": 2,
    "records": 2,
    "tasks": 2,
    "demo": 1,
    "versions": 1,
    "errors": 1,
}


def imported_modules(source: str) -> set[str]:
    """Returns the dotted names below `noisescope` that a source imports, at any depth in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "noisescope":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == "noisescope"}
    return {name.removeprefix("noisescope").removeprefix(".") for name in names}


def trespasses(room: str, source: str, floors: dict[str, int]) -> list[str]:
    """Returns the imports of a file in `room` that do not point down."""
    wrong = []
    for name in sorted(imported_modules(source)):
        other = name.split(".")[0]
        if other != room and floors.get(other, 99) >= floors[room]:
            wrong.append(name)
    return wrong


def files() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    assert trespasses(room_of(path), path.read_text(), FLOORS) == []


def test_an_import_that_points_up_or_sideways_is_found():
    up = "from noisescope.report import draw_heatmap"
    sideways = "def f():\n    import noisescope.measure.run"
    assert trespasses("noise", up, FLOORS) == ["report.draw_heatmap"]
    assert trespasses("analyse", sideways, FLOORS) == ["measure.run"]
    assert trespasses("inject", "from noisescope.attic import x", FLOORS) == ["attic.x"]
    assert trespasses("report", "from noisescope.errors import InputError", FLOORS) == []


def modules_of(room: str) -> dict[str, set[str]]:
    """Returns which files of a folder, at any depth in it, each of its files imports."""
    folder = SOURCE / room
    paths = {
        ".".join(p.relative_to(SOURCE).with_suffix("").parts): p
        for p in folder.rglob("*.py")
        if p.name != "__init__.py"
    }
    return {
        name: {
            other
            for full in imported_modules(path.read_text())
            for other in paths
            if full == other or full.startswith(f"{other}.")
        }
        for name, path in paths.items()
    }


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns a circle of names, or an empty list."""

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        return next((c for n in sorted(graph[name]) if (c := walk(n, [*trail, name]))), [])

    return next((c for name in sorted(graph) if (c := walk(name, []))), [])


@pytest.mark.parametrize("room", sorted({room_of(p) for p in files() if p.parent != SOURCE}))
def test_no_circles_within_a_folder(room):
    assert find_circle(modules_of(room)) == []


def test_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_file_opens_with_what_is_here():
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


IMPORT_CHANGES_NOTHING = """
import random, sys, warnings, logging
import numpy, torch
from torch.overrides import _get_current_function_mode_stack
before = (random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())
F = torch.nn.functional
functions = [torch.matmul, torch.bmm, F.linear, F.softmax]
hooks = len(torch.nn.modules.module._global_forward_hooks)
threads, level = torch.get_num_threads(), logging.getLogger().level
import noisescope
after = (random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())
assert before == after
assert functions == [torch.matmul, torch.bmm, F.linear, F.softmax]
assert hooks == len(torch.nn.modules.module._global_forward_hooks)
assert not _get_current_function_mode_stack()
assert (threads, level) == (torch.get_num_threads(), logging.getLogger().level)
assert "noisescope.noisy_ops" not in sys.modules
assert sorted(noisescope.__all__) == sorted(set(noisescope.__all__))
assert all(hasattr(noisescope, name) for name in noisescope.__all__)
"""


def test_importing_the_package_changes_nothing():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_CHANGES_NOTHING], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
