"""Where actors run: on the driver's node what touches files or loopback, elsewhere what may.

The registry, the telemetry actor and a server that only this machine reaches stay with the driver,
because the storage does. A session touches no storage: where the service is reachable from other
nodes, sessions are spread over all of them. Cores are counted on the nodes that may be used, as far
as they are ours: what Ray has not promised to others, and what the control group leaves us.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Strategy: TypeAlias = NodeAffinitySchedulingStrategy | str

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2: quota and period in microseconds, or "max"."""


def driver_node() -> NodeAffinitySchedulingStrategy:
    """The node of this process, and no other."""
    node_id = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def session_nodes(*, reachable: bool) -> Strategy:
    """Where session actors go. `reachable`: the service answers on every node of the cluster."""
    return "SPREAD" if reachable else driver_node()


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
