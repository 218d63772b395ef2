"""The key of this server, and the tokens that clients of the official SDK exchange it for.

Guarantees: keys are compared in constant time; a token is signed with a secret made from the key,
so it holds after a restart, grants what the key grants for `TOKEN_S` and dies with the key. It is a
JWT, because the SDK reads who it is from the claims. There is one user, whoever has the key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

OWNER = "local"
USER_URN = f"tml:user:{OWNER}"
TOKEN_S = 24 * 3600
_ISSUER = "passport-crucible"
"""The SDK believes the claims of issuers of this prefix."""
_HEADER = {"alg": "HS256", "typ": "JWT"}


class Identity:
    def __init__(self, key: str, *, clock: Callable[[], float] = time.time) -> None:
        self._key = key.encode()
        self._secret = hashlib.sha256(b"crucible token\0" + self._key).digest()
        self._clock = clock

    def accepts(self, given: bytes) -> bool:
        """Whether this is the key, or a token that has not expired."""
        return hmac.compare_digest(given, self._key) or self._is_token(given)

    def token(self) -> str:
        now = int(self._clock())
        claims = {
            "iss": _ISSUER,
            "sub": USER_URN,
            "org_id": OWNER,
            "email": "",
            "iat": now,
            "exp": now + TOKEN_S,
        }
        signed = b".".join(_encoded(json.dumps(part).encode()) for part in (_HEADER, claims))
        return b".".join((signed, self._signature(signed))).decode()

    def describe(self) -> dict[str, Any]:
        """The key as `auth/apikey/me` shows it."""
        return {
            "key_id": 0,
            "name": "api_key",
            "note": "the one key of this server, in a file of the machine that runs it",
            "details": {
                "org_details": {"name": OWNER},
                "user_details": {"email": OWNER},
            },
        }

    def _is_token(self, given: bytes) -> bool:
        signed, _, signature = given.rpartition(b".")
        if not hmac.compare_digest(signature, self._signature(signed)):
            return False
        claims = json.loads(_decoded(signed.partition(b".")[2]))
        return bool(claims["exp"] > self._clock())

    def _signature(self, signed: bytes) -> bytes:
        return _encoded(hmac.digest(self._secret, signed, "sha256"))


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decoded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
