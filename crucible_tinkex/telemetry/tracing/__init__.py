"""Whole sweeps in OpenTelemetry: one trace from the driver through every session process."""
