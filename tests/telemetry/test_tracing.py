"""When a run is traced, what goes with it to other processes, and what a missing receiver costs."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry import metrics, trace
from spans import Collector

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.traceparent import active
from crucible_tinkex.telemetry.tracing.asked import Tracing, asked, environment
from crucible_tinkex.telemetry.tracing.run import joined, traced

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONSOLE = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environ", "is_asked"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
        ({ENDPOINT: "http://h:4318"}, True),
        ({ENDPOINT: ""}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: "http://h:4318", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_the_standard_variables_decide(environ: dict[str, str], is_asked: bool) -> None:
    assert (asked(None, environ) is not None) is is_asked


def test_a_process_of_ours_tells_the_experiments_endpoint_and_no_other() -> None:
    named = {ENDPOINT: "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:1/v1"}
    assert environment(None, {"X": "1", **named}) == {"X": "1", **named}
    assert environment("http://c:1", {"X": "1", **named}) == {"X": "1", ENDPOINT: "http://c:1"}


def test_the_experiments_endpoint_is_instead_of_the_environments() -> None:
    environ = {ENDPOINT: "http://a:1", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://b:1/v1"}
    found = asked("http://c:1", environ)
    assert found == Tracing({ENDPOINT: "http://c:1"}, required=True)
    assert asked("http://c:1", {"OTEL_SDK_DISABLED": "true"}) is None


def test_no_secret_goes_to_other_processes() -> None:
    environ = {
        ENDPOINT: "http://h:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=canary",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-api-key=canary",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "canary",
        "OTEL_SERVICE_NAME": "mine",
        "TINKER_API_KEY": "tml-canary",
    }
    found = asked(None, environ)
    assert found is not None and b"canary" not in pickle.dumps(found)
    assert found.variables == {ENDPOINT: "http://h:4318", "OTEL_SERVICE_NAME": "mine"}


@pytest.mark.parametrize("bad", ["h:4318", "ftp://h", "http://me:secret@h:4318", "http://h?key=1"])
def test_an_endpoint_that_is_none_or_holds_a_secret_is_refused(bad: str) -> None:
    declared = {"name": "s", "model": {"base": "nano"}, "data": {"train": "x"}}
    with pytest.raises(ConfigError, match=r"run\.otlp_endpoint"):
        Experiment.build({**declared, "run": {"otlp_endpoint": bad}})


async def test_without_a_word_nothing_is_traced() -> None:
    async with traced(None, sweep="s") as run:
        assert (run.handlers, run.tracing, active()) == ({}, None, None)


async def test_what_the_process_has_set_up_itself_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: collector.tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: collector.meters)
    async with traced(None, sweep="s") as run:
        assert run.handlers and run.tracing is None and active() is not None
        run.ended({"done": 3, "failed": 1})
    (sweep,) = collector.spans("sweep")
    assert dict(sweep.attributes) == {"sweep": "s", "trials.done": 3, "trials.failed": 1}
    assert active() is None


async def test_it_goes_on_with_the_trace_of_who_started_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = Collector()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: collector.tracers)
    monkeypatch.setenv("TRACEPARENT", PARENT)
    async with traced(None, sweep="s"):
        pass
    (sweep,) = collector.spans("sweep")
    assert f"{sweep.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{sweep.parent.span_id:016x}" == PARENT.split("-")[2]


async def test_what_ends_a_run_is_on_its_span(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: collector.tracers)
    with pytest.raises(ConfigError):
        async with traced(None, sweep="s"):
            raise ConfigError("mine")
    (sweep,) = collector.spans("sweep")
    assert not sweep.status.is_ok and "mine" in sweep.status.description


async def test_an_exporter_that_is_not_installed_is_a_warning_or_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable may be set for the whole machine; a key in the experiment is meant."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nowhere")
    async with traced(None, sweep="s") as run:
        assert run.handlers == {}
    assert "no installed package exports traces by nowhere" in caplog.text
    with pytest.raises(ConfigError, match=r"crucible-tinkex\[otel\]"):
        async with traced("http://127.0.0.1:1", sweep="s"):
            pass
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke")
    with pytest.raises(ConfigError, match="'smoke' must be one of http/protobuf, grpc"):
        async with traced("http://127.0.0.1:1", sweep="s"):
            pass


ELSEWHERE = """
import asyncio, pickle, sys
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.telemetry.tracing.run import joined
async def main():
    handlers, exporting = joined(pickle.loads(bytes.fromhex(sys.argv[1])))
    bridge = Bridge("s", trial_id="t")
    bridge.attach("otel", handlers["otel"])
    bridge.execute("session_start", attempt=1)
    bridge.execute("session_end", status="done")
    await exporting.aclose()
asyncio.run(main())
"""


def test_another_process_tells_its_sessions_below_the_runs_span(tmp_path: Path) -> None:
    """By its own providers, which are closed with the run; the variables come with it."""
    tracing = Tracing({**CONSOLE, "OTEL_SERVICE_NAME": "mine"}, PARENT)
    told = python(tmp_path, ELSEWHERE, pickle.dumps(tracing).hex())
    span = json.loads(told.stdout)
    assert (span["name"], span["attributes"]["trial_id"]) == ("trial", "t")
    assert span["context"]["trace_id"] == f"0x{PARENT.split('-')[1]}"
    assert span["parent_id"] == f"0x{PARENT.split('-')[2]}"
    assert span["resource"]["attributes"]["service.name"] == "mine"
    assert joined(None) == ({}, None)


async def test_a_variable_that_is_wrong_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {**CONSOLE, "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}.items():
        monkeypatch.setenv(name, value)
    async with traced(None, sweep="s") as run:
        assert run.handlers == {}
    assert "a variable of OpenTelemetry is wrong" in caplog.text


async def test_a_receiver_that_does_not_answer_holds_nobody_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It takes the connection and says nothing."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra [otel]")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        async with traced(url, sweep="s") as run:
            assert run.tracing is not None and run.tracing.parent == active()
        assert time.monotonic() - began < 8
    assert "were not taken within 5 s" in caplog.text


UNUSED = """
import sys
import crucible_tinkex, crucible_tinkex.cli.app, crucible_tinkex.sweep.launch
import crucible_tinkex.training.host, crucible_tinkex.runtime.actors.session_actor
import asyncio
from crucible_tinkex.telemetry.tracing.run import traced
async def main():
    async with traced(None, sweep="s"):
        pass
asyncio.run(main())
loaded = [m for m in sys.modules if m.startswith("opentelemetry")]
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


def test_nothing_of_it_is_loaded_where_it_is_not_used(tmp_path: Path) -> None:
    python(tmp_path, UNUSED)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [sys.executable, "-c", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found
