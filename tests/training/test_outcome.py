"""Whose fault an error is; outcomes cross processes."""

from __future__ import annotations

import pickle

import pytest

from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ConfigError,
    CorruptLogError,
    CrucibleError,
    DamagedCheckpointError,
    DataError,
    OperationFailedError,
    ProtocolError,
    RequestRejectedError,
    ServiceUnavailableError,
    SessionLostError,
    StaleAttemptError,
    StorageError,
    TrialFailedError,
)
from crucible_tinkex.training.outcome import (
    Outcome,
    Progress,
    Verdict,
    judge,
    speaks_of_checkpoint,
)

CASES: list[tuple[CrucibleError, Verdict]] = [
    (AuthenticationError("no", status=401), Verdict.STOP),
    (BillingError("pay", status=402), Verdict.STOP),
    (StorageError("our disk is full"), Verdict.STOP),
    (CorruptLogError("damaged"), Verdict.STOP),
    (TrialFailedError("nan"), Verdict.FAILED),
    (ConfigError("bad"), Verdict.FAILED),
    (DataError("bad row"), Verdict.FAILED),
    (RequestRejectedError("rank too high", status=400, category="user"), Verdict.FAILED),
    (RequestRejectedError("no base model"), Verdict.FAILED),
    (OperationFailedError("bad datum", category="user"), Verdict.FAILED),
    # the service's own storage, memory, or what it cannot explain
    (OperationFailedError("StorageError: no space left", category="server"), Verdict.RETRY),
    (OperationFailedError("?", category="unknown"), Verdict.RETRY),
    (RequestRejectedError("no space left", status=507), Verdict.RETRY),
    (RequestRejectedError("busy", status=409, category="server"), Verdict.RETRY),
    (ServiceUnavailableError("HTTP 507", status=507), Verdict.RETRY),
    (SessionLostError("gone", status=410), Verdict.RETRY),
    (ProtocolError("what?"), Verdict.RETRY),
    (StaleAttemptError("replaced"), Verdict.RETRY),
    (CrucibleError("?"), Verdict.RETRY),
]


@pytest.mark.parametrize(("error", "verdict"), CASES)
def test_verdicts(error: CrucibleError, verdict: Verdict) -> None:
    assert judge(error) is verdict


@pytest.mark.parametrize(
    ("error", "speaks"),
    [
        *((RequestRejectedError("?", status=s), True) for s in (400, 404, 409, 410, 422)),
        (RequestRejectedError("no space left", status=507), False),
        (OperationFailedError("gone", category="user"), True),
        (OperationFailedError("cannot read adapter.safetensors", category="server"), True),
        (DamagedCheckpointError("damaged", status=422, category="user"), True),
        (ConfigError("not a path"), True),
        (SessionLostError("expired", status=410), True),
        (SessionLostError("no heartbeat"), False),
        (ServiceUnavailableError("away", status=503), False),
        (AuthenticationError("no", status=403), False),
        (BillingError("pay"), False),
        (StorageError("ours"), False),
    ],
)
def test_which_errors_speak_of_a_checkpoint(error: CrucibleError, speaks: bool) -> None:
    assert speaks_of_checkpoint(error) is speaks


@pytest.mark.parametrize(("error", "verdict"), CASES)
def test_outcomes_cross_processes(error: CrucibleError, verdict: Verdict) -> None:
    progress = Progress("t", 1, 3, {"eval/nll": 1.5}, drained=False)
    outcome = Outcome(verdict, progress, error.with_context(trial="t"))
    again = pickle.loads(pickle.dumps(outcome))  # noqa: S301  (our own bytes)
    assert (again.verdict, again.progress, str(again.error)) == (verdict, progress, str(error))
    assert type(again.error) is type(error)
