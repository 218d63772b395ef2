"""What a service says of itself: the models that it has, and what of the protocol it understands.

JSON bodies like those of `protocol.wire`, shared by our client and our server.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import PositiveInt

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol import lenient
from crucible_tinkex.protocol.wire import Wire


class SupportedModel(Wire):
    """`tokenizer_id` is our server's addition: where the tokenizer lies (a folder or hub name)."""

    model_name: str
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None
    tokenizer_id: str | None = None


class ServerCapabilities(Wire):
    supported_models: Annotated[list[SupportedModel], lenient.NamedModels]

    def model(self, name: str) -> SupportedModel:
        """What it says of a base. A service that names none says whether it has this one when a
        model is asked for. Raises `ConfigError` where it names others only."""
        named = {model.model_name: model for model in self.supported_models}
        if named and name not in named:
            raise ConfigError(f"the service has no base model {name!r}; it has: {', '.join(named)}")
        return named.get(name) or SupportedModel(model_name=name)


class ClientConfigRequest(Wire):
    sdk_version: str


class ClientConfig(Wire):
    """The answer of `client/config`; every field may be missing."""

    proto_write_fwdbwd: bool | None = None
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: PositiveInt | None = None
    fwdbwd_max_chunk_bytes_count: PositiveInt | None = None
