"""The unmodified official SDK of this environment against a real server process."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from protocol_table import BY_TIME, SERVER, TABLE, column, protocol_routes, server_routes
from sdk_server import absent, broken, run_flow, served

NOT_USED = {
    "ServiceClient.get_telemetry": ["called"],  # these three talk to nobody
    "TrainingClient.get_telemetry": ["called"],
    "SamplingClient.get_telemetry": ["called"],
    "SamplingClient.on_queue_state_change": ["called"],  # the SDK's own thread calls it
    "SamplingClient.get_tokenizer": ["called"],  # asks the Hugging Face hub for the base's name
    "SamplingClient.create": ["sampling_session_id"],  # other methods call it
    "TrainingClient.forward_backward_custom": ["loss_type_input"],  # stays in the SDK
}
"""What no step needs, because no server can tell whether it was."""


def test_the_server_has_every_route_of_the_protocol() -> None:
    assert protocol_routes() <= server_routes()
    assert set(column(TABLE.read_text(), SERVER)) == server_routes(), (
        "run tests/server/protocol_table.py"
    )


def test_the_whole_flow(cache: Path, tmp_path: Path) -> None:
    with served(tmp_path) as server:
        found = run_flow(Path(sys.executable), server, tmp_path)
        routes = server.routes()
    assert found["version"] == version("tinker")
    assert not broken(found["steps"]), "\n".join(broken(found["steps"]).values())
    assert absent(found["steps"]) <= {"archive"}  # dropped by 0.36
    assert {n: m for n, m in found["missing"].items() if NOT_USED.get(n) != m} == {}
    assert not [r for r, statuses in routes.items() if any(s >= 500 for s in statuses)]
    assert set(column(TABLE.read_text(), found["version"])) - BY_TIME == set(routes) - BY_TIME, (
        "run tests/server/protocol_table.py: docs/protocol.md is not what this test saw"
    )


def test_the_flow_with_every_flag_turned_the_other_way(cache: Path, tmp_path: Path) -> None:
    flags = {
        "proto_compress_fwdbwd": True,
        "parallel_fwdbwd_chunks": False,
        "fwdbwd_max_chunk_len": 1,
        "sample_use_retrieve_futures": True,
        "sample_join_sampling_session": True,
        "use_pyqwest_transport": False,
    }
    with served(tmp_path, flags) as server:
        found = run_flow(Path(sys.executable), server, tmp_path)
        routes = server.routes()
    assert not broken(found["steps"]), "\n".join(broken(found["steps"]).values())
    assert {"POST retrieve_futures", "POST join_sampling_session"} <= set(routes)
