"""Where actors run: on the driver's node what touches files or loopback, elsewhere what may.

The registry, the telemetry actor and a server that only this machine reaches stay with the driver,
because the storage does. A session touches no storage: where the service is reachable from other
nodes, sessions are spread over all of them. Cores are counted on the nodes that may be used, as far
as they are ours: what Ray has not promised to others, and what the control group leaves us.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2: quota and period in microseconds, or "max"."""


def driver_node() -> NodeAffinitySchedulingStrategy:
    """The node of this process, and no other."""
    node_id = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


class Turns:
    """The cluster's nodes in turn, each as often as it has cores. Ray 2.60's own "SPREAD", and a
    soft affinity, were seen to put five of five on one node of three: actors that hold no core."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def next(self) -> NodeAffinitySchedulingStrategy:
        """Where the next session actor goes. If that node dies meanwhile, its start fails."""
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        node = self.chosen({n["NodeID"]: n["Resources"].get("CPU", 0) for n in nodes if n["Alive"]})
        return NodeAffinitySchedulingStrategy(node, soft=False)

    def chosen(self, cores: Mapping[str, float]) -> str:
        """The node with the fewest turns for its cores; one without cores only if all are."""
        usable = {node: many for node, many in cores.items() if many} or dict.fromkeys(cores, 1.0)
        node = min(usable, key=lambda n: ((self._taken[n] + 1) / usable[n], n))
        self._taken[node] += 1
        return node


def session_cores(*, reachable: bool) -> int:
    """Cores for session actors, at least 1."""
    resources: dict[str, Any] = ray.available_resources()  # type: ignore[no-untyped-call]
    free = int(resources.get("CPU", 0))
    return max(1, free if reachable else min(free, local_cores()))


def local_cores(limit: Path = CPU_LIMIT) -> int:
    """Cores that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _quota(limit)))


def _quota(limit: Path) -> int:
    try:
        quota, period = limit.read_text().split()
        return int(quota) // int(period)
    except (OSError, ValueError):  # no control group, or "max"
        return 1 << 16
