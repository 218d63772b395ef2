"""One request's fault is that request's alone: nobody hangs, and nobody else's bits change."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from few_handles import without_handles
from safetensors.torch import load_file
from server_client import Client, make_rows, train

from crucible_tinkex.errors import (
    CrucibleError,
    DamagedCheckpointError,
    OperationFailedError,
    StorageError,
)
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.engine import losses, sampling, scheduler
from crucible_tinkex.server.model.base_model import BaseModel
from crucible_tinkex.server.operations import (
    Adam,
    CreateModel,
    ForwardBackward,
    ForwardOutput,
    LoadWeights,
    LoraSpec,
    Operation,
    OptimStep,
    Row,
    Sample,
    SampleOutput,
    SamplerSource,
    SaveWeights,
)
from crucible_tinkex.server.store import adapter_files
from crucible_tinkex.server.store.store import ADAPTER_FILE, OPTIMIZER_FILE

FAULTS = [RuntimeError("boom"), MemoryError(), OSError(5, "boom")]
PATHS = {kind: TinkerPath("m", kind, "one") for kind in ("weights", "sampler_weights")}
BASE, OWN = SamplerSource(), SamplerSource(path=PATHS["sampler_weights"])
MARK = 3.25
"""The first weight of rows at which `_fail_at_mark` fails."""


def _sample(source: SamplerSource, prompt: int = 7, **more: Any) -> Sample:
    tokens = make_rows(prompt, (5,))[0].tokens
    return Sample(source, tokens, max_tokens=12, seed=3, stop_tokens=(), **more)


def _always(fault: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise fault

    return fail


def _fails(
    client: Client, operation: Operation, match: str, kind: type[CrucibleError] = CrucibleError
) -> None:
    with pytest.raises(kind, match=match):
        client.one(operation)


@pytest.fixture
def saved(client: Client) -> Client:
    for path in PATHS.values():
        client.one(SaveWeights("m", path))
    return client


def _file(client: Client, kind: str, name: str) -> Path:
    return client.engine.weights.store.folder(PATHS[kind]) / name


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_sampler_that_cannot_be_loaded_fails_alone(
    saved: Client, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = saved.one(_sample(BASE))
    with monkeypatch.context() as patch:
        patch.setattr(adapter_files, "read_weights", _always(fault))
        failed, other = saved.all([_sample(OWN), _sample(BASE)])
    assert isinstance(failed, OperationFailedError) and type(fault).__name__ in str(failed)
    assert other == expected
    assert isinstance(saved.one(_sample(OWN)), SampleOutput)


@pytest.mark.parametrize(
    ("ask", "left"),
    [
        (LoadWeights("new", PATHS["weights"], True), 0),
        (LoadWeights("new", PATHS["weights"], True), 1),  # the file is opened, its tensors are not
        (SaveWeights("m", TinkerPath("m", "weights", "two")), 0),
    ],
)
def test_too_few_handles_are_no_damage_and_the_remedy_is_named(
    saved: Client, ask: Operation, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    with without_handles(left):
        (answer,) = saved.all([ask])
    assert isinstance(answer, StorageError) and "ulimit -n" in str(answer)
    assert not caplog.records
    assert saved.one(ask)


def test_an_answer_that_cannot_be_made_or_given_ends_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sampling.Prompt, "output", _always(MemoryError()))
        _fails(client, _sample(BASE), "MemoryError")
    client.engine.submit(_sample(BASE), _always(RuntimeError("nobody listens")))
    assert isinstance(client.one(_sample(BASE)), SampleOutput)


def test_a_checkpoint_that_lacks_a_tensor_fails_its_request(
    saved: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = load_file(_file(saved, "sampler_weights", ADAPTER_FILE))
    lacking = {k: v for k, v in named.items() if "layers.1." not in k}
    monkeypatch.setattr(adapter_files, "_load", lambda *_: lacking)
    _fails(saved, _sample(OWN), r"lacks the tensor .*layers\.1\.", DamagedCheckpointError)
    _fails(
        saved,
        LoadWeights("new", PATHS["weights"], False),
        "lacks the tensor",
        DamagedCheckpointError,
    )
    assert isinstance(saved.one(train("m", make_rows(1, (4,)))), ForwardOutput)


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_and_not_loaded(saved: Client) -> None:
    before = saved.engine.weights.adapters["m"].weights.clone()
    _flip_a_bit(_file(saved, "sampler_weights", ADAPTER_FILE))
    _fails(saved, _sample(OWN), "adapter.safetensors is damaged", DamagedCheckpointError)
    for name, optimizer in ((OPTIMIZER_FILE, True), (ADAPTER_FILE, False)):
        assert saved.one(LoadWeights("new", PATHS["weights"], optimizer))
        _flip_a_bit(_file(saved, "weights", name))
        for model in ("m", "new", "newer"):
            _fails(
                saved,
                LoadWeights(model, PATHS["weights"], optimizer),
                f"{name} is damaged",
                DamagedCheckpointError,
            )
    _fails(saved, train("newer", make_rows(1, (4,))), "does not exist")
    assert torch.equal(saved.engine.weights.adapters["m"].weights, before)


# --- the thread itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [RuntimeError("boom"), SystemExit(1)], ids=repr)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_if_the_thread_ends_everybody_is_told(
    start: Callable[..., Client], fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = threading.Event()
    client = start(died=died.set)
    client.create("m")
    operations = [train("m", make_rows(n, (9,))) for n in range(3)] + [_sample(BASE)]
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.Scheduler, "heads", _always(fault))
        outcomes = client.all(operations)
    outcomes.append(client.submit(_sample(BASE))())
    assert all(isinstance(o, OperationFailedError) for o in outcomes)
    assert "the engine ended" in str(outcomes[0]) and died.wait(5)
    with pytest.raises(OperationFailedError, match="the engine ended"):
        client.engine.close()


def test_a_server_whose_engine_ended_ends_with_an_error(cache: Path, tmp_path: Path) -> None:
    script = """
