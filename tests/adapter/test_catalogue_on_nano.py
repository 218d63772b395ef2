"""The seed's events, name by name, from real work on the embedded server.

`SEED` is the catalogue of the design and of the code that it came with, and what each is here; None
where this project has no such work (`docs/parity.md` says why).
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import crucible_tinkex as ct
from crucible_tinkex.client.http.watch import QueueState
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.telemetry.bridge import Bridge, BridgeEvent
from crucible_tinkex.telemetry.bridge.catalogue import CATALOGUE, FACTS
from crucible_tinkex.training import harness
from crucible_tinkex.training.adapter import RecoveryPolicy

ROWS = [{"prompt": f"say {c}", "completion": f" {c}{c}"} for c in "abcdefgh"]
SEED = {
    # the design, and the session of the code
    "session_start": "session_start",
    "session_end": "session_end",
    "forward_backward_start": "forward_backward_start",
    "forward_backward_stop": "forward_backward_stop",
    "forward_backward_error": "forward_backward_exception",
    "optim_step_start": "optim_step_start",
    "optim_step_stop": "optim_step_stop",
    "optim_step_error": "optim_step_exception",
    "checkpoint_saved": "checkpoint_saved",
    "sampler_created": "sampler_created",
    "sample_start": "sample_start",
    "sample_stop": "sample_stop",
    "save_weights_start": "save_weights_start",
    "save_weights_stop": "save_weights_stop",
    "request_exception": "http_request_exception",
    # its high-level events
    "training,step": "optim_step_stop",
    "training,epoch": "epoch_complete",
    "evaluation,complete": "evaluation_complete",
    "checkpoint,saved": "checkpoint_saved",
    "http,request": "http_request_stop",
    # the framework's
    "harness,stage_start": "stage_start",
    "harness,stage_stop": "stage_stop",
    "harness,stage_error": "stage_error",
    "registry,model_registered": "model_registered",
    "registry,model_metrics_updated": "model_metrics_updated",
    "registry,model_deleted": "model_deleted",
    "artifact,artifact_stored": "artifact_stored",
    "artifact,checkpoint_downloaded": "checkpoint_downloaded",
    "datasets,load": "dataset_loaded",
    "artifact,artifact_deleted": None,
    "datasets,batch": None,
    "ensemble,infer": None,
    "hedging,dispatch": None,
}
ELSEWHERE = {"queue_state"}
"""Which a server that is well has no reason to cause: told by what it would send."""


@dataclass
class Heard:
    """A session on a real server, and all that its handler was given."""

    adapter: ct.TinkexAdapter
    session: Any
    server: Any
    events: list[BridgeEvent] = field(default_factory=list)

    def since(self, begin: int) -> list[str]:
        return [e.name for e in self.events[begin:] if not e.name.startswith("http")]

    def unload(self) -> None:
        """The server forgets the model of the session, as if it had restarted."""
        model_id = TinkerPath.read(self.session.checkpoints[-1].path).run_id
        request = urllib.request.Request(
            f"{self.server.base_url}/api/v1/unload_model",
            json.dumps({"model_id": model_id}).encode(),
            {
                "X-API-Key": Path(self.server.api_key_file).read_text().strip(),
                "Content-Type": "application/json",
            },
        )
        urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Heard]:
    """All of it done once; the tests look at what was told."""
    folder = tmp_path_factory.mktemp("audit")
    with (
        ct.embedded_server("nano", data_dir=folder / "service") as server,
        ct.TinkexAdapter(server) as adapter,
    ):
        events: list[BridgeEvent] = []
        adapter.attach("audit", events.append)
        adapter.attach("broken", _broken, ["epoch_complete"])
        config = {"base_model": "nano", "optimizer": {"learning_rate": 1e-2}}
        experiment = adapter.create_experiment(name="e", config=config)
        with adapter.start_session(experiment) as session:
            done = Heard(adapter, session, server, events)
            _work(done)
            _trouble(done)
            _steps(done)
        yield done


def _broken(event: BridgeEvent) -> None:
    raise RuntimeError("mine")


def _work(heard: Heard) -> None:
    adapter, session = heard.adapter, heard.session
    adapter.train(session, ROWS, epochs=1, batch_size=4, checkpoint_every=1, eval_dataset=ROWS)
    adapter.infer(session, "say a", max_tokens=4)
    adapter.load_checkpoint(session, session.checkpoints[0])
    manager = session.checkpoint_manager
    manager.prune_checkpoints(0, "train/nll")
    session.save_checkpoint(step=2)
    manager.delete(manager.list_checkpoints()[0])


def _trouble(heard: Heard) -> None:
    session, refused = heard.session, contextlib.suppress(CrucibleError)
    with refused:  # a loss that needs more than rows have
        session.forward_backward(ROWS, loss_fn="importance_sampling")
    _recover(session)
    with refused:
        session.load_checkpoint("tinker://no:train:0/weights/x", step=1)
    with refused:
        session.infer([[99_999_999]], max_tokens=2)
    for work in (
        lambda: session.optim_step(),
        lambda: session.evaluate(ROWS),
        lambda: session.save_checkpoint(step=3),
    ):
        _recover(session)
        session.save_checkpoint(step=2)
        session.forward_backward(ROWS[:2])
        heard.unload()
        with refused:
            work()
    _recover(session)
    session.save_checkpoint(step=2)
    policy = RecoveryPolicy(enabled=True, max_attempts=1, base_s=0.01)
    options: Any = {"batch_size": 4, "submit_ahead": 0, "checkpoint_every": 1}
    for given in (policy, replace(policy, max_attempts=0)):  # the second has none to spend
        once = iter([heard.unload])

        def first(*saved: object, once: Any = once) -> None:
            next(once, lambda: None)()

        with refused:
            heard.adapter.train(
                session, ROWS, max_steps=3, on_checkpoint=first, recovery=given, **options
            )
    _recover(session)


def _recover(session: Any) -> None:
    if session.status == "failed":
        session.recover()


def _steps(heard: Heard) -> None:
    def steps(plan: harness.Plan) -> None:
        plan.add_step("fine", lambda ctx: {"x": 1.0})
        plan.add_step("broken", lambda ctx: 1 / 0)

    bridge = Bridge(heard.session.experiment.id)
    bridge.attach("audit", heard.events.append)
    harness.run(heard.session.experiment, steps, session=heard.session, bridge=bridge)


@pytest.mark.parametrize("name", [n for n in CATALOGUE if n not in FACTS and n not in ELSEWHERE])
def test_each_name_is_told_by_real_work(heard: Heard, name: str) -> None:
    assert name in {e.name for e in heard.events}


def test_every_event_is_enriched(heard: Heard) -> None:
    for event in heard.events:
        assert event.measurements["crucible_timestamp"] > 1_700_000_000_000
        assert event.metadata["adapter"] == "tinkex"
        assert event.metadata["crucible_version"] == ct.__version__
        assert event.metadata["experiment_id"] == heard.session.experiment.id
        if event.name.endswith("_stop") and not event.name.startswith("stage"):
            assert event.measurements["duration_s"] >= 0


def test_nothing_is_counted_twice(heard: Heard) -> None:
    """What started has ended, once, unless its wait was given up."""
    told = Counter(e.name for e in heard.events)
    assert told["session_start"] == told["session_end"] == told["handler_detached"] == 1
    for start in [name for name in told if name.endswith("_start") and name != "session_start"]:
        what = start.removesuffix("_start")
        ends = told[f"{what}_stop"] + told[f"{what}_exception"] + told[f"{what}_error"]
        assert 0 < ends <= told[start], what
    first = [e.name for e in heard.events[: len(heard.events) // 4]]
    assert first.count("optim_step_stop") == 2  # of two steps: no `training step` beside it


def test_the_waits_of_a_service_have_their_name() -> None:
    told: list[BridgeEvent] = []
    bridge = Bridge("e")
    bridge.attach("audit", told.append)
    bridge.on_queue_state(QueueState("paused_capacity", "full"))
    assert [e.name for e in told] == ["queue_state"]


def test_what_the_seed_names_is_here_by_a_name() -> None:
    assert {ours for ours in SEED.values() if ours is not None} <= set(CATALOGUE)
