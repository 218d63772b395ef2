"""Which checkpoints a sweep keeps on its service, and the deletion of the others."""
