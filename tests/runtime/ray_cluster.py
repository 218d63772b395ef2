"""`python ray_cluster.py NODES`: a cluster of its own process, until its standard input closes.

Prints a line: the address, and the process id of every node's raylet, the head's first. Ray leaves
open processes and files in whoever makes a cluster, so a test does not make one itself.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20


def main(nodes: int) -> None:
    made = Cluster()
    for _ in range(nodes):
        options = {"include_dashboard": False} if not made.list_all_nodes() else {}
        made.add_node(num_cpus=2, object_store_memory=STORE_BYTES, **options)
    processes = [n.all_processes for n in made.list_all_nodes()]
    raylets = [p["raylet"][0].process.pid for p in processes]
    head = next(p["gcs_server"][0].process.pid for p in processes if "gcs_server" in p)
    print(json.dumps({"address": made.address, "raylets": raylets, "head": head}), flush=True)
    sys.stdin.read()
    made.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
