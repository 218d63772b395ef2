"""The protocol's protobuf messages, described by hand, so that no generated file is kept.

The wire format is field numbers and types alone; the names and the package are ours. Enums are
declared as integers, which is the same on the wire and lets unknown values pass. What we do not
use is left out, and passed over when it comes. The tests compare every message with the official
SDK's own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_PACKAGE = "crucible.tinkex.v1"
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
}

_Field: TypeAlias = tuple[int, str, str]
"""Number, name, type. A type may be `repeated T`, `optional T`, `map T` (from string), or
`oneof.NAME T`."""

_MESSAGES: dict[str, Sequence[_Field]] = {
    "SparseCsr": [
        (1, "values", "bytes"),
        (2, "crow_indices", "bytes"),
        (3, "col_indices", "bytes"),
    ],
    "Tensor": [
        (1, "dense", "oneof.encoding bytes"),
        (2, "sparse_csr", "oneof.encoding SparseCsr"),
        (3, "dtype", "int32"),
        (4, "shape", "repeated int64"),
    ],
    "EncodedTextChunk": [(1, "tokens", "bytes")],
    "ImageChunk": [],
    "DmelChunk": [],
    "Chunk": [
        (1, "encoded_text", "oneof.chunk EncodedTextChunk"),
        (2, "image", "oneof.chunk ImageChunk"),
        (3, "dmel", "oneof.chunk DmelChunk"),
    ],
    "Datum": [(1, "model_input", "repeated Chunk"), (2, "loss_fn_inputs", "map Tensor")],
    "LossConfigValue": [(1, "number", "oneof.value double"), (2, "text", "oneof.value string")],
    "ForwardBackwardRequest": [
        (1, "model_id", "string"),
        (2, "seq_id", "int32"),
        (3, "data", "repeated Datum"),
        (4, "loss_fn", "string"),
        (5, "loss_fn_config", "map double"),
        (6, "forward_only", "bool"),
        (7, "loss_fn_config_v2", "map LossConfigValue"),
    ],
    "BatchedTensor": [
        (1, "data", "bytes"),
        (2, "offsets", "bytes"),
        (3, "dtype", "int32"),
        (4, "trailing_shape", "repeated int64"),
    ],
    "ArrayRecord": [
        (1, "type_tag", "string"),
        (2, "fields", "map BatchedTensor"),
        (3, "num_datums", "int64"),
    ],
    "ForwardBackwardOutput": [
        (1, "loss_fn_output_type", "string"),
        (2, "loss_fn_outputs", "repeated ArrayRecord"),
        (3, "metrics", "map double"),
    ],
    "TopkLogprobs": [
        (1, "token_ids", "bytes"),
        (2, "logprobs", "bytes"),
        (3, "k", "uint32"),
        (4, "length", "uint32"),
    ],
    "SampledSequence": [
        (1, "stop_reason", "int32"),
        (2, "tokens", "bytes"),
        (3, "logprobs", "optional bytes"),
        (4, "topk_sampled_logprobs", "optional TopkLogprobs"),
    ],
    "SampleResponse": [
        (1, "sequences", "repeated SampledSequence"),
        (2, "prompt_logprobs", "optional bytes"),
        (3, "topk_prompt_logprobs", "optional TopkLogprobs"),
        (4, "prompt_cache_hit_tokens", "int32"),
    ],
}


def _described(name: str, fields: Sequence[_Field]) -> DescriptorProto:
    message = DescriptorProto(name=name)
    oneofs: dict[str, int] = {}
    for number, field_name, kind in fields:
        modifier, _, base = kind.rpartition(" ")
        field = message.field.add(name=field_name, number=number)
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        if modifier == "map":
            field.label = FieldDescriptorProto.LABEL_REPEATED
            _point(field, _add_entry(message, name, field_name, base))
            continue
        _point(field, base)
        if modifier == "repeated":
            field.label = FieldDescriptorProto.LABEL_REPEATED
        elif modifier:
            # An optional field is a oneof of its own; real oneofs come first in our messages.
            oneof = modifier.removeprefix("oneof.") if "." in modifier else f"_{field_name}"
            if oneof not in oneofs:
                oneofs[oneof] = len(oneofs)
                message.oneof_decl.add(name=oneof)
            field.oneof_index = oneofs[oneof]
            field.proto3_optional = modifier == "optional"
    return message


def _add_entry(message: DescriptorProto, owner: str, field_name: str, value: str) -> str:
    """The nested message that protobuf sends for each pair of a map."""
    name = "".join(part.capitalize() for part in field_name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, part, base in ((1, "key", "string"), (2, "value", value)):
        field = entry.field.add(name=part, number=number)
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        _point(field, base)
    return f"{owner}.{name}"


def _point(field: FieldDescriptorProto, base: str) -> None:
    if base in _SCALARS:
        field.type = _SCALARS[base]
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{base}"


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(
        name="crucible_tinkex/tinkex.proto", package=_PACKAGE, syntax="proto3"
    )
    file.message_type.extend(_described(name, fields) for name, fields in _MESSAGES.items())
    pool = DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()


def _class(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


Tensor = _class("Tensor")
TopkLogprobs = _class("TopkLogprobs")
ForwardBackwardRequest = _class("ForwardBackwardRequest")
ForwardBackwardOutput = _class("ForwardBackwardOutput")
SampleResponse = _class("SampleResponse")
NAMES = tuple(_MESSAGES)
message_class = _class
