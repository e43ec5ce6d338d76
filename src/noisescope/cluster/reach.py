"""Finds a Ray cluster, or starts one on this machine, and tells what fits into it.

Ray itself waits for minutes where nobody answers; here an address is knocked at first.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from noisescope.errors import InputError
from noisescope.extras import require

_KNOCK_S = 5.0
_GIB = 1 << 30
_STARTS_HERE = (None, "local")
# What Ray raises where it cannot connect, or lacks what its client needs.
_REFUSALS = (ConnectionError, RuntimeError, OSError, ValueError, ImportError)


@dataclass(frozen=True)
class Needs:
    """What one worker takes.

    Attributes:
        cpus: Cores.
        gpus: GPUs; a model is spread over several.
        memory: Bytes of the machine's memory.
    """

    cpus: int
    gpus: int
    memory: int

    def __str__(self) -> str:
        gpus = f", {self.gpus} {'GPU' if self.gpus == 1 else 'GPUs'}" if self.gpus else ""
        cpus = f"{self.cpus} {'CPU' if self.cpus == 1 else 'CPUs'}"
        return f"{cpus}{gpus} and {self.memory / _GIB:.2g} GiB of memory"

    def fits(self, resources: Mapping[str, float]) -> int:
        """Returns how many such workers a node has room for."""
        rooms = [
            int(resources.get(name, 0.0) // wanted)
            for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus), ("memory", self.memory))
            if wanted
        ]
        return min(rooms)


def connect(address: str | None) -> bool:
    """Connects this process to a cluster, or starts one on this machine where none is named.

    Args:
        address: ``host:port``, ``ray://host:port``, ``auto`` (one that runs on this machine), or
            None or ``local``: one of our own.

    Returns:
        Whether the connection is ours to end; it is not where the process was connected before.

    Raises:
        InputError: Ray is not installed, or nobody answers at the address, or another version.
    """
    # Read as Ray is imported: it would print what became of workers among our own output.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    ray = require("ray", "ray", "--executor ray")
    if ray.is_initialized():
        return False
    given = address or os.environ.get("RAY_ADDRESS") or None
    named = f"--ray-address {given}" if address else f"RAY_ADDRESS={given}"
    where = _of_this_machine() if given == "auto" else given
    if where not in _STARTS_HERE:
        _knock(str(where), named)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if given in _STARTS_HERE:
        options["include_dashboard"] = False
    try:
        ray.init(address=given or "local", **options)
    except _REFUSALS as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"{named}: cannot be reached ({said}); start one with 'ray start --head' "
            "and give its host:port, with the same Python and Ray on every machine; one that asks "
            "for a token needs RAY_AUTH_MODE=token and its ~/.ray/auth_token here"
        ) from None
    return True


def _of_this_machine() -> str | None:
    """Returns the address that Ray would take for `auto`; None where it has none, or is another.

    Ray reads it from a file that outlives a cluster which ended badly.
    """
    services = require("ray._private.services", "ray", "--executor ray")
    try:
        return str(services.canonicalize_bootstrap_address("auto") or "") or None
    except (AttributeError, TypeError, ConnectionError, OSError):  # no public interface
        return None


def _knock(address: str, named: str) -> None:
    """Raises InputError unless somebody listens at an address."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.scheme not in ("", "ray"):
        raise InputError(
            f"{named}: host:port is needed, such as 10.0.0.1:6379, or "
            "ray://host:10001, or auto for the cluster on this machine"
        )
    try:
        socket.create_connection((host, port), timeout=_KNOCK_S).close()
    except OSError as error:
        raise InputError(
            f"{named}: nobody answers there ({error}); 'ray start --head' on that "
            "machine prints its address, and 'ray status' tells whether it runs"
        ) from None


def rooms(needs: Needs) -> int:
    """Returns how many workers the cluster has room for.

    Raises:
        InputError: No machine has room for one.
    """
    nodes = [node["Resources"] for node in _nodes()]
    count = sum(needs.fits(resources) for resources in nodes)
    if not count:
        raise InputError(
            f"--executor ray: a worker needs {needs}, and no machine of the cluster has them "
            f"({_told(nodes)}); add one that has, or give a smaller --dtype, fewer threads "
            "(OMP_NUM_THREADS) or fewer --gpus-per-worker"
        )
    return count


def missing(needs: Needs) -> str:
    """Returns what workers wait for, in words."""
    nodes = [node["Resources"] for node in _nodes()]
    return f"no worker is ready yet: each needs {needs}, and there is {_told(nodes)}"


def has_gpus() -> bool:
    """Tells whether a machine of the cluster has a GPU."""
    return any(node["Resources"].get("GPU", 0) for node in _nodes())


def _nodes() -> list[dict[str, Any]]:
    ray = require("ray", "ray", "--executor ray")
    return [node for node in ray.nodes() if node["Alive"]]


def _told(nodes: Sequence[Mapping[str, float]]) -> str:
    """Returns the machines in words, the largest first."""
    told = sorted(
        (n.get("GPU", 0), n.get("CPU", 0), round(n.get("memory", 0) / _GIB, 1)) for n in nodes
    )[::-1]
    lines = [f"{cpu:g} CPUs, {gpu:g} GPUs, {gib:g} GiB" for gpu, cpu, gib in told[:3]]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return "; ".join(lines) + more if lines else "no machine"
