"""What was measured, kept for ever and shown live: event log, queries, TensorBoard, sender.

Nothing is re-exported on purpose: a session actor needs `telemetry.sender` alone and must not pay
for pyarrow, duckdb or tensorboardX. Import the module that you need.
"""
