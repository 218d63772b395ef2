"""A real sweep on base `nano` that is told to a real receiver of OTLP over HTTP."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from nano_sweeps import LOCAL, make_workspace

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra [otel]")
from otlp_receiver import receiving

STEPS = 4


def test_one_trace_shows_the_whole_sweep(tmp_path: Path) -> None:
    """Of two processes: the driver with its sessions, and the embedded server."""
    workspace = make_workspace(tmp_path, steps=STEPS)
    with receiving() as receiver:
        endpoint = ("--set", f"run.otlp_endpoint={receiver.url}")
        done = workspace.here("run", "nano.toml", *LOCAL, *endpoint)
    assert done.returncode == 0, done.stderr
    told = receiver.spans()
    assert len({span.trace_id for _, span in told}) == 1
    names = {span.span_id: span.name for _, span in told}
    families = Counter((span.name, names.get(span.parent_span_id)) for _, span in told)
    assert families["sweep", None] == 1
    trials = 5  # four configurations, and the base
    assert families["trial", "sweep"] == trials
    assert families["forward_backward", "trial"] == families["optim_step", "trial"] == 4 * STEPS
    assert families["save_weights", "trial"] > 0 and families["forward", "trial"] > 0
    passes = families["POST forward_backward", "forward_backward"]
    assert passes == families["POST optim_step", "optim_step"] == 4 * STEPS
    assert families["POST retrieve_future", "optim_step"] >= 4 * STEPS
    assert len({about["process.pid"] for about, _ in told}) == 2
    assert {about["service.name"] for about, _ in told} == {"crucible"}
    assert receiver.metrics()["crucible.steps"] == 4 * STEPS
    assert receiver.metrics()["crucible.tokens"] > 0
    assert receiver.metrics()["crucible.checkpoint.bytes"] > 10_000
    key = (workspace.sweep() / "service" / "api_key").read_bytes().strip()
    assert not any(key in body for _, body in receiver.bodies)