import sys, threading
from pathlib import Path
from crucible_tinkex.server.engine import scheduler
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.operations import UnloadModel
from crucible_tinkex.server.web.serve import ServeOptions, serve

started = []
begin = TorchEngine.__init__
TorchEngine.__init__ = lambda self, *a, **k: (begin(self, *a, **k), started.append(self))[0]
ready = Path(sys.argv[1]) / "ready"

def poison():
    while not ready.exists():
        threading.Event().wait(0.01)
    scheduler.Scheduler.add = lambda *_: sys.exit(3)
    started[0].submit(UnloadModel("m"), print)

threading.Thread(target=poison).start()
serve(ServeOptions(data_dir=ready.parent, model="nano", ready_file=ready, threads=1))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 1, ended.stderr
    assert "the engine ended: SystemExit: 3" in ended.stderr.splitlines()[-1]


# --- in company ----------------------------------------------------------------------------------


def _marked(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    for row in rows:
        row.inputs["weights"][0] = MARK
    return rows


@pytest.fixture
def fail_at_mark(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Losses of marked rows fail; returns how many rows each loss that worked was asked for."""
    worked: list[int] = []
    real = losses.token_losses

    def fail(name: str, logp: Any, inputs: Any, config: Any, lengths: Any) -> Any:
        if bool((inputs["weights"] == MARK).any()):
            raise MemoryError("marked")
        worked.append(len(lengths))
        return real(name, logp, inputs, config, lengths)

    monkeypatch.setattr(losses, "token_losses", fail)
    return worked


def _prepare(client: Client, names: str) -> None:
    """Models which have a gradient already."""
    client.all([CreateModel(n, LoraSpec(4, ord(n))) for n in names])
    client.all([train(n, make_rows(ord(n), (9, 4))) for n in names])


def _stepped(client: Client, names: str) -> dict[str, torch.Tensor]:
    client.all([OptimStep(n, Adam(learning_rate=1e-2)) for n in names])
    return {n: client.engine.weights.adapters[n].weights.clone() for n in names}


def test_a_request_that_fails_in_a_shared_pass_costs_nobody_a_gradient(
    start: Callable[..., Client], fail_at_mark: list[int]
) -> None:
    fair = {n: train(n, make_rows(ord(n) + 1, (7, 12))) for n in "ac"}
    reference = start()
    _prepare(reference, "abc")
    reference.all(list(fair.values()))
    expected = _stepped(reference, "abc")

    client = start()
    _prepare(client, "abc")
    bad = train("b", _marked(make_rows(5, (7, 12))))
    outcomes = client.all([fair["a"], bad, fair["c"]])
    assert [isinstance(o, ForwardOutput) for o in outcomes] == [True, False, True]
    assert "marked" in str(outcomes[1])
    found = _stepped(client, "abc")
    assert all(torch.equal(found[n], expected[n]) for n in "abc")  # b keeps what it had before


def test_a_request_that_fails_halfway_leaves_no_part_of_its_gradient(
    start: Callable[..., Client], fail_at_mark: list[int]
) -> None:
    reference, client = start(token_cap=32), start(token_cap=32)
    for c in (reference, client):
        _prepare(c, "ab")
    fail_at_mark.clear()
    long = (*make_rows(5, (20, 21)), *_marked(make_rows(6, (30,))))  # one chunk a row
    _fails(client, train("a", long), "marked")
    assert len(fail_at_mark) == 2
    found, expected = _stepped(client, "ab"), _stepped(reference, "ab")
    assert all(torch.equal(found[n], expected[n]) for n in "ab")


def test_a_pass_that_fails_once_is_made_good(
    start: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[ForwardBackward] = [train(n, make_rows(ord(n) + 1, (7, 12))) for n in "abc"]
    found = []
    backward = BaseModel.backward
    for is_faulty in (False, True):
        client, calls = start(), []

        def once(
            self: BaseModel, *given: Any, on: bool = is_faulty, seen: list[int] = calls
        ) -> None:
            backward(self, *given)
            seen.append(1)
            if on and len(seen) == 1:
                raise RuntimeError("not enough memory")

        _prepare(client, "abc")
        with monkeypatch.context() as patch:
            patch.setattr(BaseModel, "backward", once)
            assert all(isinstance(o, ForwardOutput) for o in client.all(requests))
        assert len(calls) == (4 if is_faulty else 1)
        found.append(_stepped(client, "abc"))
    assert all(torch.equal(found[0][n], found[1][n]) for n in "abc")


@pytest.mark.parametrize("place", ["score", "take"])
def test_a_sample_that_fails_in_a_batch_costs_nobody_an_answer(
    saved: Client, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the prefill or while tokens are chosen."""
    wanted = [_sample(BASE, n, prompt_logprobs=True) for n in (1, 2)] + [_sample(OWN, 3)]
    expected = [saved.one(o) for o in wanted]
    bad = _sample(OWN, 4, topk_sample_logprobs=77)
    owner: Any = sampling if place == "score" else sampling.Sampling
    real = getattr(owner, place)

    def fail(*given: Any) -> Any:
        request = given[2] if place == "score" else given[0].request
        tokens = [] if place == "score" else given[0].tokens
        if request.topk_sample_logprobs == 77 and (place == "score" or len(tokens) == 10):
            raise MemoryError("marked")
        return real(*given)

    monkeypatch.setattr(owner, place, fail)
    outcomes = saved.all([*wanted[:1], bad, *wanted[1:]])
    assert "marked" in str(outcomes.pop(1))
    assert outcomes == expected
