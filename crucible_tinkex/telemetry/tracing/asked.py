"""Whether a run is told to OpenTelemetry, and where to. Loads nothing of OpenTelemetry.

A run is traced where `run.otlp_endpoint` or one of OpenTelemetry's own variables names a receiver
or an exporter (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/),
or where the process has set OpenTelemetry up itself; `OTEL_SDK_DISABLED=true` forbids it. The
driver's variables go with the run to every process, so that a cluster's nodes need none; those that
may hold a secret do not: headers and certificates are each process's own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

DISABLED = "OTEL_SDK_DISABLED"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ENDPOINTS = (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
EXPORTERS = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER")
PARENT = "TRACEPARENT"
"""By convention, the span of the process that started this one."""
_SECRET = re.compile("HEADERS|KEY|CERTIFICATE|TOKEN|PASSWORD|CREDENTIAL")


@dataclass(frozen=True)
class Tracing:
    """What every process of a run needs to know. Picklable, and holds no secret."""

    variables: Mapping[str, str]
    parent: str | None = None
    """The `traceparent` of the run's span."""
    required: bool = False
    """Asked for in the experiment: what hinders it is an error, else a warning."""


def asked(endpoint: str | None, environ: Mapping[str, str] | None = None) -> Tracing | None:
    """What this process's environment, and the experiment's `endpoint`, ask for."""
    known = environment(endpoint, environ)
    if is_disabled(known):
        return None
    variables = {k: v for k, v in known.items() if k.startswith("OTEL_") and not _SECRET.search(k)}
    receivers = [variables.get(name) for name in ENDPOINTS]
    exporters = [name for name in EXPORTERS if variables.get(name, "none") not in ("", "none")]
    if not any(receivers) and not exporters:
        return None
    return Tracing(variables, required=endpoint is not None)


def environment(endpoint: str | None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of a process of ours which is to tell `endpoint`, if there is one, and then no other
    receiver that this environment names."""
    known = dict(os.environ if environ is None else environ)
    if endpoint is None:
        return known
    return {**{k: v for k, v in known.items() if k not in ENDPOINTS}, ENDPOINT: endpoint}


def is_disabled(environ: Mapping[str, str] | None = None) -> bool:
    known = os.environ if environ is None else environ
    return known.get(DISABLED, "").strip().lower() == "true"


def may_be_set_up() -> bool:
    """Whether this process can have set OpenTelemetry up itself: its SDK is loaded."""
    return "opentelemetry.sdk.trace" in sys.modules and not is_disabled()
