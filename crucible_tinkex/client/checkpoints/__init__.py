"""What the service keeps: lists of runs and checkpoints, downloads, archives."""
