"""TensorBoard files as a view of the event stream."""

from crucible_tinkex.telemetry.tensorboard.view import TensorBoardView

__all__ = ["TensorBoardView"]
