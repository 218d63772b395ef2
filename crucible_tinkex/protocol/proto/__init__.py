"""The protocol's protobuf encoding, shared by client and server. It needs neither HTTP nor numpy.

Encoders raise `ConfigError` for values that the encoding cannot hold; decoders raise
`MalformedError`, a ValueError, which the borders translate.
"""

from crucible_tinkex.protocol.proto.malformed import MalformedError
from crucible_tinkex.protocol.proto.requests import (
    ForwardBackwardCall,
    decode_forward_backward,
    encode_forward_backward,
)
from crucible_tinkex.protocol.proto.results import (
    decode_forward_backward_output,
    decode_sample_response,
    encode_forward_backward_output,
    encode_sample_response,
)

CONTENT_TYPE = "application/x-protobuf"

__all__ = [
    "CONTENT_TYPE",
    "ForwardBackwardCall",
    "MalformedError",
    "decode_forward_backward",
    "decode_forward_backward_output",
    "decode_sample_response",
    "encode_forward_backward",
    "encode_forward_backward_output",
    "encode_sample_response",
]
