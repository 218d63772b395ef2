"""The models of a session: training and sampling, losses, batches in pieces."""
