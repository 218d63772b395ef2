"""What a sweep does next, as pure functions of what its journal says."""
