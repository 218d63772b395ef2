"""A loss of the caller's own, computed here from the service's logprobs.

The service cannot run the caller's function, but it need not: with the gradient of the loss with
respect to the logprobs, g, the linear loss `sum(-logprobs * weights)` with `weights = -g` has the
same gradient in every parameter. So: forward for the logprobs, the caller's function here, then
cross_entropy with these weights. Exact to first order, which is all that a step uses.

The only module of the client that needs numpy, which is imported at the first custom loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from crucible_tinkex.errors import ConfigError, ProtocolError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput, TensorData

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FloatArray: TypeAlias = "npt.NDArray[np.float32]"
CustomLoss: TypeAlias = Callable[
    [list[FloatArray]], tuple[float, Sequence["npt.NDArray[Any]"], Mapping[str, float]]
]
"""From each row's logprobs, of its targets' shape: the loss, its gradient with respect to each,
and metrics named `NAME:REDUCTION`. Called in a thread."""


class Weighed(NamedTuple):
    """The rows of the backward pass, and what is reported with its result."""

    rows: list[Datum]
    loss: float
    metrics: Mapping[str, float]


def forward_rows(data: Sequence[Datum]) -> list[Datum]:
    """The rows with only what a forward pass of cross_entropy needs. Raises `ConfigError`."""
    rows = []
    for index, datum in enumerate(data):
        targets = datum.loss_fn_inputs.get("target_tokens")
        if targets is None or targets.sparse_crow_indices is not None:
            raise ConfigError(f"row {index} of a custom loss needs dense target_tokens")
        zeros = TensorData(data=[0.0] * len(targets.data), dtype="float32", shape=targets.shape)
        inputs = {"target_tokens": targets, "weights": datum.loss_fn_inputs.get("weights", zeros)}
        rows.append(datum.model_copy(update={"loss_fn_inputs": inputs}))
    return rows


def weigh(data: Sequence[Datum], output: ForwardBackwardOutput, loss_fn: CustomLoss) -> Weighed:
    """Raises what `loss_fn` raises, and `ConfigError` for gradients that do not fit."""
    pairs = zip(output.loss_fn_outputs, data, strict=True)
    logprobs = [_logprobs(row.get("logprobs"), datum) for row, datum in pairs]
    loss, gradients, metrics = evaluate(loss_fn, logprobs)
    rows = []
    for datum, gradient in zip(data, gradients, strict=True):
        weights = TensorData.model_construct(
            data=(-gradient).ravel().tolist(), dtype="float32", shape=list(gradient.shape)
        )
        inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"], "weights": weights}
        rows.append(datum.model_copy(update={"loss_fn_inputs": inputs}))
    return Weighed(rows, loss, metrics)


def evaluate(
    loss_fn: CustomLoss, logprobs: Sequence[FloatArray]
) -> tuple[float, list[FloatArray], Mapping[str, float]]:
    """The loss, its gradients as float32, and the metrics; checked. `loss_fn` gets copies."""
    import numpy as np

    loss, given, metrics = loss_fn([array.copy() for array in logprobs])
    if len(given) != len(logprobs):
        raise ConfigError(f"the custom loss gave {len(given)} gradients for {len(logprobs)} rows")
    gradients = [np.asarray(gradient, np.float32) for gradient in given]
    for index, (gradient, array) in enumerate(zip(gradients, logprobs, strict=True)):
        if gradient.shape != array.shape:
            raise ConfigError(
                f"the gradient of row {index} must be of shape {array.shape}, as its logprobs are, "
                f"not {gradient.shape}"
            )
        if not np.isfinite(gradient).all():
            raise ConfigError(f"the gradient of row {index} is not finite: {_first_bad(gradient)}")
    return float(loss), gradients, dict(metrics)


def _first_bad(gradient: FloatArray) -> str:
    import numpy as np

    place = int(np.flatnonzero(~np.isfinite(gradient))[0])
    return f"{gradient.ravel()[place]} at token {place}"


def _logprobs(tensor: TensorData | None, datum: Datum) -> FloatArray:
    import numpy as np

    targets = datum.loss_fn_inputs["target_tokens"]
    if tensor is None or len(tensor.data) != len(targets.data):
        raise ProtocolError("the service answered a forward pass without a logprob per target")
    return np.asarray(tensor.data, np.float32).reshape(targets.shape or [len(targets.data)])


def reported(output: ForwardBackwardOutput, weighed: Weighed) -> ForwardBackwardOutput:
    """The backward result with the caller's loss and metrics in place of the surrogate's."""
    surrogate = output.metrics.get("loss:sum", 0.0)
    metrics = {
        **output.metrics,
        **weighed.metrics,
        "loss:sum": weighed.loss,
        "surrogate_loss:sum": surrogate,
    }
    return output.model_copy(update={"metrics": metrics})
