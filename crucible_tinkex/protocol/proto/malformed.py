"""The one error of decoding. It stays inside: clients make it a `ProtocolError`, servers a 400."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError


class MalformedError(ValueError):
    """These bytes are not the message that they should be."""


def parsed(message: type[Any], data: bytes) -> Any:
    """Raises `MalformedError`. Unknown fields are ignored."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        name = message.DESCRIPTOR.name
        raise MalformedError(f"not a protobuf {name}: {error}") from None
