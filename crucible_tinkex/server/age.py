"""Exports encrypted with age (age-encryption.org/v1) to the keys that a client gives.

Guarantees: `recipients` refuses what is no public key before anything is saved; `seal` leaves no
plain file behind. The checkpoint in our own data folder stays plain: what is encrypted is all that
a download URL gives out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyrage

from crucible_tinkex.server.checks import refused

MAX_RECIPIENTS = 10
SUFFIX = ".age"


def recipients(given: Sequence[str]) -> tuple[str, ...]:
    """The keys, checked. Raises `RequestRejectedError`."""
    if len(given) > MAX_RECIPIENTS:
        raise refused(f"age_encryption_recipients are {len(given)}, above {MAX_RECIPIENTS}")
    for key in given:
        _recipient(key)
    return tuple(given)


def seal(folder: Path, keys: Sequence[str]) -> None:
    """Put FILE.age in the place of every FILE, readable with the private half of any key."""
    parsed = [_recipient(key) for key in keys]
    for file in sorted(folder.iterdir()):
        pyrage.encrypt_file(str(file), str(file.with_name(file.name + SUFFIX)), parsed)
        file.unlink()


def _recipient(key: str) -> pyrage.x25519.Recipient | pyrage.ssh.Recipient:
    family = pyrage.x25519 if key.startswith("age1") else pyrage.ssh
    try:
        return family.Recipient.from_str(key)
    except pyrage.RecipientError as e:
        raise refused(f"age_encryption_recipients has {key[:80]!r}, no age or SSH key: {e}") from e
