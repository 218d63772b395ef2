"""The protocol's protobuf messages, described by hand, so that no generated file is kept.

The wire format is field numbers and types alone; the names and the package are ours. Enums are
declared as integers, which is the same on the wire and lets unknown values pass. What we do not
use is left out, and passed over when it comes. The tests compare every message with the official
SDK's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

_MESSAGES: dict[str, dict[str, str]] = {
    "SparseCsr": {"values": "bytes", "crow_indices": "bytes", "col_indices": "bytes"},
    "Tensor": {
        "dense": "oneof.encoding bytes",
        "sparse_csr": "oneof.encoding SparseCsr",
        "dtype": "int32",
        "shape": "repeated int64",
    },
    "EncodedTextChunk": {"tokens": "bytes"},
    "ImageChunk": {},
    "DmelChunk": {},
    "Chunk": {
        "encoded_text": "oneof.chunk EncodedTextChunk",
        "image": "oneof.chunk ImageChunk",
        "dmel": "oneof.chunk DmelChunk",
    },
    "Datum": {"model_input": "repeated Chunk", "loss_fn_inputs": "map Tensor"},
    "LossConfigValue": {"number": "oneof.value double", "text": "oneof.value string"},
    "ForwardBackwardRequest": {
        "model_id": "string",
        "seq_id": "int32",
        "data": "repeated Datum",
        "loss_fn": "string",
        "loss_fn_config": "map double",
        "forward_only": "bool",
        "loss_fn_config_v2": "map LossConfigValue",
    },
    "BatchedTensor": {
        "data": "bytes",
        "offsets": "bytes",
        "dtype": "int32",
        "trailing_shape": "repeated int64",
    },
    "ArrayRecord": {"type_tag": "string", "fields": "map BatchedTensor", "num_datums": "int64"},
    "ForwardBackwardOutput": {
        "loss_fn_output_type": "string",
        "loss_fn_outputs": "repeated ArrayRecord",
        "metrics": "map double",
    },
    "TopkLogprobs": {"token_ids": "bytes", "logprobs": "bytes", "k": "uint32", "length": "uint32"},
    "SampledSequence": {
        "stop_reason": "int32",
        "tokens": "bytes",
        "logprobs": "optional bytes",
        "topk_sampled_logprobs": "optional TopkLogprobs",
    },
    "SampleResponse": {
        "sequences": "repeated SampledSequence",
        "prompt_logprobs": "optional bytes",
        "topk_prompt_logprobs": "optional TopkLogprobs",
        "prompt_cache_hit_tokens": "int32",
    },
}
"""Names and types of the fields, numbered from 1 in this order. A type may be `repeated T`,
`optional T`, `map T` (from string), or `oneof.NAME T`."""


def _described(name: str, fields: Mapping[str, str]) -> DescriptorProto:
    message = DescriptorProto(name=name)
    oneofs: list[str] = []
    for number, (field_name, kind) in enumerate(fields.items(), start=1):
        modifier, _, base = kind.rpartition(" ")
        field = message.field.add(name=field_name, number=number)
        is_many = modifier in ("map", "repeated")
        field.label = field.LABEL_REPEATED if is_many else field.LABEL_OPTIONAL
        if modifier == "map":
            base = _add_entry(message, name, field_name, base)
        elif modifier and not is_many:
            # An optional field is a oneof of its own; real oneofs come first in our messages.
            oneof = modifier.removeprefix("oneof.") if "." in modifier else f"_{field_name}"
            if oneof not in oneofs:
                oneofs.append(oneof)
                message.oneof_decl.add(name=oneof)
            field.oneof_index = oneofs.index(oneof)
            field.proto3_optional = modifier == "optional"
        _point(field, base)
    return message


def _add_entry(message: DescriptorProto, owner: str, field_name: str, value: str) -> str:
    """The nested message that protobuf sends for each pair of a map."""
    name = "".join(part.capitalize() for part in field_name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, part, base in ((1, "key", "string"), (2, "value", value)):
        field = entry.field.add(name=part, number=number)
        field.label = field.LABEL_OPTIONAL
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


def message_class(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ForwardBackwardRequest = message_class("ForwardBackwardRequest")
ForwardBackwardOutput = message_class("ForwardBackwardOutput")
SampleResponse = message_class("SampleResponse")
NAMES = tuple(_MESSAGES)
