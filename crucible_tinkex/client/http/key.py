"""The API key: where it comes from, and how it is kept out of everything but one header.

An `ApiKey` names a *source* (an environment variable or a file), never the key itself, so it may
be printed, pickled and sent to actors. `read` is the only function of the package that returns
the key; `Transport` and, for the official SDK, `SdkService` are its only callers. `scrub` removes
keys from text that others wrote.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crucible_tinkex.errors import AuthenticationError

KEY_VARIABLE = "TINKER_API_KEY"
KEY_FILE_VARIABLE = "CRUCIBLE_API_KEY_FILE"

_log = logging.getLogger(__name__)
_PLAUSIBLE = re.compile(r"[\x21-\x7e]{1,16384}\Z")
_KEY_LIKE = re.compile(r"\b(?:tml-[A-Za-z0-9_-]+|eyJ[A-Za-z0-9_.-]{16,})")
_MASK = "***"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A source of the key: `file` if given, else TINKER_API_KEY, else CRUCIBLE_API_KEY_FILE."""

    file: str | None = None

    def read(self, environ: Mapping[str, str] | None = None) -> str | None:
        """The key, or None if no source is set.

        Raises `AuthenticationError` for a file that cannot be read, or a key that no header
        can hold. The message never shows any part of the key.
        """
        env = os.environ if environ is None else environ
        if self.file is None and (key := env.get(KEY_VARIABLE, "").strip()):
            return _checked(key, source=KEY_VARIABLE)
        file = self.file or env.get(KEY_FILE_VARIABLE)
        return _checked(_read_file(Path(file)), source=file) if file else None


def _read_file(path: Path) -> str:
    path = path.expanduser()
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise AuthenticationError(f"cannot read the API key file {path}: {reason}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning("the API key file %s is open to other users; chmod 600 it", path)
    return text.strip()


def _checked(key: str, *, source: str) -> str:
    if not _PLAUSIBLE.match(key):
        raise AuthenticationError(f"the API key from {source} is empty or has illegal characters")
    return key


def scrub(text: str, key: str | None) -> str:
    """`text` without `key` and without anything that looks like one."""
    if key:
        text = text.replace(key, _MASK)
    return _KEY_LIKE.sub(_MASK, text)
