"""What the server keeps on disk: checkpoints, adapters, exports."""
