"""A sweep as a Ray job: submitted once, followed, and submitted again after a failure.

A submission id can never be reused, so it is `<sweep>-a<attempt>`; asking again while an attempt
lives follows that one. The command names absolute paths: file, data and storage lie on a folder
that the cluster shares. The API key is never part of a job: the nodes hold it.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ray.job_submission import JobStatus, JobSubmissionClient

from crucible_tinkex.errors import ServiceUnavailableError


@dataclass(frozen=True)
class SubmittedJob:
    """One attempt of a sweep on a cluster."""

    client: JobSubmissionClient
    submission_id: str
    is_new: bool

    async def lines(self) -> AsyncIterator[str]:
        """The job's output, as it appears, until the job ends."""
        async for text in self.client.tail_job_logs(self.submission_id):
            yield text

    def exit_code(self) -> int:
        """The command's exit code; 130 if the job was stopped."""
        info = self.client.get_job_info(self.submission_id)
        if info.status == JobStatus.STOPPED:
            return 130
        if info.driver_exit_code is not None:
            return int(info.driver_exit_code)
        return 0 if info.status == JobStatus.SUCCEEDED else 1


def submit_job(address: str, *, sweep: str, arguments: Sequence[str]) -> SubmittedJob:
    """Submit `crucible ARGUMENTS`, or find the sweep's live job."""
    try:
        client = JobSubmissionClient(address)
        mine = {
            job.submission_id: job.status
            for job in client.list_jobs()
            if job.submission_id and job.submission_id.startswith(f"{sweep}-a")
        }
    except (ConnectionError, RuntimeError) as e:
        raise ServiceUnavailableError(f"no Ray dashboard answers at {address}: {e}") from e
    live = [i for i, status in mine.items() if not status.is_terminal()]
    if live:
        return SubmittedJob(client, live[0], is_new=False)
    submission_id = f"{sweep}-a{len(mine) + 1:03d}"
    client.submit_job(
        entrypoint=shlex.join(["python", "-m", "crucible_tinkex", *arguments]),
        submission_id=submission_id,
    )
    return SubmittedJob(client, submission_id, is_new=True)
