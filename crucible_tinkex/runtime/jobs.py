"""A sweep as a Ray job: submitted once, followed, and submitted again after a failure.

A submission id can never be reused, so it is `<sweep>-a<attempt>`; asking again while an attempt
lives follows that one. The command names absolute paths: file, data and storage lie on a folder
that the cluster shares. The API key is never part of a job: the nodes hold it. The address that was
asked for is the one that is used, whatever the environment says.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import ClientError
from ray.exceptions import AuthenticationError as RayAuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from crucible_tinkex.errors import AuthenticationError, ConfigError, ServiceUnavailableError

T = TypeVar("T")

ELSEWHERE = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that Ray puts above an address that it is given."""
SETTINGS = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token (on its "
    "head: ~/.ray/auth_token)"
)


@dataclass(frozen=True)
class SubmittedJob:
    """One attempt of a sweep on a cluster."""

    client: JobSubmissionClient
    address: str
    submission_id: str
    is_new: bool

    async def lines(self) -> AsyncIterator[str]:
        """The job's output, as it appears, until the job ends."""
        with _named(self.address):
            async for text in self.client.tail_job_logs(self.submission_id):
                yield text

    def exit_code(self) -> int:
        """The command's exit code; 130 if the job was stopped."""
        with _named(self.address):
            info = self.client.get_job_info(self.submission_id)
        if info.status == JobStatus.STOPPED:
            return 130
        if info.driver_exit_code is not None:
            return int(info.driver_exit_code)
        return 0 if info.status == JobStatus.SUCCEEDED else 1


def submit_job(address: str, *, sweep: str, arguments: Sequence[str]) -> SubmittedJob:
    """Submit `crucible ARGUMENTS`, or find the sweep's live job.

    Raises `ConfigError` for an address that cannot be one, `ServiceUnavailableError` where no
    dashboard answers, `AuthenticationError` where it wants a token.
    """
    if not re.fullmatch(r"https?://[^\s/]+/?", address):
        raise ConfigError(f"--address {address!r} must be a dashboard's: http://HOST:8265")
    with _named(address):
        client = _at(address, lambda: JobSubmissionClient(address))
        jobs = {j.submission_id: j.status for j in client.list_jobs() if j.submission_id}
        attempts = {i: n for i in jobs if (n := attempt_number(i, sweep)) is not None}
        live = [i for i in attempts if not jobs[i].is_terminal()]
        if live:
            return SubmittedJob(client, address, live[0], is_new=False)
        submission_id = f"{sweep}-a{max(attempts.values(), default=0) + 1:03d}"
        client.submit_job(
            entrypoint=shlex.join(["python", "-m", "crucible_tinkex", *arguments]),
            submission_id=submission_id,
        )
    return SubmittedJob(client, address, submission_id, is_new=True)


def attempt_number(submission_id: str, sweep: str) -> int | None:
    """The attempt that an id names, or None for another sweep's: `a-b-a001` is none of `a`."""
    found = re.fullmatch(rf"{re.escape(sweep)}-a(\d{{3,}})", submission_id)
    return int(found[1]) if found else None


def _at(address: str, make: Callable[[], T]) -> T:
    """Make something with no other address in the environment than this one."""
    found = {k: os.environ.pop(k) for k in ELSEWHERE if k in os.environ}
    try:
        return make()
    finally:
        os.environ.update(found)


@contextmanager
def _named(address: str) -> Iterator[None]:
    """Ray's errors as ours, in a line."""
    try:
        yield
    except RayAuthenticationError as e:
        raise AuthenticationError(_no_token(address)) from e
    except (OSError, RuntimeError, ClientError) as e:
        text = " ".join(str(e).split())
        if "401" in text or "403" in text or "token" in text.lower():
            raise AuthenticationError(_no_token(address)) from e
        raise ServiceUnavailableError(f"no Ray dashboard answers at {address}: {text}") from e


def _no_token(address: str) -> str:
    return f"the Ray cluster at {address} wants its token: {SETTINGS}"
