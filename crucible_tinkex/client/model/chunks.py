"""A batch as several requests: where it is cut, and how the results become one again.

The service refuses very large requests, so a batch is cut at a number of rows or bytes. Gradients
add up over the pieces, so the training is the same; metrics are merged by the suffix that names
their reduction, as the official SDK does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput

_INT_BYTES = 7
_FLOAT_BYTES = 12
_ROW_BYTES = 200

_Reduction = Callable[[Sequence[float], Sequence[int]], float]


def cut(data: Sequence[Datum], *, max_rows: int, max_bytes: int) -> Iterator[Sequence[Datum]]:
    """Consecutive pieces of `data`, each within both limits unless a single row is larger."""
    start, size = 0, 0
    for index, datum in enumerate(data):
        row = estimated_bytes(datum)
        if index > start and (index - start >= max_rows or size + row > max_bytes):
            yield data[start:index]
            start, size = index, 0
        size += row
    yield data[start:]


def estimated_bytes(datum: Datum) -> int:
    """About how long the row is as JSON."""
    size = _ROW_BYTES + _INT_BYTES * datum.model_input.length
    for tensor in datum.loss_fn_inputs.values():
        size += len(tensor.data) * (_INT_BYTES if tensor.dtype == "int64" else _FLOAT_BYTES)
    return size


def merge(results: Sequence[ForwardBackwardOutput]) -> ForwardBackwardOutput:
    """The result of the whole batch. A metric without a known reduction is kept only if alone."""
    if len(results) == 1:
        return results[0]
    rows = [len(r.loss_fn_outputs) for r in results]
    metrics: dict[str, float] = {}
    for name in results[0].metrics:
        if all(name in r.metrics for r in results):
            metrics.update(_merged(name, [r.metrics[name] for r in results], rows))
    return ForwardBackwardOutput(
        loss_fn_output_type=results[0].loss_fn_output_type,
        loss_fn_outputs=[output for r in results for output in r.loss_fn_outputs],
        metrics=metrics,
    )


def _merged(name: str, values: Sequence[float], rows: Sequence[int]) -> Mapping[str, float]:
    suffix = name.rpartition(":")[2]
    if suffix == "unique":
        more = {f"{name}_{i}": value for i, value in enumerate(values[1:], start=1)}
        return {name: values[0], **more}
    reduction = _REDUCTIONS.get(suffix)
    return {} if reduction is None else {name: reduction(values, rows)}


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    total = sum(rows)
    if not total:
        return sum(values) / len(values)
    return sum(v * n for v, n in zip(values, rows, strict=True)) / total


def _chosen(choose: Callable[[Iterable[float]], float], values: Sequence[float]) -> float:
    """The least or the greatest; NaN if any is, because a NaN must not get lost in a merge."""
    return math.nan if any(math.isnan(v) for v in values) else choose(values)


def _hash(values: Sequence[float]) -> float:
    if not all(math.isfinite(v) for v in values):
        return math.nan
    return float(sum(int(v) for v in values) % 2**64)


_REDUCTIONS: Mapping[str, _Reduction] = {
    "sum": lambda values, rows: sum(values),
    "mean": _mean,
    "min": lambda values, rows: _chosen(min, values),
    "max": lambda values, rows: _chosen(max, values),
    "slack": lambda values, rows: _chosen(max, values) - _mean(values, rows),
    "hash2": lambda values, rows: _hash(values),
}
