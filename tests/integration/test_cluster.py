"""Studies on Ray: the same bytes as in one process, whatever becomes of the workers."""

import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
from helpers.cluster import WORKING, killing, processes, wait_for
from helpers.commands import (
    SMALL_STUDY,
    files_of,
    in_small_units,
    with_plain_figures,
    work_with,
    write_questions,
    write_small_study,
)

from noisescope.cli import run

pytest.importorskip("ray", reason="Ray is not installed: pip install 'noisescope[ray]'")

ON_RAY = ("--executor=ray", "--workers=2")
# Ray's processes are children of the tests' own, and its sockets are closed when they end.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def ray():
    """A cluster of two cores on this machine; its workers end with it."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return write_small_study(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def place(origin, tmp_path, monkeypatch):
    in_small_units(monkeypatch, 1)
    with_plain_figures(monkeypatch)
    return work_with(origin, tmp_path, monkeypatch)


def test_a_study_with_a_killed_worker_is_the_one_of_a_single_process(ray, place, capfd):
    study = ("layers", *SMALL_STUDY[1:], "--draws=2")
    assert run([*study, "--out=here"]) == 0
    with killing(1, 0.1) as killed:
        assert run([*study, *ON_RAY, "--out=there"]) == 0
    assert len(killed) == 1
    assert files_of(place / "there") == files_of(place / "here")
    assert "is tried again: ActorDiedError" in capfd.readouterr().err
    assert wait_for(lambda: not processes())


@pytest.mark.slow
def test_a_whole_diagnosis_is_the_one_of_a_single_process(ray, place):
    """Units, backward passes and the look at the channels."""
    study = ("diagnose", *SMALL_STUDY[1:], "--draws=2")
    assert run([*study, "--out=here"]) == 0
    for workers in (1, 2):
        out = f"there-{workers}"
        assert run([*study, "--executor=ray", f"--workers={workers}", f"--out={out}"]) == 0
        assert files_of(place / out) == files_of(place / "here")


# In processes of their own, where units are as large as a study makes them.
LONG_STUDY = ("layers", *SMALL_STUDY[1:], "--draws=40", "--samples=24")


def started(*words: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "noisescope", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, error = process.communicate(timeout=200)
    return process.returncode, error


@pytest.fixture(scope="module")
def long_place(tmp_path_factory):
    """A directory with a study of two dozen questions, as one process measures it."""
    directory = write_small_study(tmp_path_factory.mktemp("long"))
    write_questions(directory / "test.parquet", 24)
    assert ended(started(*LONG_STUDY, "--out=here", cwd=directory)) == (0, "")
    return directory


@pytest.fixture
def two_nodes():
    """A cluster of two machines, one core each; only the first is there yet."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_machine_that_is_gone_and_comes_back_changes_nothing(two_nodes, long_place):
    node = two_nodes.add_node(num_cpus=1)
    where = ("--executor=ray", f"--ray-address={two_nodes.address}", "--out=gone")
    process = started(*LONG_STUDY, *where, cwd=long_place)
    assert wait_for(lambda: len(processes(WORKING)) == 2, 90)
    two_nodes.remove_node(node, allow_graceful=False)
    assert wait_for(lambda: len(processes()) < 2, 60)
    two_nodes.add_node(num_cpus=1)
    code, error = ended(process)
    assert code == 0, error
    assert "is tried again" in error
    assert files_of(long_place / "gone") == files_of(long_place / "here")


@pytest.mark.slow
def test_ten_killed_workers_change_nothing(ray, place):
    """In as many studies as it takes: a unit that meets three kills is given up, and rightly."""
    write_questions(place / "many.parquet", 40)
    study = ("layers", "--model=llama", "--data=many.parquet", *SMALL_STUDY[3:], "--samples=40")
    assert run([*study, "--out=here"]) == 0
    wanted, left, studies = files_of(place / "here"), 10, 0
    while left:
        with killing(left, 1.5, seed=studies) as killed:
            assert run([*study, *ON_RAY, "--out=there"]) == 0
        assert files_of(place / "there") == wanted
        shutil.rmtree(place / "there")
        left -= len(killed)
        studies += 1


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_keeps_what_is_in_hand_and_it_goes_on_here(long_place):
    """Ctrl-C reaches every process of the terminal; Ray's own must not end by it."""
    terminal, inner = pty.openpty()
    process = started(
        *LONG_STUDY, *ON_RAY, "--out=pressed", cwd=long_place, stdin=inner, start_new_session=True
    )
    assert wait_for(lambda: processes(WORKING), 90)
    os.killpg(process.pid, signal.SIGINT)
    code, error = ended(process)
    os.close(terminal)
    os.close(inner)
    assert code == 130, error
    assert "units are kept in pressed: run the same command to go on" in error
    assert wait_for(lambda: not processes())
    assert ended(started(*LONG_STUDY, "--out=pressed", cwd=long_place)) == (0, "")
    assert files_of(long_place / "pressed") == files_of(long_place / "here")


@pytest.fixture
def other_version(tmp_path):
    """A folder before all others where this package has another version, or none at all."""
    folder = tmp_path / "other"
    (folder / "noisescope-9.9.9.dist-info").mkdir(parents=True)
    (folder / "noisescope-9.9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: noisescope\nVersion: 9.9.9\n"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_there", "text"),
    [
        (True, "noisescope is 9.9.9 there and 0.1.0 here, and numbers depend on it: give every"),
        (False, "noisescope 0.1.0 cannot be imported there (not here): install it, with the same"),
    ],
)
def test_a_machine_with_another_version_or_none_is_told(
    two_nodes, long_place, other_version, is_there, text
):
    if not is_there:
        (other_version / "noisescope").mkdir()
        (other_version / "noisescope" / "__init__.py").write_text("raise ImportError('not here')")
    two_nodes.add_node(num_cpus=2, env_vars={"PYTHONPATH": str(other_version)})
    where = ("--executor=ray", f"--ray-address={two_nodes.address}", "--out=other")
    code, error = ended(started(*LONG_STUDY, *where, cwd=long_place))
    assert (code, error.count("\n")) == (2, 1), error
    assert text in error
    assert not (long_place / "other").exists()


@pytest.mark.slow
def test_a_model_that_fits_on_no_machine_is_told(two_nodes, long_place):
    small = cluster_with(two_nodes, memory=1000)
    where = ("--executor=ray", f"--ray-address={small.address}", "--out=large")
    code, error = ended(started(*LONG_STUDY, *where, cwd=long_place))
    assert (code, error.count("\n")) == (2, 1), error
    assert "and no machine of the cluster has them" in error


def cluster_with(cluster, **resources):
    """Returns a cluster with one machine of these resources alone."""
    cluster.remove_node(cluster.head_node)
    cluster.add_node(num_cpus=1, **resources)
    return cluster
