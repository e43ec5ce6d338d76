"""Work of a study on Ray: many GPUs, many machines, the same bytes.

`pool` hands work to workers and knows nothing of Ray; `crew` is Ray; `station` is what runs in a
worker; `reach` finds the cluster. Importing this imports no Ray.
"""

from noisescope.cluster.executor import RayExecutor, check_device

__all__ = ["RayExecutor", "check_device"]
