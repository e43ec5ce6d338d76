"""Finding a cluster: addresses that are none, nobody who answers, machines without room."""

import socket
import sys

import pytest

from noisescope.cluster import reach
from noisescope.cluster.reach import Needs, connect, missing, rooms
from noisescope.errors import InputError

GIB = 1 << 30


@pytest.mark.parametrize(
    "address", ["nowhere", "10.0.0.1", "host:port", "http://10.0.0.1:80", ":6379", "host:99999999"]
)
def test_what_is_no_address_is_told(monkeypatch, address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'noisescope[ray]'")
    with pytest.raises(InputError, match=r"host:port is needed, such as 10\.0\.0\.1:6379, or ray:"):
        connect(address)


@pytest.mark.parametrize("before", ["", "ray://"])
def test_where_nobody_answers_it_is_told_at_once(before):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'noisescope[ray]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"{before}127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError) as told:
            connect(address)
    assert str(told.value).startswith(f"--ray-address {address}: nobody answers there (")
    assert "'ray start --head'" in str(told.value)


def test_auto_without_a_cluster_on_this_machine_is_told(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'noisescope[ray]'")

    def init(**given):
        raise ConnectionError("Could not find any running\nRay instance")

    monkeypatch.setattr(reach, "_of_this_machine", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=r"auto: cannot be reached \(Could not find any running R"):
        connect("auto")


def test_an_address_that_a_dead_cluster_left_behind_is_told_at_once(monkeypatch):
    """Ray itself would knock there for minutes."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'noisescope[ray]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(
            "ray._private.services.canonicalize_bootstrap_address", lambda given: address
        )
        with pytest.raises(InputError, match=r"^--ray-address auto: nobody answers there"):
            connect("auto")


def test_without_ray_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError, match=r"^--executor ray needs .*pip install 'noisescope\[ray\]'"
    ):
        connect(None)


@pytest.mark.parametrize(
    ("needs", "nodes", "count"),
    [
        (Needs(1, 0, 0), [{"CPU": 2.0}], 2),
        (Needs(2, 0, 0), [{"CPU": 3.0}, {"CPU": 4.0}, {"CPU": 1.0}], 3),
        (Needs(1, 1, 0), [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 9.0}], 16),
        (Needs(1, 4, 0), [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 6.0}], 3),
        (Needs(1, 0, 20 * GIB), [{"CPU": 64.0, "memory": 50.0 * GIB}], 2),
    ],
)
def test_rooms_are_counted_machine_by_machine(monkeypatch, needs, nodes, count):
    """No worker lies on two machines."""
    monkeypatch.setattr(reach, "_nodes", lambda: [{"Resources": node} for node in nodes])
    assert rooms(needs) == count


@pytest.mark.parametrize(
    ("needs", "node"),
    [
        (Needs(4, 0, 0), {"CPU": 2.0}),
        (Needs(1, 1, 0), {"CPU": 2.0}),
        (Needs(1, 0, 20 * GIB), {"CPU": 2.0, "memory": 16.0 * GIB}),
    ],
)
def test_a_worker_that_fits_nowhere_is_told_with_what_there_is(monkeypatch, needs, node):
    monkeypatch.setattr(reach, "_nodes", lambda: [{"Resources": node}] * 5)
    with pytest.raises(InputError) as told:
        rooms(needs)
    text = str(told.value)
    assert text.startswith(f"--executor ray: a worker needs {needs}, and no machine")
    assert "(2 CPUs, 0 GPUs, " in text
    assert "and 2 more)" in text
    assert str(needs) in missing(needs)
