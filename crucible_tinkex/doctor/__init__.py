"""What `crucible doctor` looks at: this machine, the services, Ray, and the sweeps of a storage."""

from crucible_tinkex.doctor.checks import checks
from crucible_tinkex.doctor.finding import Check, Finding, looked

__all__ = ["Check", "Finding", "checks", "looked"]
