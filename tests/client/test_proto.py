"""Our protobuf against the official SDK's own classes, in both directions, on random messages."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol import proto
from crucible_tinkex.protocol.proto import messages
from crucible_tinkex.protocol.proto.tensors import MAX_UNFOLDED
from crucible_tinkex.protocol.wire import (
    Chunk,
    Datum,
    ForwardBackwardRequest,
    ForwardInput,
    ModelInput,
    SampledSequence,
    SampleResponse,
    TensorData,
)

theirs = pytest.importorskip("tinker.proto.tinker_public_pb2", reason="needs the extra [sdk]")

FLOATS = st.floats(width=32, allow_nan=False)
INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)
NAMES = st.sampled_from(["target_tokens", "weights", "advantages", "é"])


def fields(message: Any) -> dict[str, tuple[int, int, int, str, str | None]]:
    """What the wire format depends on; enums are integers there."""
    described = descriptor_pb2.DescriptorProto()
    message.CopyToProto(described)
    found = {}
    for f in described.field:
        is_enum = f.type == descriptor_pb2.FieldDescriptorProto.TYPE_ENUM
        kind = descriptor_pb2.FieldDescriptorProto.TYPE_INT32 if is_enum else f.type
        target = "" if is_enum else f.type_name.rpartition(".")[2]
        oneof = described.oneof_decl[f.oneof_index].name if f.HasField("oneof_index") else None
        found[f.name] = (f.number, kind, f.label, target, oneof)
    return found


@pytest.mark.parametrize("name", messages.NAMES)
def test_every_field_is_one_of_the_sdk_s(name: str) -> None:
    ours, sdk = messages.message_class(name).DESCRIPTOR, getattr(theirs, name).DESCRIPTOR
    assert fields(ours).items() <= fields(sdk).items()
    for nested, other in zip(ours.nested_types, sdk.nested_types, strict=True):
        assert fields(nested) == fields(other)


def tensors() -> st.SearchStrategy[TensorData]:
    def made(dtype: Any, numbers: list[Any], columns: int) -> TensorData:
        whole = numbers[: len(numbers) // columns * columns]
        shape = [len(whole)] if columns == 1 else [len(whole) // columns, columns]
        return TensorData(data=whole, dtype=dtype, shape=shape)

    columns = st.integers(1, 3)
    return st.one_of(
        st.builds(made, st.just("int64"), st.lists(INT64, max_size=9), columns),
        st.builds(made, st.just("float32"), st.lists(FLOATS, max_size=9), columns),
    )


DATA = st.builds(
    Datum,
    model_input=st.builds(
        ModelInput,
        chunks=st.lists(st.builds(Chunk, tokens=st.lists(INT32, max_size=9)), max_size=3),
    ),
    loss_fn_inputs=st.dictionaries(NAMES, tensors(), max_size=3),
)
REQUESTS = st.builds(
    ForwardBackwardRequest,
    model_id=st.text(max_size=9),
    seq_id=st.integers(0, 2**31 - 1),
    forward_backward_input=st.builds(
        ForwardInput,
        data=st.lists(DATA, max_size=3),
        loss_fn=st.sampled_from(["cross_entropy", "ppo"]),
        loss_fn_config=st.none() | st.dictionaries(NAMES, st.floats(allow_nan=False), min_size=1),
    ),
)


def _listed(given: ForwardInput) -> ForwardInput:
    """With lists where a decoded request holds arrays."""
    for datum in given.data:
        for part in datum.model_input.chunks:
            part.tokens = list(part.tokens)
        for tensor in datum.loss_fn_inputs.values():
            tensor.data = list(tensor.data)
    return given


@settings(max_examples=60)
@given(REQUESTS, st.booleans())
def test_requests_survive_the_sdk_s_classes(
    request: ForwardBackwardRequest, forward_only: bool
) -> None:
    encoded = proto.encode_forward_backward(request, forward_only=forward_only)
    theirs_read = theirs.ForwardBackwardRequest.FromString(encoded)
    sent = request.forward_backward_input
    assert theirs_read.model_id == request.model_id
    assert [len(d.model_input) for d in theirs_read.data] == [
        len(d.model_input.chunks) for d in sent.data
    ]
    for row, datum in zip(theirs_read.data, sent.data, strict=True):
        for name, tensor in datum.loss_fn_inputs.items():
            kind = np.dtype(tensor.dtype)
            found = np.frombuffer(row.loss_fn_inputs[name].dense, kind)
            assert found.tolist() == tensor.data
    again = proto.decode_forward_backward(theirs_read.SerializeToString())
    assert (again.model_id, again.seq_id) == (request.model_id, request.seq_id)
    assert again.forward_only == forward_only
    assert _listed(again.given) == sent


ROWS = st.lists(
    st.fixed_dictionaries({"logprobs": tensors(), "elementwise_loss": tensors()}), max_size=4
)


@settings(max_examples=60)
@given(ROWS, st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3))
def test_outputs_survive_the_sdk_s_classes(rows: Any, metrics: dict[str, float]) -> None:
    encoded = proto.encode_forward_backward_output(rows, metrics)
    passed = theirs.ForwardBackwardOutput.FromString(encoded).SerializeToString()
    output = proto.decode_forward_backward_output(passed)
    assert output.loss_fn_outputs == rows
    assert output.metrics == metrics
    assert output.loss_fn_output_type == "logprobs"


def test_the_sdk_reads_our_outputs_and_numpy_arrays_may_be_given() -> None:
    conv = pytest.importorskip("tinker.proto.response_conv")
    arrays = [np.arange(n, dtype=np.float32) for n in (3, 0, 2)]
    rows = [
        {"logprobs": TensorData.model_construct(data=a, dtype="float32", shape=[len(a)])}
        for a in arrays
    ]
    found = conv.deserialize_forward_backward_output(
        proto.encode_forward_backward_output(rows, {"loss:sum": 1.5})
    )
    assert [o["logprobs"].data for o in found.loss_fn_outputs] == [a.tolist() for a in arrays]
    assert found.metrics == {"loss:sum": 1.5}
    # float64 and strided arrays are converted, not reinterpreted
    strided = np.arange(6, dtype=np.float64)[::2]
    row = {"logprobs": TensorData.model_construct(data=strided, dtype="float32", shape=[3])}
    again = proto.decode_forward_backward_output(proto.encode_forward_backward_output([row], {}))
    assert again.loss_fn_outputs[0]["logprobs"].data == [0.0, 2.0, 4.0]


TOPK = st.lists(
    st.none() | st.lists(st.tuples(st.integers(1, 9), FLOATS), min_size=1, max_size=3), max_size=3
)
SEQUENCES = st.lists(st.tuples(INT32, FLOATS), max_size=5).map(
    lambda pairs: SampledSequence(
        stop_reason="length" if len(pairs) > 2 else "stop",
        tokens=[t for t, _ in pairs],
        logprobs=[p for _, p in pairs],
    )
)


@settings(max_examples=60)
@given(
    st.builds(
        SampleResponse,
        sequences=st.lists(SEQUENCES, max_size=3),
        prompt_logprobs=st.none() | st.lists(st.none() | FLOATS, min_size=1, max_size=5),
        topk_prompt_logprobs=st.none() | TOPK.filter(lambda rows: any(rows)),
        prompt_cache_hit_tokens=st.integers(0, 99),
    )
)
def test_samples_survive_the_sdk_s_classes(response: SampleResponse) -> None:
    encoded = proto.encode_sample_response(response)
    passed = theirs.SampleResponse.FromString(encoded).SerializeToString()
    assert proto.decode_sample_response(passed) == response


def test_the_sdk_reads_our_samples() -> None:
    conv = pytest.importorskip("tinker.proto.response_conv")
    response = SampleResponse(
        sequences=[SampledSequence(stop_reason="length", tokens=[5, 6], logprobs=[-1.0, -0.5])],
        prompt_logprobs=[None, -2.0],
        topk_prompt_logprobs=[None, [(3, -2.0), (4, -2.5)]],
    )
    found = conv.deserialize_sample_response(proto.encode_sample_response(response))
    assert found.sequences[0].tokens == [5, 6]
    assert found.sequences[0].stop_reason == "length"
    assert found.prompt_logprobs == [None, -2.0]
    assert found.topk_prompt_logprobs == [None, [(3, -2.0), (4, -2.5)]]


def sparse(shape: list[int], crow: list[int], columns: list[int], values: list[float]) -> bytes:
    message = theirs.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy")
    tensor = message.data.add().loss_fn_inputs["weights"]
    tensor.dtype = 1
    tensor.shape.extend(shape)
    tensor.sparse_csr.values = np.asarray(values, np.float32).tobytes()
    tensor.sparse_csr.crow_indices = np.asarray(crow, np.int64).tobytes()
    tensor.sparse_csr.col_indices = np.asarray(columns, np.int64).tobytes()
    return bytes(message.SerializeToString())


def test_sparse_tensors_come_out_dense() -> None:
    call = proto.decode_forward_backward(sparse([2, 3], [0, 1, 3], [2, 0, 1], [1.0, 2.0, 3.0]))
    tensor = call.given.data[0].loss_fn_inputs["weights"]
    assert (tensor.data, tensor.shape) == ([0.0, 0.0, 1.0, 2.0, 3.0, 0.0], [2, 3])


def test_sparse_tensors_are_sent_sparse() -> None:
    tensor = TensorData(
        data=[1.0],
        dtype="float32",
        shape=[2, 2],
        sparse_crow_indices=[0, 0, 1],
        sparse_col_indices=[1],
    )
    datum = Datum(model_input=ModelInput.from_tokens([1]), loss_fn_inputs={"weights": tensor})
    request = ForwardBackwardRequest(
        model_id="m", seq_id=1, forward_backward_input=ForwardInput(data=[datum])
    )
    encoded = proto.encode_forward_backward(request, forward_only=False)
    assert (
        theirs.ForwardBackwardRequest.FromString(encoded)
        .data[0]
        .loss_fn_inputs["weights"]
        .HasField("sparse_csr")
    )
    dense = proto.decode_forward_backward(encoded).given.data[0].loss_fn_inputs["weights"]
    assert dense.data == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("shape", "crow", "columns", "values"),
    [
        ([2], [0, 1, 1], [0], [1.0]),
        ([2, -3], [0, 1, 1], [0], [1.0]),
        ([2, 3], [0, 1], [0], [1.0]),
        ([2, 3], [1, 1, 1], [0], [1.0]),
        ([2, 3], [0, 2, 1], [0], [1.0]),
        ([2, 3], [0, 1, 1], [3], [1.0]),
        ([2, 3], [0, 1, 1], [-1], [1.0]),
        ([2, 3], [0, 1, 1], [0, 1], [1.0]),
        ([1, MAX_UNFOLDED + 1], [0, 0], [], []),
    ],
)
def test_wrong_sparse_tensors_are_refused(
    shape: list[int], crow: list[int], columns: list[int], values: list[float]
) -> None:
    with pytest.raises(proto.MalformedError, match=r"weights|unfold"):
        proto.decode_forward_backward(sparse(shape, crow, columns, values))


def dense(dtype: int, data: bytes, shape: list[int]) -> bytes:
    message = theirs.ForwardBackwardRequest(model_id="m", seq_id=1)
    tensor = message.data.add().loss_fn_inputs["weights"]
    tensor.dtype, tensor.dense = dtype, data
    tensor.shape.extend(shape)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff not protobuf",
        dense(1, b"123", []),
        dense(1, b"1234", [2]),
        dense(1, b"1234", [-1, -1]),
        dense(0, b"1234", [1]),
        dense(9, b"1234", [1]),
    ],
)
def test_wrong_requests_are_refused(body: bytes) -> None:
    with pytest.raises(proto.MalformedError):
        proto.decode_forward_backward(body)


def test_bfloat16_and_int32_are_widened() -> None:
    halves = np.asarray([1.5, -2.0], np.float32).view(np.uint32) >> 16
    call = proto.decode_forward_backward(dense(4, halves.astype(np.uint16).tobytes(), [2]))
    assert call.given.data[0].loss_fn_inputs["weights"].data.tolist() == [1.5, -2.0]
    call = proto.decode_forward_backward(dense(3, np.asarray([7], np.int32).tobytes(), [1]))
    tensor = call.given.data[0].loss_fn_inputs["weights"]
    assert (tensor.data.tolist(), tensor.dtype) == ([7], "int64")


def test_what_is_new_is_tolerated_and_what_trains_wrongly_is_not() -> None:
    message = theirs.ForwardBackwardRequest(model_id="m", seq_id=1)
    message.data.add().model_input.add().image.format = "png"
    unknown = message.SerializeToString() + b"\x9a\x06\x03new"
    assert (
        proto.decode_forward_backward(unknown).given.data[0].model_input.chunks[0].type == "image"
    )
    message.loss_fn_config_v2["kind"].text = "odd"
    with pytest.raises(proto.MalformedError, match="kind"):
        proto.decode_forward_backward(message.SerializeToString())
    answer = theirs.SampleResponse()
    answer.sequences.add().stop_reason = 17
    found = proto.decode_sample_response(answer.SerializeToString())
    assert found.sequences[0].stop_reason == "stop"


def record(**changes: Any) -> bytes:
    message = theirs.ForwardBackwardOutput()
    added = message.loss_fn_outputs.add(num_datums=changes.pop("num_datums", 1))
    field = added.fields["logprobs"]
    given = {"data": bytes(8), "offsets": np.asarray([0, 8], np.int64).tobytes(), "dtype": 1}
    for name, value in {**given, **changes}.items():
        if name == "trailing_shape":
            field.trailing_shape.extend(value)
        else:
            setattr(field, name, value)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_datums": 2},
        {"num_datums": -1},
        {"data": bytes(7)},
        {"data": bytes(4)},
        {"offsets": b""},
        {"offsets": np.asarray([4, 8], np.int64).tobytes()},
        {"offsets": np.asarray([0, 12, 8], np.int64).tobytes(), "num_datums": 2},
        {"offsets": np.asarray([0, 3, 8], np.int64).tobytes(), "num_datums": 2},
        {"trailing_shape": [3]},
        {"trailing_shape": [0]},
        {"trailing_shape": [-1, -2]},
    ],
)
def test_wrong_outputs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(proto.MalformedError):
        proto.decode_forward_backward_output(record(**changes))


def test_a_result_of_an_unknown_dtype_is_left_out() -> None:
    assert proto.decode_forward_backward_output(record(dtype=77)).loss_fn_outputs == [{}]
    assert proto.decode_forward_backward_output(record(num_datums=0)).loss_fn_outputs[0][
        "logprobs"
    ].data == [0.0, 0.0]


def test_a_record_cannot_claim_endless_rows() -> None:
    message = theirs.ForwardBackwardOutput()
    message.loss_fn_outputs.add(num_datums=2**60)
    with pytest.raises(proto.MalformedError):
        proto.decode_forward_backward_output(message.SerializeToString())


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_message_or_a_malformed_error(data: bytes) -> None:
    for decode in (
        proto.decode_forward_backward,
        proto.decode_forward_backward_output,
        proto.decode_sample_response,
    ):
        with contextlib.suppress(proto.MalformedError):
            decode(data)


def test_what_the_encoding_cannot_hold_is_a_config_error() -> None:
    row = Datum(model_input=ModelInput.from_tokens([2**31]), loss_fn_inputs={})
    request = ForwardBackwardRequest(
        model_id="m", seq_id=1, forward_backward_input=ForwardInput(data=[row])
    )
    with pytest.raises(ConfigError, match="cannot be sent"):
        proto.encode_forward_backward(request, forward_only=False)
    with pytest.raises(ConfigError, match="sequence number"):
        proto.encode_forward_backward(
            request.model_copy(update={"seq_id": 2**31}), forward_only=False
        )
    picture = ModelInput(chunks=[Chunk(type="image")])
    row = Datum(model_input=picture, loss_fn_inputs={})
    asked = request.model_copy(update={"forward_backward_input": ForwardInput(data=[row])})
    with pytest.raises(ConfigError, match="image"):
        proto.encode_forward_backward(asked, forward_only=False)


def test_nan_prompt_logprobs_are_missing_ones() -> None:
    message = theirs.SampleResponse()
    message.prompt_logprobs = np.asarray([math.nan, -1.0], np.float32).tobytes()
    assert proto.decode_sample_response(message.SerializeToString()).prompt_logprobs == [None, -1.0]
