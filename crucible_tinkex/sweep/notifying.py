"""Telling somebody that a run has ended: a command, a webhook.

Guarantees: never raises, and ends within half a minute; what is told holds numbers, names and words
of the journal, no settings of the service and no key; the command is not given the key's variables;
a webhook is only ever sent over https, and a redirect is not followed. The address of a webhook may
be a secret itself, so messages name its host alone.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from crucible_tinkex.client.http.key import KEY_FILE_VARIABLE, KEY_VARIABLE, scrub
from crucible_tinkex.config.sweep.notify import NotifySection
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import plain
from crucible_tinkex.registry import SweepState
from crucible_tinkex.sweep.results.leaderboard import best

TIMEOUT_S = 15.0
EVENTS = {0: "done", 1: "trials failed", 3: "budget reached", 130: "interrupted"}
MISSED = "quality missed"

log = logging.getLogger(__name__)


def ended(
    name: str, state: SweepState, exit_code: int, *, missed: bool = False
) -> dict[str, Any]:
    """What is told of a run that ended; `missed`: a required quality target was. Keys are only ever
    added."""
    winner = best(state)
    event = MISSED if missed else EVENTS.get(exit_code, "ended")
    return {
        **_message(name, event, exit_code),
        "reason": state.ended,
        "trials": Counter(trial.state for trial in state.trials.values()),
        "best": winner and dict(winner.values),
        "metrics": winner and plain(winner.means),
    }


def trouble(name: str, error: CrucibleError) -> dict[str, Any]:
    """What is told of an error that ended a run."""
    event = "interrupted" if error.exit_code == 130 else "error"
    return {**_message(name, event, error.exit_code), "reason": scrub(error.message, None)}


def _message(name: str, event: str, exit_code: int) -> dict[str, Any]:
    return {"text": f"sweep {name}: {event}", "sweep": name, "event": event, "exit_code": exit_code}


def notify(section: NotifySection, message: Mapping[str, Any]) -> None:
    """Tell whoever is named; what goes wrong is logged as a warning. The object is a line, so a
    command may append it to a file of such lines."""
    body = (json.dumps(message) + "\n").encode()
    if section.command is not None:
        _run(section.command, body)
    if section.webhook is not None:
        _post(section.webhook, body)


def _run(command: str, body: bytes) -> None:
    secret = (KEY_VARIABLE, KEY_FILE_VARIABLE)
    environment = {key: value for key, value in os.environ.items() if key not in secret}
    try:
        subprocess.run(
            shlex.split(command),
            input=body,
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as e:
        log.warning("notify.command failed: %s", _reason(e))


def _reason(error: Exception) -> str:
    match error:
        case subprocess.CalledProcessError():
            return f"it ended with {error.returncode}"
        case subprocess.TimeoutExpired():
            return f"it did not end within {TIMEOUT_S:g} s"
        case OSError():
            return error.strerror or type(error).__name__
    return type(error).__name__


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _post(webhook: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(webhook, data=body, headers=headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=TIMEOUT_S):
            pass
    except urllib.error.HTTPError as e:
        with e:
            log.warning("notify.webhook: %s answered %d", urlsplit(webhook).hostname, e.code)
    except (OSError, ValueError) as e:
        host, why = urlsplit(webhook).hostname, getattr(e, "reason", None) or type(e).__name__
        log.warning("notify.webhook: %s cannot be reached: %s", host, why)
