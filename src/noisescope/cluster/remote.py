"""The class that Ray starts in a worker, sent as code: it must run where this package lacks.

So it names nothing of this package but inside its methods, and speaks in plain data.
"""

from collections.abc import Mapping
from typing import Any


def worker_class() -> type:
    """Returns the class, which is not to be found under a name: Ray then sends its code."""

    class RemoteWorker:
        """Checks that this package is there in the right versions, loads the model, and works."""

        def __init__(self) -> None:
            self.station: Any = None

        def start(
            self, versions: Mapping[str, str], source: Mapping[str, Any], threads: int
        ) -> dict[str, Any]:
            """Loads what a source names; returns the `value` of `Station.place`, or an `error`."""
            import platform

            here = f"worker on {platform.node()}"
            wanted = versions["noisescope"]
            try:
                from noisescope.versions import versions as versions_here

                found = versions_here()
                from noisescope.cluster.station import Station, answered
            except ImportError as error:
                say = (
                    f"{here}: noisescope {wanted} cannot be imported there ({error}): install it, "
                    f"with the same packages, on every machine: pip install noisescope=={wanted}"
                )
                return {"kind": "users", "error": say}
            for name, version in versions.items():
                if name != "python" and found.get(name) != version:
                    say = (
                        f"{here}: {name} is {found.get(name)} there and {version} here, and "
                        "numbers depend on it: give every machine the same versions"
                    )
                    return {"kind": "users", "error": say}

            def load() -> Any:
                self.station = Station(source, threads)
                return self.station.place()

            return answered(
                load,
                "there is no memory for the model: give more --gpus-per-worker, or a smaller "
                "--dtype",
            )

        def ping(self) -> dict[str, Any]:
            """Returns that it is there."""
            return {"value": None}

        def work(self, kind: str, spec: Mapping[str, Any], work: Any) -> dict[str, Any]:
            """Returns the `value` of `Station.work`, or an `error`."""
            from noisescope.cluster.station import answered

            return answered(lambda: self.station.work(kind, spec, work))

    return RemoteWorker
